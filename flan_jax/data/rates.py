"""How often each dataset of a mixture is drawn, and what there is of it. Asking builds the records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flan_jax.data.library import dataset_file, dataset_spec
from flan_jax.data.mixtures import (
  Mixture,
  as_mixture,
  cluster_of,
  clusters_held_out,
  get_mixture,
  is_mixture,
  multiplier_and_share,
)
from flan_jax.data.records import are_built, load_records
from flan_jax.data.source_words import in_words
from flan_jax.data.texts import datasets_of, registered_texts
from flan_jax.errors import ConfigError, NetworkError, SourceError, UnknownName
from flan_jax.prompting import DatasetSpec


@dataclass(frozen=True)
class MixtureTask:
  """One dataset of a mixture, or a raw text.

  Attributes:
    name: of the dataset or text.
    cluster: its task cluster; "raw_text".
    held_out: kept out of training; its rate and share are then 0.
    available: records in the split that is trained on; of a text, those of its datasets.
    max_examples: at most so many of them are used; a text has no such limit.
    examples: how many of them training uses: the first ones of the split, whose order is hashed.
    cap: examples beyond it did not raise the rate.
    rate: how often it is drawn, against the other rates.
    share: the rate as a fraction of the sum of all.
    missing: why its records cannot be had; its rate and share are then 0.
    fetchable: they are missing because the network could not be reached, and can be had where it can.
  """

  name: str
  cluster: str
  held_out: bool
  available: int
  max_examples: int
  examples: int
  cap: int
  rate: float
  share: float
  missing: str = ""
  fetchable: bool = False

  @property
  def status(self) -> str:
    """Of its records: "prepared", "fetchable" or "missing"."""
    if not self.missing:
      return "prepared"
    return "fetchable" if self.fetchable else "missing"


@dataclass(frozen=True)
class TaskDescription:
  """What is printed about a dataset before a run.

  Attributes:
    task: the dataset's place in the mixture.
    passes: expected passes over its examples.
    templates: names of the templates that training draws; of a text, its objective.
    unseen: names of the templates kept for evaluation.
    licence: of the data.
    source: where the data come from, in words.
  """

  task: MixtureTask
  passes: float
  templates: tuple[str, ...]
  unseen: tuple[str, ...]
  licence: str
  source: str


def training_tasks(
  mixture: Mixture | str,
  data_dir: Path | str,
  split: str = "train",
  strict: bool = False,
  missing: Mapping[str, str] | None = None,
) -> list[MixtureTask]:
  """The datasets that are trained on, with their rates. Builds those of their records that are not there.

  Args:
    split: another one has the datasets that have such a split, at the rates that they are trained at.
    strict: see `mixture_tasks`; else those that cannot be had are there with a share of 0.
    missing: what is known not to be had, and why: it is not asked for, unless its records are there.

  Raises:
    UnknownName: none of them has the split; see also `mixture_tasks`.
  """
  trained = [name for name, held_out in clusters_held_out(as_mixture(mixture)) if not held_out]
  if not trained:
    raise ConfigError(
      f"the mixture {as_mixture(mixture).name!r} has nothing to train on: every cluster is held out."
    )
  tasks = _tasks(as_mixture(mixture), trained, data_dir, strict, missing)
  if all(task.missing for task in tasks):
    raise SourceError(
      f"nothing of the mixture {as_mixture(mixture).name!r} can be had. {tasks[0].missing}"
    )
  if split == "train":
    return tasks
  sizes = {
    task.name: 0 if task.missing else _size(task.name, split, data_dir)
    for task in tasks
    if split in _splits(task.name)
  }
  tasks = [task for task in tasks if sizes.get(task.name) or (task.missing and task.name in sizes)]
  total = sum(task.rate for task in tasks)
  if not total:
    known = {split for name in trained for split in _splits(name)}
    raise UnknownName(
      "split", split, known, f"They are those of the mixture {as_mixture(mixture).name}."
    )
  return [
    replace(
      task,
      available=sizes[task.name],
      examples=min(sizes[task.name], task.examples),
      share=task.rate / total,
    )
    for task in tasks
  ]


def held_out_tasks(mixture: Mixture | str, data_dir: Path | str) -> list[MixtureTask]:
  """The datasets in held-out clusters. Builds the records that are not there."""
  return [task for task in mixture_tasks(mixture, data_dir) if task.held_out]


def mixture_tasks(
  mixture: Mixture | str, data_dir: Path | str, strict: bool = False
) -> list[MixtureTask]:
  """Every dataset of a mixture, those held out last. Builds the records that are not there.

  Args:
    strict: a dataset whose records cannot be had is an error; else it is told as missing.

  Raises:
    UnknownName: a member or a held-out cluster is unknown.
    ConfigError: the shares that are fixed leave nothing for the others.
    SourceError: strict, and records cannot be had.
  """
  mixture = as_mixture(mixture)
  names = [name for name, _ in clusters_held_out(mixture)]
  return _tasks(mixture, names, data_dir, strict)


def _tasks(
  mixture: Mixture,
  names: Sequence[str],
  data_dir: Path | str,
  strict: bool,
  known: Mapping[str, str] | None = None,
) -> list[MixtureTask]:
  """Those of a mixture's datasets that are named, held out or not; all that are trained on have to be."""
  held = {name: held_out for name, held_out in clusters_held_out(mixture) if name in names}
  sizes: dict[str, int] = {}
  missing: dict[str, SourceError | str] = {}
  for name in held:
    if known and name in known and not all(are_built(spec, data_dir) for spec in specs_of(name)):
      sizes[name], missing[name] = 0, known[name]
      continue
    try:
      sizes[name] = _size(name, "train", data_dir)
    except SourceError as error:
      if strict:
        raise
      sizes[name], missing[name] = 0, error
  trained = {name for name, held_out in held.items() if not held_out}
  for name in trained - missing.keys():
    if not sizes[name]:
      raise ConfigError(f"{name} is trained on and has no train split.")
  leaves = _rates(mixture, sizes, trained - missing.keys())
  total = sum(leaf.rate for leaf in leaves.values())
  tasks = []
  for name in sorted(held, key=lambda name: held[name]):
    leaf = leaves.get(name, _Leaf(0.0, mixture.max_examples, mixture.rate_cap))
    tasks.append(
      MixtureTask(
        name=name,
        cluster=cluster_of(name),
        held_out=held[name],
        available=sizes[name],
        max_examples=leaf.max_examples,
        examples=min(sizes[name], leaf.max_examples) if dataset_file(name) else sizes[name],
        cap=leaf.cap,
        rate=leaf.rate,
        share=leaf.rate / total if total else 0.0,
        missing=str(missing.get(name, "")),
        fetchable=isinstance(missing.get(name), NetworkError),
      )
    )
  return tasks


