"""What a store holds before it is packed: a stream of examples.

It has no end and is always the same, so that any stretch of it can be made again. Here is that of our own
mixtures; that of SeqIO's tasks is in `flan_jax.data.seqio_stream`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from flan_jax.data.draws import Draws, DrawStream
from flan_jax.data.encode import Dropped, Encoded
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import Mixture
from flan_jax.data.rates import MixtureTask, training_tasks
from flan_jax.data.records import load_records
from flan_jax.data.rendering import DatasetDraws, some_templates
from flan_jax.data.store import StoreConfig, TaskCounts
from flan_jax.data.texts import TextDraws, registered_texts
from flan_jax.data.windows import Drawn
from flan_jax.errors import ConfigError
from flan_jax.prompting import DatasetSpec


class Stretch(NamedTuple):
  """Consecutive examples of a stream, and what became of all that was drawn for them, by task."""

  examples: list[Drawn]
  counts: dict[str, TaskCounts]


class StreamEnds(ConfigError):
  """What was asked for lies behind the end of a stream."""


class Stream(Protocol):
  """Examples in their order."""

  def check(self, rows: int) -> None:
    """Raises ConfigError if the stream cannot fill so many rows, as far as that is known ahead."""

  def stretch(self, start: int, count: int) -> Stretch:
    """What stands at the places `start` to `start + count - 1`.

    Raises:
      StreamEnds: the stream ends before.
    """


class MixtureStream:
  """The draws of our own datasets and texts, put into words and ids. Its stretches may be made in any
  order, by several processes."""

  def __init__(self, config: StoreConfig, tasks: Sequence[dict[str, Any]], data_dir: Path | str):
    self._tasks, self._layout, self._encoder = tasks, config.layout, config.encoder()
    names = [task["name"] for task in tasks]
    sizes = [task["examples"] for task in tasks]
    shares = [task["share"] for task in tasks]
    self._stream = DrawStream(names, shares, sizes, config.seed, config.shuffle)
    self._draws = [_draws(config, task, data_dir) for task in tasks]

  def check(self, rows: int) -> None:
    """A row takes at least one draw."""
    for task in self._tasks:
      if "passes" in task and rows * task["share"] > task["examples"] * task["passes"]:
        raise _text_is_over(task, f", and {rows:,} rows want {int(rows * task['share']):,} of them")

  def stretch(self, start: int, count: int) -> Stretch:
    draws = self._stream.draws(start, count)
    examples: list[Drawn] = []
    counts: dict[str, TaskCounts] = {}
    self._check_passes(draws)
    for number, example, epoch in np.stack([draws.task, draws.example, draws.epoch], 1).tolist():
      task = self._tasks[number]
      if epoch >= task.get("passes", epoch + 1):
        encoded: Encoded | Dropped = Dropped("text_is_over")
      else:
        encoded = self._draws[number].encode(self._encoder, example, epoch)
      counts.setdefault(task["name"], TaskCounts()).count(encoded, self._layout)
      if isinstance(encoded, Encoded):
        templates = task["templates"]
        template = templates.index(encoded.template) if encoded.template else 0
        examples.append(Drawn(encoded, number, example, epoch, template))
    return Stretch(examples, counts)

  def _check_passes(self, draws: Draws) -> None:
    """A window may begin with the last of a text; the next one would have none of it."""
    for number, task in enumerate(self._tasks):
      passes = draws.epoch[draws.task == number]
      if "passes" in task and len(passes) and passes.min() >= task["passes"]:
        raise _text_is_over(task)


def describe_mixture(
  mixture: Mixture,
  config: StoreConfig,
  data_dir: Path | str,
  strict: bool,
  missing: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """What `store.json` says about the datasets and texts, and about those that cannot be had."""
  tasks = training_tasks(mixture, data_dir, config.split, strict, missing)
  found = [described(task, config, data_dir) for task in tasks if not task.missing]
  return found, {task.name: task.missing for task in tasks if task.missing}


def described(task: MixtureTask, config: StoreConfig, data_dir: Path | str) -> dict[str, Any]:
  """What `store.json` says about one dataset or text whose records are there."""
  if text := registered_texts().get(task.name):
    draws = TextDraws(text, config.encoder(), config.seed, data_dir, config.split)
    return {**asdict(task), **draws.description()}
  spec = _spec(task.name, config)
  return {
    **asdict(task),
    "licence": spec.licence,
    "citation": spec.citation,
    "templates": [template.name for template in spec.training_templates()],
    "templates_fingerprint": spec.fingerprint,
    "records_fingerprint": load_records(spec, data_dir).fingerprint,
  }


def _draws(
  config: StoreConfig, task: dict[str, Any], data_dir: Path | str
) -> DatasetDraws | TextDraws:
  """What turns the draws of a dataset or text into ids."""
  if text := registered_texts().get(task["name"]):
    return TextDraws(text, config.encoder(), config.seed, data_dir, config.split)
  spec = _spec(task["name"], config)
  records = load_records(spec, data_dir)[config.split]
  return DatasetDraws(
    spec,
    records,
    task["examples"],
    config.seed,
    config.renderings,
    config.few_shot,
    config.few_shot_share,
    config.template_choice,
  )


def _spec(name: str, config: StoreConfig) -> DatasetSpec:
  """A dataset with the templates that are drawn."""
  spec = dataset_spec(name)
  if config.templates_per_dataset is None and config.options == "any":
    return spec
  return some_templates(spec, config.templates_per_dataset, config.options, config.seed)


def _text_is_over(task: dict[str, Any], wanted: str = "") -> StreamEnds:
  stretches = f"{task['examples']:,} stretches of text for each of {task['passes']} passes"
  return StreamEnds(
    f"the text {task['name']!r} is too short for this run: it has {stretches}{wanted}. Make fewer steps or "
    "smaller batches, add datasets to it, or allow more passes in its register_text."
  )
