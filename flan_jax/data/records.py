"""Records ready to be put into words: derived, deduplicated, split by group, memory-mapped.

The contract of a split: records whose fields have the same normalised text count once; records of
one group (a passage, a contract) never stand in two splits; a training record whose group occurs
in an evaluation split is dropped; of a kind that `at_most` counts only so many are kept. Where the
second and third rule leave nothing of a split, the splits hold the same data, as those that TFDS mocks:
they are left so, and a warning says it. Where a dataset file says `balance`, the labels are evened out.
Whatever is dropped is counted.
"""

import json
import logging
import mmap
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b, sha256
from pathlib import Path
from typing import IO, Any, NamedTuple, overload

import numpy as np
from jaxtyping import Int64

from flan_jax.data.atomic import build_once
from flan_jax.data.sources import Source, open_source
from flan_jax.errors import ConfigError, RecordError, SourceError, StorageError, UnknownName
from flan_jax.prompting import DatasetSpec

RECORDS_VERSION = 1
"""Part of every fingerprint; raised whenever the same source comes to give other records."""

_LOG = logging.getLogger(__name__)


@dataclass
class RecordCounts:
  """What became of the raw records.

  Attributes:
    raw: as the source yields them.
    dropped: by the derive function.
    blank: without an answer.
    duplicates: equal to another record in the normalised text of the `unique` fields.
    overlapping: training records whose group occurs in an evaluation split.
    shared: records of splits that were kept although each of theirs stands in other splits too.
    capped: more of a kind than `at_most` allows in a split.
    unbalanced: more than the rarest label has among records that are alike in the `balance` fields.
    kept: by split.
  """

  raw: int = 0
  dropped: int = 0
  blank: int = 0
  duplicates: int = 0
  overlapping: int = 0
  shared: int = 0
  capped: int = 0
  unbalanced: int = 0
  kept: dict[str, int] = field(default_factory=dict)


class Records(Sequence[dict[str, Any]]):
  """One split: a sequence of records on disk, each a dict of texts and lists of texts.

  The order is that of a hash of each record, so that the first n are a sample drawn without regard
  to the order of the source, and the same sample every time. Can be pickled and shared by forked
  processes.
  """

  def __init__(self, directory: Path, split: str):
    self._directory, self._split = directory, split
    self._open()

  def __len__(self) -> int:
    return len(self._spans)

  @overload
  def __getitem__(self, index: int) -> dict[str, Any]: ...

  @overload
  def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

  def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    start, end = self._spans[index]
    return json.loads(str(self._text[start:end], "utf-8"))

  def group(self, index: int) -> int:
    """A number that records of one group share, and with any likelihood no others."""
    return int(self._groups[index])

  def digest(self) -> str:
    """SHA-256 of all the records, in the order in which they were read."""
    return sha256(self._text).hexdigest()

  def __reduce__(self) -> tuple[Any, ...]:
    return Records, (self._directory, self._split)

  def _open(self) -> None:
    with (self._directory / f"{self._split}.jsonl").open("rb") as file:
      self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    self._spans = np.load(self._directory / f"{self._split}.spans.npy", mmap_mode="r")
    if len(self._spans) and int(self._spans.max()) > len(self._text):
      raise ValueError(f"{self._split}.jsonl has {len(self._text)} bytes, not {self._spans.max()}")
    self._groups = np.load(self._directory / f"{self._split}.groups.npy", mmap_mode="r")


class RecordSplits(Mapping[str, Records]):
  """The splits of one dataset, and the counts of what was kept and dropped."""

  def __init__(self, directory: Path):
    self.directory = directory
    try:
      about = json.loads((directory / "records.json").read_text())
      self.dataset: str = about["dataset"]
      self.fingerprint: str = about["fingerprint"]
      self.counts = RecordCounts(**about["counts"])
      self._splits = {split: Records(directory, split) for split in self.counts.kept}
    except (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError) as error:
      raise StorageError(
        f"the records in {directory} are damaged ({error}): delete that folder, and they are built again."
      ) from error

  def __getitem__(self, split: str) -> Records:
    """The records of a split.

    Raises:
      UnknownName: the dataset has no such split.
    """
    if split not in self._splits:
      raise UnknownName(
        "split", split, self._splits, f"They are those of the dataset {self.dataset}."
      )
    return self._splits[split]

  def __contains__(self, split: object) -> bool:
    return split in self._splits

  def __iter__(self) -> Iterator[str]:
    return iter(self._splits)

  def __len__(self) -> int:
    return len(self._splits)


def load_records(spec: DatasetSpec, data_dir: Path | str) -> RecordSplits:
  """The records of a dataset, built on the first call and mapped from the disk afterwards.

  Only building fetches archives or imports TensorFlow. The folder is
  `data_dir/records/<name>-<fingerprint>`; another source, split or derive function is another
  folder, other templates are not.

  Raises:
    RecordError: a record cannot be read, lacks a field, or has an answer that is no choice; a
      split is empty.
    SourceError: the records cannot be had.
  """
  source, fingerprint, directory = _place_of(spec, Path(data_dir))

  def build(directory: Path) -> None:
    _LOG.info("reading the records of %s", spec.name)
    counts = _Builder(spec, source, directory).build()
    about = {"dataset": spec.name, "fingerprint": fingerprint, "counts": asdict(counts)}
    (directory / "records.json").write_text(json.dumps(about, indent=2) + "\n")

  return RecordSplits(build_once(directory, build))