def describe(
  mixture: Mixture | str, data_dir: Path | str, draws: int = 0, strict: bool = False
) -> list[TaskDescription]:
  """What a run of so many draws will see of each dataset, those held out last; see `mixture_tasks`."""
  rows = []
  for task in mixture_tasks(mixture, data_dir, strict):
    text = registered_texts().get(task.name)
    specs = specs_of(task.name)
    templates = [template for spec in specs for template in spec.templates if not text]
    rows.append(
      TaskDescription(
        task=task,
        passes=draws * task.share / task.examples if task.examples else 0.0,
        templates=(text.objective.name,)
        if text
        else tuple(template.name for template in templates if not template.unseen),
        unseen=tuple(template.name for template in templates if template.unseen),
        licence="; ".join(dict.fromkeys(spec.licence for spec in specs)),
        source="; ".join(dict.fromkeys(in_words(spec.source) for spec in specs)),
      )
    )
  return rows


@dataclass(frozen=True)
class _Leaf:
  """A dataset's rate, and the settings of the mixture that it stands in."""

  rate: float
  max_examples: int
  cap: int


def _rates(mixture: Mixture, sizes: Mapping[str, int], trained: set[str]) -> dict[str, _Leaf]:
  """The rates of the datasets below a mixture; one that is reached twice has the sum.

  The fixed share of a member of which nothing is trained on goes to the others, in proportion.
  """
  free: dict[str, dict[str, _Leaf]] = {}
  fixed: dict[str, tuple[float, dict[str, _Leaf]]] = {}
  for member, weight in mixture.datasets.items():
    multiplier, share = multiplier_and_share(mixture.name, member, weight)
    leaves: dict[str, _Leaf] = {}
    if is_mixture(member):
      leaves = _rates(get_mixture(member), sizes, trained)
    elif member in trained:
      rate = mixture.rate(sizes[member], _templates(member))
      leaves = {member: _Leaf(rate, mixture.max_examples, mixture.rate_cap)}
    if share is None:
      free[member] = _scaled(leaves, multiplier)
    else:
      fixed[member] = (share, leaves)
  total = _total(free)
  rest = 1.0 - sum(share for share, _ in fixed.values())
  if fixed and (rest <= 0 if free else abs(rest) > 1e-9):
    others = f"leave nothing for {', '.join(free)}" if free else "do not make a whole"
    raise ConfigError(
      f"the mixture {mixture.name!r}: the fixed shares add up to {1 - rest:.0%} and {others}."
    )
  # A fixed share is turned into a rate, measured by what the others have in all.
  unit = total / rest if total else 1.0
  groups = list(free.values())
  groups += [
    _scaled(leaves, share * unit / _total({member: leaves}))
    for member, (share, leaves) in fixed.items()
    if leaves
  ]
  return _merged(groups)


def _scaled(leaves: Mapping[str, _Leaf], factor: float) -> dict[str, _Leaf]:
  return {
    name: _Leaf(leaf.rate * factor, leaf.max_examples, leaf.cap) for name, leaf in leaves.items()
  }


def _total(groups: Mapping[str, Mapping[str, _Leaf]]) -> float:
  return sum(leaf.rate for leaves in groups.values() for leaf in leaves.values())


def _merged(groups: Iterable[Mapping[str, _Leaf]]) -> dict[str, _Leaf]:
  merged: dict[str, _Leaf] = {}
  for leaves in groups:
    for name, leaf in leaves.items():
      other = merged.get(name, _Leaf(0.0, 0, 0))
      merged[name] = _Leaf(
        leaf.rate + other.rate,
        max(leaf.max_examples, other.max_examples),
        max(leaf.cap, other.cap),
      )
  return merged


def _size(name: str, split: str, data_dir: Path | str) -> int:
  return sum(load_records(spec, data_dir).counts.kept.get(split, 0) for spec in specs_of(name))


def _templates(name: str) -> int:
  """How many templates training draws from; 1 where there is none, as for a raw text."""
  return 1 if name in registered_texts() else len(dataset_spec(name).training_templates()) or 1


def _splits(name: str) -> list[str]:
  return [split for spec in specs_of(name) for split in spec.splits]


def specs_of(name: str) -> list[DatasetSpec]:
  """What a dataset or a text is made of."""
  return [dataset_spec(dataset) for dataset in datasets_of(name)]
