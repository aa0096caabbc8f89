"""Packing: which examples share a row, so that little of it is padding.

First-fit-decreasing: the examples of a window, largest first, each into the first row that still has
room for it in every dimension (a row of an encoder-decoder has two: inputs and targets).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from flan_jax.errors import ConfigError

_COMPACT_EVERY = 128


def pack(
  lengths: Sequence[Sequence[int]] | Int[np.ndarray, "examples dimensions"],
  capacities: Sequence[int],
) -> list[list[int]]:
  """Distributes examples over as few rows as first-fit-decreasing finds.

  Args:
    lengths: the size of each example in each dimension.
    capacities: what a row holds in each dimension.

  Returns:
    For each row the indices of its examples. Every example stands in exactly one row.

  Raises:
    ConfigError: a capacity is not positive, or an example is larger than a row.
  """
  sizes = np.asarray(lengths, np.int64).reshape(-1, len(capacities))
  capacity = np.asarray(capacities, np.int64)
  _check(sizes, capacity)
  order = np.argsort(-_bulk(sizes, capacity), kind="stable")
  sizes = sizes[order].astype(np.int32)
  # The smallest example still to come, per dimension: a row with less room than that is full.
  smallest = np.minimum.accumulate(sizes[::-1], axis=0)[::-1]
  rows: list[list[int]] = []
  open_rows = _OpenRows(capacity, len(sizes))
  indices = order.tolist()
  for i, size in enumerate(sizes.tolist()):
    if i % _COMPACT_EVERY == 0:
      open_rows.drop_full(smallest[i])
    row = open_rows.take(size, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(indices[i])
  return rows


def lower_bound(lengths: Int[np.ndarray, "examples dimensions"], capacities: Sequence[int]) -> int:
  """The least number of rows that any packing needs: the fullest dimension's volume."""
  volumes = np.asarray(lengths, np.int64).reshape(-1, len(capacities)).sum(axis=0)
  return int(np.ceil(volumes / np.asarray(capacities)).max(initial=0))


class _OpenRows:
  """The room left in the rows that are not full, in the order in which they were opened."""

  def __init__(self, capacity: Int[np.ndarray, "dimensions"], most: int):
    self._capacity = capacity.tolist()
    self._room = [np.empty(most, np.int32) for _ in self._capacity]
    self._number = np.empty(most, np.int64)
    self._count = 0
    self._fits = np.empty(most, bool)
    self._fits_too = np.empty(most, bool)

  def take(self, size: list[int], next_row: int) -> int:
    """The number of the first row with room for `size`, which then has less; `next_row` if none has."""
    n = self._count
    if n:
      fits = self._fits[:n]
      np.greater_equal(self._room[0][:n], size[0], out=fits)
      for room, needed in zip(self._room[1:], size[1:], strict=True):
        np.greater_equal(room[:n], needed, out=self._fits_too[:n])
        np.logical_and(fits, self._fits_too[:n], out=fits)
      first = int(fits.argmax())
      if fits[first]:
        for room, needed in zip(self._room, size, strict=True):
          room[first] -= needed
        return int(self._number[first])
    for room, whole, needed in zip(self._room, self._capacity, size, strict=True):
      room[n] = whole - needed
    self._number[n] = next_row
    self._count = n + 1
    return next_row

  def drop_full(self, smallest: Int[np.ndarray, "dimensions"]) -> None:
    """Forgets the rows that not even the smallest example to come fits into."""
    n = self._count
    keep = np.ones(n, bool)
    for room, least in zip(self._room, smallest.tolist(), strict=True):
      keep &= room[:n] >= least
    kept = int(keep.sum())
    if kept < n:
      for room in self._room:
        room[:kept] = room[:n][keep]
      self._number[:kept] = self._number[:n][keep]
      self._count = kept


def _bulk(
  sizes: Int[np.ndarray, "examples dimensions"], capacity: Int[np.ndarray, "dimensions"]
) -> np.ndarray:
  """How hard an example is to place: its share of a row, the scarce dimensions weighing more."""
  share = sizes / capacity
  demand = share.sum(axis=0)
  weight = demand / max(demand.max(initial=0.0), 1e-9)
  return share @ weight


def _check(
  sizes: Int[np.ndarray, "examples dimensions"], capacity: Int[np.ndarray, "dimensions"]
) -> None:
  if (capacity <= 0).any():
    raise ConfigError(
      f"a row cannot hold {capacity.tolist()} tokens: every length must be positive."
    )
  too_long = np.flatnonzero((sizes > capacity).any(axis=1))
  if too_long.size:
    worst = int(too_long[0])
    raise ConfigError(
      f"example {worst} has {sizes[worst].tolist()} tokens and a row holds {capacity.tolist()}."
    )
