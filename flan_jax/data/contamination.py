"""Contamination: what the training records of a mixture share with the records that it is judged on.

`compared.py` says what counts as shared. Only the evaluated side is held in memory; the training records pass
by in forked processes, so that a mixture may be as large as it likes.
"""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path

from tqdm import tqdm

from flan_jax.data.compared import Split, common_words
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import Mixture, as_mixture, clusters_held_out
from flan_jax.data.overlaps import EvaluatedRecords, Kind, Match
from flan_jax.data.rates import training_tasks
from flan_jax.data.records import load_records
from flan_jax.data.texts import datasets_of
from flan_jax.data.workers import can_fork, in_child, results_of
from flan_jax.errors import ConfigError, SourceError

RecordId = tuple[str, str, int]
"""Dataset, split and index there."""

SAME_RECORDS = 0.5
"""Datasets of which one has at least this share of its records, or whole fields of them, in the other."""

_CHUNK = 2048
_FIELD = "field "


@dataclass(frozen=True)
class Overlap:
  """How many records of a split share something with the other side; one may do so in several ways.

  Attributes:
    examples: records of the split that were compared.
    record: those whose whole stands on the other side.
    exact: those, and those that share a whole field.
    ngram: those that share an n-gram.
    overlapping: all of these together.
    fields: field of the evaluated side -> records that share the whole of it.
  """

  dataset: str
  split: str
  examples: int
  record: int
  exact: int
  ngram: int
  overlapping: int
  fields: Mapping[str, int]

  @property
  def share(self) -> float:
    """The part of the split that overlaps."""
    return self.overlapping / self.examples if self.examples else 0.0


@dataclass(frozen=True)
class Example:
  """Two records that share something.

  Attributes:
    field: of the evaluated record; "" where the whole is shared.
    words: the longest that the two have in common.
  """

  kind: Kind
  train: RecordId
  evaluated: RecordId
  field: str
  words: str


@dataclass(frozen=True)
class Pair:
  """What a dataset that is trained on and one that is evaluated share, counted on both sides."""

  train: Overlap
  evaluated: Overlap
  examples: tuple[Example, ...]

  @cached_property
  def same_records(self) -> float:
    """The part of the one dataset that stands, as whole records or whole fields, in the other."""
    return max(side.exact / side.examples for side in (self.train, self.evaluated))


@dataclass(frozen=True)
class Contamination:
  """What was found, each list by falling share.

  Attributes:
    train: of each dataset that is trained on, what it shares with all that is evaluated.
    evaluated: of each dataset that is evaluated, what it shares with all that is trained on.
    pairs: of those datasets that share anything.
    missing: dataset -> why it was not compared.
  """

  train: tuple[Overlap, ...]
  evaluated: tuple[Overlap, ...]
  pairs: tuple[Pair, ...]
  missing: Mapping[str, str]


def contamination(
  train: Mixture | str,
  evaluated: Mixture | str | None = None,
  *,
  data_dir: Path | str,
  examples: int = 3,
  workers: int | None = None,
  progress: bool = False,
) -> Contamination:
  """Compares what a mixture trains on with the evaluation splits of another's datasets. Builds missing records.

  Args:
    train: the training records that it uses, and those of its raw texts' datasets.
    evaluated: all its datasets; None for those that `train` holds out.
    examples: kept of each pair of datasets, those first in the training split.
    workers: processes; None for one a processor where they can be forked.
    progress: show bars with the rate.

  Raises:
    ConfigError: nothing is named that could be evaluated.
    UnknownName: a member or a held-out cluster is unknown.
    SourceError: no records can be had on one of the two sides.
  """
  if workers is None:
    workers = len(os.sched_getaffinity(0)) if can_fork() else 1
  look = partial(_available, train, evaluated, data_dir)
  # Reading a TFDS source loads TensorFlow, after which no worker could be forked.
  trained, judged, missing = in_child(look) if workers > 1 else look()
  splits = [_split(name, "train", data_dir, size) for name, size in trained.items()]
  judges = [_split(name, dataset_spec(name).evaluation_split, data_dir) for name in judged]
  with _bar("indexing", sum(split.size for split in judges), progress) as bar:
    index = EvaluatedRecords(judges, bar.update)
  comparison = _Comparison(splits, index, examples)
  with _bar("comparing", sum(split.size for split in splits), progress) as bar:
    comparison.run(workers, bar.update)
  return comparison.result(missing)


def _available(
  train: Mixture | str, evaluated: Mixture | str | None, data_dir: Path | str
) -> tuple[dict[str, int], list[str], dict[str, str]]:
  """How many training records of which dataset are used, which are evaluated, and what cannot be had."""
  held = dict(clusters_held_out(as_mixture(train if evaluated is None else evaluated)))
  judged = [name for name in held if evaluated is not None or held[name]]
  judged = list(dict.fromkeys(name for each in judged for name in datasets_of(each)))
  if not judged:
    raise ConfigError(
      f"the mixture {as_mixture(train).name!r} holds nothing out: say what it is judged on, as --eval MIXTURE."
    )
  trained: dict[str, int] = {}
  missing: dict[str, str] = {}
  for task in training_tasks(train, data_dir):
    if task.missing:
      missing[task.name] = task.missing
      continue
    for name in datasets_of(task.name):
      kept = load_records(dataset_spec(name), data_dir).counts.kept["train"]
      trained[name] = max(min(kept, task.examples), trained.get(name, 0))
  for name in judged:
    spec = dataset_spec(name)
    try:
      if spec.evaluation_split not in load_records(spec, data_dir):
        missing[name] = f"it has no {spec.evaluation_split} split"
    except SourceError as error:
      missing[name] = str(error)
  judged = [name for name in judged if name not in missing]
  if not judged:
    raise SourceError("nothing that is evaluated can be had. " + next(iter(missing.values())))
  return trained, judged, missing


