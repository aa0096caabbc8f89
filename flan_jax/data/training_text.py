"""What a mixture trains on, in words: for a vocabulary to be made from."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from flan_jax.data.draws import DrawStream
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import Mixture
from flan_jax.data.rates import MixtureTask, specs_of, training_tasks
from flan_jax.data.records import load_records
from flan_jax.data.rendering import DatasetDraws
from flan_jax.data.texts import documents, registered_texts
from flan_jax.errors import RecordError

_AT_ONCE = 1024


def training_text(
  mixture: Mixture | str, data_dir: Path | str, seed: int, characters: int
) -> Iterator[str]:
  """The first draws of a mixture's stream as texts, so that each dataset has its share of them.

  A dataset says its records in the words of its training templates, each input and each target a text of
  its own; a raw text says whole documents. Only training splits are read, and nothing of a held-out cluster.

  Args:
    characters: the stream ends with the draw that reaches so many, or before, once every record of the
      mixture was drawn.

  Raises:
    ConfigError: the mixture has nothing to train on.
    SourceError: records of it cannot be had.
  """
  tasks = training_tasks(mixture, data_dir, strict=True)
  sayings = [_sayings(task, data_dir, seed) for task in tasks]
  sizes = [saying.size for saying in sayings]
  stream = DrawStream([task.name for task in tasks], [task.share for task in tasks], sizes, seed)
  missing = np.array(sizes)
  said = start = 0
  while said < characters and (missing > 0).any():
    draws = stream.draws(start, _AT_ONCE)
    start += _AT_ONCE
    for task, example, epoch in zip(
      draws.task.tolist(), draws.example.tolist(), draws.epoch.tolist(), strict=True
    ):
      for text in sayings[task].say(example, epoch):
        said += len(text)
        yield text
      missing[task] -= 1
      if said >= characters or not (missing > 0).any():
        return


def training_text_fingerprint(mixture: Mixture | str, data_dir: Path | str) -> str:
  """SHA-256 of what decides the text of a mixture beside seed and length: members, shares, templates, records.

  A name alone does not tell: mixtures and dataset files are changed, and two projects may call theirs alike.
  """
  content = []
  for task in training_tasks(mixture, data_dir, strict=True):
    is_text = task.name in registered_texts()
    said = [
      (
        spec.text and spec.text.words if is_text else spec.fingerprint,
        load_records(spec, data_dir).fingerprint,
      )
      for spec in specs_of(task.name)
    ]
    content.append((task.name, task.examples, task.share, said))
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Sayings(Protocol):
  """The members of a mixture, by number of the example."""

  size: int

  def say(self, example: int, epoch: int) -> Sequence[str]: ...


class _Templates:
  """The records of a dataset, each in the words of a template."""

  def __init__(self, task: MixtureTask, data_dir: Path | str, seed: int):
    spec = dataset_spec(task.name)
    records = load_records(spec, data_dir)["train"]
    self.size = task.examples
    # Every epoch draws other words; exemplars would only say the same again.
    self._draws = DatasetDraws(spec, records, self.size, seed, renderings=1 << 30, shots=0)

  def say(self, example: int, epoch: int) -> Sequence[str]:
    try:
      turns = self._draws.render(example, epoch).turns
    except RecordError:  # the record gives an empty text; training drops it too
      return ()
    return [text for turn in turns for text in (turn.input, turn.target)]


class _Documents:
  """The documents of a raw text."""

  def __init__(self, task: MixtureTask, data_dir: Path | str):
    self._documents = list(documents(registered_texts()[task.name], "train", data_dir))
    self.size = len(self._documents)

  def say(self, example: int, epoch: int) -> Sequence[str]:
    del epoch
    return (self._documents[example],)


def _sayings(task: MixtureTask, data_dir: Path | str, seed: int) -> _Sayings:
  if task.name in registered_texts():
    return _Documents(task, data_dir)
  return _Templates(task, data_dir, seed)
