"""The lock of a mixture: everything that decides what is drawn from it, in one file to be cited.

```python
from pathlib import Path

from flan_jax.data import data_home, lock_mixture, write_lock

write_lock(Path("mixture.lock"), lock_mixture("mini", data_home()))
```

A lock holds no time and no place of this machine: the same data give the same bytes. Its `hash` is over all
the rest. `flan_jax.data.lock_changes` tells two apart.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flan_jax import __version__
from flan_jax.data.atomic import write_whole
from flan_jax.data.mixtures import Mixture, as_mixture, mixtures_within
from flan_jax.data.rates import MixtureTask, mixture_tasks, specs_of
from flan_jax.data.records import RECORDS_VERSION, load_records
from flan_jax.data.source_words import portable
from flan_jax.data.sources import open_source
from flan_jax.data.store import ENCODING_VERSION
from flan_jax.data.texts import registered_texts
from flan_jax.errors import StorageError
from flan_jax.prompting import AnyTemplate, DatasetSpec
from flan_jax.prompting.dataset_spec import RENDERING_VERSION

LOCK_VERSION = 1
"""Raised whenever the keys of a lock come to mean something else."""

PASSES_OF = 10_000
"""A lock tells the passes over a dataset in so many draws of the mixture."""

_CONVENTIONS = {
  "rate": "weight * min(available, max_examples, rate_cap) ** (1 / temperature)",
  "per_template": "templates * min(available, max_examples) ** (1 / temperature), with "
  "max(rate_cap // templates, 1) in place of what is above rate_cap",
  "order": "max_examples and rate_cap before temperature, temperature before weight",
  "nesting": "a mixture within a mixture has the sum of its rates",
  "share": "rate / sum of rates; a weight in per cent is the share itself",
  "draws": "dataset by multiples of the golden ratio, example by a seeded permutation a pass",
  "passes": f"share * {PASSES_OF} / examples",
  "records_version": RECORDS_VERSION,
  "rendering_version": RENDERING_VERSION,
  "encoding_version": ENCODING_VERSION,
}
# A path of this machine in a message of TFDS's; the address of an object.
_OF_THIS_MACHINE = re.compile(r"(?<![\w:/.~])~?/[^\s'\",;:()]+|0x[0-9a-f]+")


def lock_mixture(
  mixture: Mixture | str, data_dir: Path | str, strict: bool = False
) -> dict[str, Any]:
  """The lock of a mixture as it is now. Builds the records that are not there, and reads all of them.

  Args:
    strict: a dataset whose records cannot be had is an error; else the lock tells why it is missing.
  """
  mixture = as_mixture(mixture)
  settings = {each.name: _settings(each) for each in mixtures_within(mixture)}
  content = {
    "lock_version": LOCK_VERSION,
    "flan_jax": __version__,
    "mixture": mixture.name,
    "conventions": _CONVENTIONS,
    "settings": settings.pop(mixture.name),
    "within": settings,
    "datasets": {
      task.name: _member(task, Path(data_dir)) for task in mixture_tasks(mixture, data_dir, strict)
    },
  }
  content = json.loads(_text(content))  # as it will be read again
  return {"hash": _hash(content), **content}


def write_lock(path: Path, lock: dict[str, Any]) -> None:
  """Writes a lock, whole or not at all."""
  write_whole(path, (json.dumps(lock, indent=1, ensure_ascii=False) + "\n").encode())


def read_lock(path: Path) -> dict[str, Any]:
  """The lock that `write_lock` wrote.

  Raises:
    StorageError: it is missing, torn, was changed by hand, or is of another version.
  """
  try:
    lock = json.loads(path.read_text(encoding="utf-8"))
    claimed = lock.pop("hash")
    version = lock["lock_version"]
  except FileNotFoundError:
    raise StorageError(
      f"there is no lock {path}: `flan-jax mixtures NAME --lock {path}` writes one."
    ) from None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise StorageError(
      f"{path} is torn, or no lock of a mixture ({error!r}): write it again."
    ) from None
  if _hash(lock) != claimed:
    raise StorageError(
      f"{path} does not have the hash that it names: it is torn or was changed; write it again."
    )
  if version != LOCK_VERSION:
    raise StorageError(
      f"{path} is a lock of version {version}, and this library reads {LOCK_VERSION}."
    )
  return {"hash": claimed, **lock}


def _settings(mixture: Mixture) -> dict[str, Any]:
  settings = asdict(mixture)
  return {key: value for key, value in settings.items() if key != "name"}


def _member(task: MixtureTask, data_dir: Path) -> dict[str, Any]:
  """A dataset's or a text's place in the mixture, and what it is."""
  place = {
    "cluster": task.cluster,
    "held_out": task.held_out,
    "missing": _reason(task),
    "available": task.available,
    "examples": task.examples,
    "max_examples": task.max_examples,
    "rate_cap": task.cap,
    "rate": _rounded(task.rate),
    "share": _rounded(task.share),
    "passes": _rounded(task.share * PASSES_OF / task.examples) if task.examples else 0.0,
  }
  datasets = {spec.name: _dataset(spec, data_dir, task) for spec in specs_of(task.name)}
  if text := registered_texts().get(task.name):
    objective = {"name": text.objective.name, **vars(text.objective)}
    return {**place, "objective": objective, "most_passes": text.passes, "text_of": datasets}
  return {**place, **datasets[task.name]}


def _dataset(spec: DatasetSpec, data_dir: Path, task: MixtureTask) -> dict[str, Any]:
  said = portable(spec.source)
  source = open_source(spec.source, spec.folder, data_dir / "archives")
  about = {
    "source": said,
    "source_fingerprint": _hash([said, source.content()]),
    "splits": dict(spec.splits),
    "group": list(spec.group),
    "unique": list(spec.unique),
    "at_most": dict(spec.at_most),
    "balance": list(spec.balance),
    "derive": spec.derive,
    "fields": dict(spec.fields),
    "answer": asdict(spec.answer) if spec.answer else None,
    "text": spec.data.get("text")
    or (spec.text and spec.text.words),  # the latter where it is borrowed
    "templates": {template.name: _wording(template) for template in spec.templates},
    "unseen": [template.name for template in spec.templates if template.unseen],
    "licence": spec.licence,
    "citation": spec.citation,
    "counts": None,
    "records": {},
  }
  if not task.missing:
    records = load_records(spec, data_dir)
    about["counts"] = asdict(records.counts)
    about["records"] = {split: records[split].digest() for split in records}
  return about


def _wording(template: AnyTemplate) -> str:
  """The hash of what a template says under whatever name."""
  _, *words = template.words
  return _hash([words, template.turned_around, template.metrics])


def _reason(task: MixtureTask) -> str:
  """Why a dataset is missing, in words that are the same on every machine."""
  if task.fetchable:
    return "its source could not be reached"
  return _OF_THIS_MACHINE.sub("...", task.missing)


def _rounded(number: float) -> float:
  """Without the last digits, in which one machine's power may differ from another's."""
  return float(f"{number:.12g}")


def _hash(content: Any) -> str:
  return hashlib.sha256(_text(content).encode()).hexdigest()


def _text(content: Any) -> str:
  # Keys are not sorted: the order of the datasets decides the draws, that of the choices how they are shown.
  return json.dumps(content, default=str)