def _split(name: str, split: str, data_dir: Path | str, size: int | None = None) -> Split:
  spec = dataset_spec(name)
  records = load_records(spec, data_dir)[split]
  return Split(spec, split, records, len(records) if size is None else size)


def _bar(title: str, total: int, progress: bool) -> tqdm:
  return tqdm(
    total=total, desc=title, unit="example", unit_scale=True, disable=not progress, file=sys.stderr
  )


class _Comparison:
  """Training splits against an index, chunk by chunk."""

  def __init__(self, splits: Sequence[Split], index: EvaluatedRecords, examples: int):
    self._splits, self._index, self._examples = splits, index, examples
    self._train: list[Overlap] = []
    self._pairs: list[Pair] = []
    self._evaluated = [_Tally() for _ in index.splits]

  def run(self, workers: int, told: Callable[[int], object]) -> None:
    """Compares every training record."""
    with results_of(self._scan, workers) as results:
      for number, split in enumerate(self._splits):
        counts: Counter[str] = Counter()
        sharing = defaultdict[int, _Sharing](_Sharing)
        whole = range(split.size)
        chunks = ((number, whole[start : start + _CHUNK]) for start in whole[::_CHUNK])
        for (_, places), matches in results(chunks):
          counts += self._add(matches, sharing)
          told(len(places))
        self._train.append(_overlap(split, counts))
        self._pairs += [self._pair(split, other, found) for other, found in sharing.items()]

  def result(self, missing: Mapping[str, str]) -> Contamination:
    """What was found in all of it."""
    judged = zip(self._index.splits, self._evaluated, strict=True)
    evaluated = [_overlap(split, tally.counts()) for split, tally in judged]
    by_share = attrgetter("share")
    return Contamination(
      tuple(sorted(self._train, key=by_share, reverse=True)),
      tuple(sorted(evaluated, key=by_share, reverse=True)),
      tuple(sorted(self._pairs, key=attrgetter("evaluated.share", "train.share"), reverse=True)),
      missing,
    )

  def _scan(self, chunk: tuple[int, range]) -> list[Match]:
    number, places = chunk
    return list(self._index.matches(self._splits[number], places.start, places.stop))

  def _add(self, matches: Sequence[Match], sharing: Mapping[int, "_Sharing"]) -> Counter[str]:
    """Adds a chunk to what its dataset shares with each of the splits; counts its records."""
    whole, by_split = _Tally(), defaultdict[int, _Tally](_Tally)
    for match in matches:
      other, index = self._index.place(match.evaluated)
      whole.add(match, match.train)
      by_split[other].add(match, match.train)
      sharing[other].evaluated.add(match, index)
      self._evaluated[other].add(match, index)
      sharing[other].first.setdefault(match.train, match)
    for other, tally in by_split.items():
      found = sharing[other]
      found.train += tally.counts()
      found.first = {i: found.first[i] for i in sorted(found.first)[: self._examples]}
    return whole.counts()

  def _pair(self, split: Split, other: int, found: "_Sharing") -> Pair:
    evaluated = self._index.splits[other]
    return Pair(
      _overlap(split, found.train),
      _overlap(evaluated, found.evaluated.counts()),
      tuple(self._example(split, match) for match in found.first.values()),
    )

  def _example(self, split: Split, match: Match) -> Example:
    number, index = self._index.place(match.evaluated)
    other = self._index.splits[number]
    return Example(
      match.kind,
      (split.spec.name, split.name, match.train),
      (other.spec.name, other.name, index),
      match.field,
      common_words(split.compared(match.train), other.compared(index), match.field),
    )


class _Tally:
  """The records that share something, by the ways in which they do."""

  def __init__(self) -> None:
    self._records = defaultdict[str, set[int]](set)

  def add(self, match: Match, record: int) -> None:
    """Counts a record once for each way."""
    way = _FIELD + match.field if match.kind == "field" else match.kind
    for each in (way, "overlapping") if way == "ngram" else (way, "exact", "overlapping"):
      self._records[each].add(record)

  def counts(self) -> Counter[str]:
    return Counter({way: len(records) for way, records in self._records.items()})


class _Sharing:
  """What a training split shares with an evaluated one, and the first records that do."""

  def __init__(self) -> None:
    self.train, self.evaluated = Counter[str](), _Tally()
    self.first: dict[int, Match] = {}


def _overlap(split: Split, counts: Counter[str]) -> Overlap:
  fields = {w.removeprefix(_FIELD): n for w, n in sorted(counts.items()) if w.startswith(_FIELD)}
  ways = {way: counts[way] for way in ("record", "exact", "ngram", "overlapping")}
  return Overlap(split.spec.name, split.name, split.size, **ways, fields=fields)