def are_built(spec: DatasetSpec, data_dir: Path | str) -> bool:
  """Whether `load_records` finds what it asks for on the disk."""
  return _place_of(spec, Path(data_dir))[-1].is_dir()


def _place_of(spec: DatasetSpec, data_dir: Path) -> tuple[Source, str, Path]:
  """Where records come from, the fingerprint of what they will be, and where they are kept."""
  try:
    source = open_source(spec.source, spec.folder, data_dir / "archives")
    fingerprint = _fingerprint(spec, source)
  except (ConfigError, UnknownName) as error:
    raise ConfigError(f"{spec.path}: {error}") from error
  return source, fingerprint, data_dir / "records" / f"{spec.name}-{fingerprint[:16]}"


def normalise(text: str) -> str:
  """The text by which two records count as the same: compatibility forms, case and spacing removed."""
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_key(record: Mapping[str, Any], names: Sequence[str]) -> bytes:
  """A digest of the normalised text of some fields, of all for (), by which records count as equal in them."""
  texts = [_normalised(record[name]) for name in names or sorted(record)]
  return blake2b(json.dumps(texts, default=str).encode(), digest_size=16).digest()


def _normalised(value: Any) -> Any:
  """The value with every text in it normalised."""
  if isinstance(value, str):
    return normalise(value)
  if isinstance(value, list | tuple):
    return list(map(_normalised, value))
  if isinstance(value, Mapping):
    return {key: _normalised(item) for key, item in value.items()}
  return value


class _Builder:
  """Reads a source once and writes its splits."""

  def __init__(self, spec: DatasetSpec, source: Source, directory: Path):
    self._spec, self._source = spec, source
    self._counts = RecordCounts()
    self._seen: set[bytes] = set()
    self._held_groups: set[int] = set()
    self._added = Counter[str]()
    self._directory = directory
    self._writers: dict[str, _SplitWriter] = {}
    self._waiting: dict[tuple[str, bytes], dict[str, list[_Place]]] = {}

  def build(self) -> RecordCounts:
    with ExitStack() as files:
      for split in self._spec.splits:
        file = files.enter_context((self._directory / f"{split}.jsonl").open("wb"))
        self._writers[split] = _SplitWriter(file, *self._spec.at_most.values())
      for part, split_of in self._plan():
        before = replace(self._counts)
        self._read(part, split_of)
        if self._repeats(split_of(0), before):
          self._counts, seen, held = before, self._seen, self._held_groups
          self._seen, self._held_groups = set(), set()
          self._read(part, split_of)
          self._seen |= seen
          self._held_groups |= held
          self._counts.shared += self._added[split_of(0)]
      self._write_balanced()
    for split, writer in self._writers.items():
      self._counts.kept[split] = writer.save(self._directory, split)
      self._counts.capped += writer.written - self._counts.kept[split]
    empty = [split for split, kept in self._counts.kept.items() if not kept]
    if empty:
      counts = self._counts
      # What others publish may change: a mixture goes on without it, as without what is gone.
      kind = SourceError if "tfds" in self._spec.source else RecordError
      raise kind(
        f"dataset {self._spec.name!r}: the split {empty[0]!r} is empty. Of {counts.raw} records, "
        f"{counts.dropped} were dropped by the derive function, {counts.blank} have no answer, "
        f"{counts.duplicates} are duplicates, {counts.overlapping} share a group with an "
        f"evaluation split, {counts.unbalanced} tip the balance. Give the dataset more records or "
        f"change `splits:` in {self._spec.path}."
      )
    return self._counts

  def _plan(self) -> list[tuple[str, Callable[[int], str]]]:
    """The parts to read in order, each with what tells the split of a group."""
    splits = self._spec.splits
    if any(isinstance(value, float) for value in splits.values()):
      split_of = _by_fraction({split: float(value) for split, value in splits.items()})
      return [(part, split_of) for part in self._source.parts]
    # Evaluation splits first: what they hold is then kept out of training.
    order = sorted(splits, key=lambda split: split == "train")
    return [(str(splits[split]), _always(split)) for split in order]

  def _read(self, part: str, split_of: Callable[[int], str]) -> None:
    for number, raw in enumerate(self._source.records(part), start=1):
      self._add(raw, part, number, split_of)

  def _repeats(self, split: str, before: RecordCounts) -> bool:
    """Whether a split that was just read holds nothing but records of the splits before it."""
    counts = self._counts
    kept_out = counts.duplicates + counts.overlapping - before.duplicates - before.overlapping
    if self._added[split] or not kept_out or isinstance(self._spec.splits[split], float):
      return False
    _LOG.warning(
      "%s: all records of %s stand in other splits too, and are kept: a score after training on them means nothing.",
      self._spec.name,
      split,
    )
    return True

  def _add(
    self, raw: dict[str, Any], part: str, number: int, split_of: Callable[[int], str]
  ) -> None:
    counts, spec = self._counts, self._spec
    counts.raw += 1
    try:
      record = spec.derive_record(raw)
    except RecordError as error:
      place = getattr(raw, "place", "") or f"{spec.path}: record {number} of part {part!r}"
      raise RecordError(f"{place}: {error}") from error
    if record is None:
      counts.dropped += 1
      return
    if spec.answer is not None and not record[spec.answer.field]:
      counts.blank += 1
      return
    unique = content_key(record, spec.unique)
    if unique in self._seen:
      counts.duplicates += 1
      return
    group = _number(content_key(record, spec.group) if spec.group else unique, b"group")
    split = split_of(group)
    if split == "train" and group in self._held_groups:
      counts.overlapping += 1
      return
    self._seen.add(unique)
    self._added[split] += 1
    if split != "train":
      self._held_groups.add(group)
    kind = _number(content_key(record, list(spec.at_most)), b"kind") if spec.at_most else 0
    place = _Place(record, _number(unique, b"order"), group, kind)
    if spec.balance and spec.answer is not None:
      alike = self._waiting.setdefault((split, content_key(record, spec.balance)), {})
      alike.setdefault(record[spec.answer.field], []).append(place)
    else:
      self._writers[split].write(place)

  def _write_balanced(self) -> None:
    """Of the records that are alike, as many with each label as the rarest label has."""
    labels = (self._spec.answer.labels or ()) if self._spec.answer else ()
    for (split, _), alike in self._waiting.items():
      count = min(len(alike.get(label, ())) for label in labels)
      for places in alike.values():
        self._counts.unbalanced += len(places) - count
        for place in sorted(places, key=lambda place: place.order)[:count]:
          self._writers[split].write(place)


