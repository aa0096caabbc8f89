"""Which records share what with those that are evaluated: found by hashes, confirmed in the texts.

`compared.py` says what counts as shared. Hashes are of 64 bits. What they find is looked up in both records, so
that nothing is told that is not so; that something is missed takes two texts with one hash.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt16, UInt32, UInt64

from flan_jax.data.compared import LONGEST, SHORTEST, Compared, Split

Kind = Literal["record", "field", "ngram"]

_PROBES: tuple[tuple[Kind, int], ...] = (
  ("record", 0),
  ("field", 0),
  *(("ngram", size) for size in range(SHORTEST, LONGEST + 1)),
)
_BATCH = 512
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_LETTERS = np.random.default_rng(0).integers(1 << 64, size=256, dtype=np.uint64)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_BITS_PER_HASH = 32
_KEPT_RECORDS = 4096


class Match(NamedTuple):
  """Two records that share something.

  Attributes:
    train: index of the training record.
    evaluated: place of the evaluated record among all that are indexed.
    field: of the evaluated record; "" where the whole is shared.
  """

  kind: Kind
  train: int
  evaluated: int
  field: str


class EvaluatedRecords:
  """The records of some splits, indexed by all that training records could share with them.

  Memory does not depend on how much is looked up: about 30 bytes for each n-gram of the evaluated records, and
  twice that while the index is made.

  Args:
    splits: what is evaluated.
    told: called with the number of records that were added.
  """

  def __init__(self, splits: Sequence[Split], told: Callable[[int], object] = lambda count: None):
    self.splits = tuple(splits)
    self.offsets = np.cumsum([0, *(split.size for split in splits)])
    self._split_of = np.repeat(np.arange(len(splits), dtype=np.uint16), np.diff(self.offsets))
    self._indices = self._built(told)
    self._compared = lru_cache(maxsize=_KEPT_RECORDS)(self._read)
    self._scanned: tuple[str, str] | None = None

  def __len__(self) -> int:
    return int(self.offsets[-1])

  def place(self, record: int) -> tuple[int, int]:
    """Which split an evaluated record is of, and its index there."""
    split = int(self._split_of[record])
    return split, record - int(self.offsets[split])

  def matches(self, split: Split, start: int, stop: int) -> Iterator[Match]:
    """What the training records from `start` to before `stop` share with evaluated ones, as their texts confirm.

    Each record has a match of each kind with each split that it shares such with, the first of them always
    the same. Of evaluated records those come that no earlier call for this split has told of.
    """
    if (split.spec.name, split.name) != self._scanned:
      self._scanned = split.spec.name, split.name
      self._done = {p: np.zeros(len(index), bool) for p, index in self._indices.items()}
      self._told_of = np.zeros(len(self), bool)
    for begin in range(start, stop, _BATCH):
      batch = _Batch(split, begin, min(begin + _BATCH, stop))
      sharing: set[tuple[int, int]] = set()
      for probe in self._indices:
        yield from self._probed(batch, probe, sharing)

  def _probed(
    self, batch: "_Batch", probe: tuple[Kind, int], sharing: set[tuple[int, int]]
  ) -> Iterator[Match]:
    """The matches of one kind; `sharing` is which records share an n-gram with which splits."""
    (kind, size), index, done = probe, self._indices[probe], self._done[probe]
    keys = batch.keys(kind, size)
    places, entries = index.find(keys.hashes)
    for place, entry in zip(places.tolist(), entries.tolist(), strict=True):
      members = index.members[index.starts[entry] : index.starts[entry + 1]]
      record = int(keys.records[place])
      pair = record, int(self._split_of[members[0]])
      if done[entry]:
        if pair in sharing and kind == "ngram":
          continue
        members = members[:1]  # the others were told of
      done[entry] = True
      text = keys.text(place)
      for other in members.tolist():
        if kind == "ngram" and pair in sharing and self._told_of[other]:
          continue
        name = self._confirmed(kind, size, text, other)
        if name is not None:
          yield Match(kind, batch.start + record, other, name)
          if kind == "ngram":
            sharing.add(pair)
            self._told_of[other] = True

  def _confirmed(self, kind: Kind, size: int, text: str, record: int) -> str | None:
    """The field of an evaluated record that has this text, "" for the whole; None where hashes deceived."""
    values, asked = self._compared(record)
    if kind == "record":
      return "" if asked == text else None
    for value in values:
      if kind == "field":
        found = value.text == text
      else:
        found = min(value.length, LONGEST) == size and f" {text} " in f" {value.words} "
      if found:
        return value.field
    return None

  def _read(self, record: int) -> Compared:
    split, index = self.place(record)
    return self.splits[split].compared(index)

  def _built(self, told: Callable[[int], object]) -> dict[tuple[Kind, int], "_Index"]:
    hashes: dict[tuple[Kind, int], list[np.ndarray]] = {probe: [] for probe in _PROBES}
    records: dict[tuple[Kind, int], list[np.ndarray]] = {probe: [] for probe in _PROBES}
    for split, offset in zip(self.splits, self.offsets.tolist(), strict=False):
      for start in range(0, split.size, _BATCH):
        batch = _Batch(split, start, min(start + _BATCH, split.size))
        for kind, size in _PROBES:
          keys = batch.keys(kind, size, evaluated=True)
          hashes[kind, size].append(keys.hashes)
          records[kind, size].append((keys.records + (offset + start)).astype(np.uint32))
        told(len(batch))
    return {
      probe: _Index(
        np.concatenate(hashes.pop(probe)), np.concatenate(records.pop(probe)), self._split_of
      )
      for probe in _PROBES
      if any(map(len, hashes[probe]))
    }


class _Keys(NamedTuple):
  """Texts that may be shared: their hashes, the records in the batch that they are of, and the texts."""

  hashes: UInt64[np.ndarray, "texts"]
  records: Int[np.ndarray, "texts"]
  text: Callable[[int], str]


class _Batch:
  """Records from `start` to before `stop`, and what they could share."""

  def __init__(self, split: Split, start: int, stop: int):
    self.start = start
    self._records = [split.compared(index) for index in range(start, stop)]
    long = [
      (place, value)
      for place, record in enumerate(self._records)
      for value in record.values
      if value.length >= SHORTEST
    ]
    self._values = [value for _, value in long]
    self._record_of = np.array([place for place, _ in long], np.int64)
    # The words of all values, each word with one space after it.
    self._text = "".join(f"{value.words} " for value in self._values).encode()
    letters = np.frombuffer(self._text, np.uint8)
    self._ends = np.flatnonzero(letters == ord(" "))
    self._starts = np.append(0, self._ends[:-1] + 1)[: len(self._ends)]
    lengths = np.array([value.length for value in self._values], np.int64)
    self._value_of = np.repeat(np.arange(len(lengths)), lengths)
    self._length = lengths[self._value_of]
    self._left = np.cumsum(lengths)[self._value_of] - np.arange(len(self._ends))
    # A polynomial of the letters, modulo 2**64: the hash of any stretch is a difference of two sums.
    powers, inverse = _powers(len(letters).bit_length())
    sums = np.append(np.uint64(0), np.cumsum(_LETTERS[letters] * powers[: len(letters)]))
    self._sums_before, self._sums_after = sums[self._starts], sums[self._ends]
    self._scale = inverse[self._starts]

  def __len__(self) -> int:
    return len(self._records)

  def keys(self, kind: Kind, size: int, evaluated: bool = False) -> _Keys:
    """All of one kind; n-grams of this size, of evaluated records only those that count for their value."""
    if kind == "record":
      asking = [place for place, record in enumerate(self._records) if record.asked]
      texts = [self._records[place].asked for place in asking]
      return _Keys(_hashes(texts), np.array(asking, np.int64), texts.__getitem__)
    if kind == "field":
      telling = [
        (place, value.text)
        for place, record in enumerate(self._records)
        for value in record.values
        if value.tells
      ]
      texts = [text for _, text in telling]
      places = np.array([place for place, _ in telling], np.int64)
      return _Keys(_hashes(texts), places, texts.__getitem__)
    chosen = self._left >= size
    if evaluated and size < LONGEST:
      chosen &= self._length == size
    places = np.flatnonzero(chosen)
    last = places + (size - 1)
    return _Keys(
      (self._sums_after[last] - self._sums_before[places]) * self._scale[places],
      self._record_of[self._value_of[places]],
      lambda i: self._text[self._starts[places[i]] : self._ends[last[i]]].decode(),
    )


class _Index:
  """Sorted hashes, one entry for each split that has it, and the records of each entry."""

  def __init__(
    self,
    hashes: UInt64[np.ndarray, "texts"],
    records: UInt32[np.ndarray, "texts"],
    split_of: UInt16[np.ndarray, "records"],
  ):
    order = np.argsort(hashes, kind="stable")
    hashes, members = hashes[order], records[order]
    del order
    splits = split_of[members]
    new = np.ones(len(hashes), bool)
    new[1:] = hashes[1:] != hashes[:-1]
    first = new.copy()
    first[1:] |= splits[1:] != splits[:-1]
    new[1:] |= members[1:] != members[:-1]
    self.members = members[new]
    self.starts = np.append(np.flatnonzero(first[new]), len(self.members))
    self._hashes = hashes[first]
    # Most hashes have no entry. Two bits of a table, one of which is 0 then, say so without a search.
    bits = max(3, (len(self._hashes) * _BITS_PER_HASH - 1).bit_length())
    self._shift = np.uint64(64 - bits)
    self._table = np.zeros(1 << (bits - 3), np.uint8)
    for mixed in (self._hashes, self._hashes * _MIXER):
      slots = self._slots(mixed)
      np.bitwise_or.at(self._table, slots >> 3, np.uint8(1) << (slots & 7).astype(np.uint8))

  def __len__(self) -> int:
    return len(self._hashes)

  def find(
    self, hashes: UInt64[np.ndarray, "texts"]
  ) -> tuple[Int[np.ndarray, "found"], Int[np.ndarray, "found"]]:
    """Which of the hashes have entries, and which these are."""
    maybe = np.flatnonzero(self._bits(hashes))
    maybe = maybe[np.flatnonzero(self._bits(hashes[maybe] * _MIXER))]
    left = np.searchsorted(self._hashes, hashes[maybe], "left")
    counts = np.searchsorted(self._hashes, hashes[maybe], "right") - left
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(maybe, counts), np.repeat(left, counts) + within

  def _bits(self, hashes: UInt64[np.ndarray, "texts"]) -> UInt8[np.ndarray, "texts"]:
    slots = self._slots(hashes)
    return self._table[slots >> 3] >> (slots & 7).astype(np.uint8) & 1

  def _slots(self, hashes: UInt64[np.ndarray, "texts"]) -> Int[np.ndarray, "texts"]:
    return (hashes >> self._shift).astype(np.int64)


def _hashes(texts: Sequence[str]) -> UInt64[np.ndarray, "texts"]:
  """Python's own hashes of texts: the same in forked processes, others in the next run."""
  return np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)


@lru_cache(maxsize=4)
def _powers(bits: int) -> tuple[UInt64[np.ndarray, "powers"], UInt64[np.ndarray, "powers"]]:
  """The first 2**bits powers of the polynomial's base, and of its inverse."""
  bases = (_BASE, pow(_BASE, -1, 1 << 64))
  first, second = (np.cumprod(np.full(1 << bits, base, np.uint64)) for base in bases)
  return first, second