class _Place(NamedTuple):
  """A record, what it is ordered by, its group, and the kind that `at_most` counts it under."""

  record: Mapping[str, Any]
  order: int
  group: int
  kind: int


class _SplitWriter:
  """Writes one split: the records in the order they come, and their places in hashed order.

  Args:
    most: so many of each kind are kept, the first in that order; None for all.
  """

  def __init__(self, file: IO[bytes], most: int | None = None):
    self._file, self._most = file, most
    self._ends, self._order, self._groups = array("q", [0]), array("Q"), array("q")
    self._kinds = array("q")

  @property
  def written(self) -> int:
    """How many records came."""
    return len(self._order)

  def write(self, place: _Place) -> None:
    text = json.dumps(place.record, ensure_ascii=False, default=str)  # a date as it is written
    line = text.encode("utf-8", "replace") + b"\n"
    self._file.write(line)
    self._ends.append(self._ends[-1] + len(line))
    self._order.append(place.order % (1 << 64))
    self._groups.append(place.group)
    if self._most is not None:
      self._kinds.append(place.kind)

  def save(self, directory: Path, split: str) -> int:
    order = np.argsort(np.array(self._order, np.uint64), kind="stable")
    if self._most is not None:
      order = order[_ranks(np.array(self._kinds, np.int64)[order]) < self._most]
    ends = np.array(self._ends, np.int64)
    np.save(directory / f"{split}.spans.npy", np.stack([ends[:-1], ends[1:]], axis=1)[order])
    np.save(directory / f"{split}.groups.npy", np.array(self._groups, np.int64)[order])
    return len(order)


def _ranks(kinds: Int64[np.ndarray, "records"]) -> Int64[np.ndarray, "records"]:
  """How many of the same kind stand before each."""
  order = np.argsort(kinds, kind="stable")
  ordered, ranks = kinds[order], np.empty(len(kinds), np.int64)
  ranks[order] = np.arange(len(kinds)) - np.searchsorted(ordered, ordered)
  return ranks


def _by_fraction(fractions: Mapping[str, float]) -> Callable[[int], str]:
  """The split of a group: the hashes, spread evenly over 64 bits, are cut at the fractions."""
  names = list(fractions)
  cuts = np.cumsum(list(fractions.values()))[:-1]

  def split_of(group: int) -> str:
    place = (group % (1 << 64)) / (1 << 64)
    return names[int(np.searchsorted(cuts, place, side="right"))]

  return split_of


def _always(split: str) -> Callable[[int], str]:
  return lambda group: split


def _number(key: bytes, purpose: bytes) -> int:
  """A signed 64-bit number from a digest; numbers for different purposes have nothing in common."""
  digest = blake2b(key, digest_size=8, person=purpose).digest()
  return int.from_bytes(digest, "little", signed=True)


def _fingerprint(spec: DatasetSpec, source: Source) -> str:
  text = f"{RECORDS_VERSION} {spec.records_fingerprint} {source.fingerprint()}"
  return sha256(text.encode()).hexdigest()
