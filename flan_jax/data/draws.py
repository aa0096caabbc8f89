"""The stream of draws: which dataset, which example, which epoch stands at place i.

A pure function of the shares, the sizes and the seed: no state, no library's random numbers, the
same on every machine, and any stretch of it can be computed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from flan_jax.prompting import Draw

# 2**64 divided by the golden ratio: its multiples are spread over the circle as evenly as can be.
_GOLDEN = 0x9E3779B97F4A7C15
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Draws:
  """A stretch of the stream, one entry a draw.

  Attributes:
    task: index of the dataset.
    example: index of the example within the dataset's training records.
    epoch: how often that dataset was gone through before.
  """

  task: Int[np.ndarray, "draws"]
  example: Int[np.ndarray, "draws"]
  epoch: Int[np.ndarray, "draws"]


class DrawStream:
  """Datasets in proportion to their shares, each gone through in a new order every epoch.

  The dataset of draw i is where the i-th multiple of the golden ratio falls on the unit interval cut
  by the shares, so that every stretch of the stream, not only the whole, has nearly the right
  proportions. The j-th draw of a dataset of N examples is the (j mod N)-th of a seeded permutation
  made for epoch j // N.

  Args:
    names: of the datasets.
    shares: how often each is drawn; they are scaled to a sum of 1.
    sizes: examples of each.
    seed: of the run.
    shuffle: without, the examples of a dataset come in their own order, pass after pass.
  """

  def __init__(
    self,
    names: Sequence[str],
    shares: Sequence[float],
    sizes: Sequence[int],
    seed: int,
    shuffle: bool = True,
  ):
    self._names, self._sizes, self._seed = tuple(names), np.asarray(sizes, np.int64), seed
    self._shuffle = shuffle
    total = float(sum(shares))
    ends = [int(sum(shares[: i + 1]) / total * 2.0**64) for i in range(len(shares) - 1)]
    self._ends = np.array([min(end, 2**64 - 1) for end in ends], np.uint64)
    self._offset = Draw(seed, "stream of draws").key
    # Where the last stretch ended, and how many draws of each dataset stand before: going on from
    # there costs nothing, going back starts from 0.
    self._at, self._counts = 0, np.zeros(len(self._names), np.int64)
    self._orders: dict[int, tuple[int, np.ndarray]] = {}

  def draws(self, start: int, count: int) -> Draws:
    """The draws `start` to `start + count - 1`."""
    self._go_to(start)
    task = self._tasks(start, count)
    example = np.empty(count, np.int64)
    epoch = np.empty(count, np.int64)
    for i in np.unique(task).tolist():
      places = np.flatnonzero(task == i)
      nth = self._counts[i] + np.arange(len(places))
      epoch[places] = nth // self._sizes[i]
      for lap in np.unique(epoch[places]).tolist():
        now = places[epoch[places] == lap]
        position = nth[epoch[places] == lap] % self._sizes[i]
        example[now] = self._order(i, lap)[position]
    self._counts = self._counts + np.bincount(task, minlength=len(self._names))
    self._at = start + count
    return Draws(task, example, epoch)

  def _tasks(self, start: int, count: int) -> Int[np.ndarray, "draws"]:
    first = np.uint64((self._offset + start * _GOLDEN) % 2**64)
    points = first + np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN)
    return np.searchsorted(self._ends, points, side="right")

  def _go_to(self, start: int) -> None:
    if start < self._at:
      self._at, self._counts = 0, np.zeros(len(self._names), np.int64)
    while self._at < start:
      count = min(_CHUNK, start - self._at)
      tasks = self._tasks(self._at, count)
      self._counts = self._counts + np.bincount(tasks, minlength=len(self._names))
      self._at += count

  def _order(self, task: int, epoch: int) -> Int[np.ndarray, "examples"]:
    if not self._shuffle:
      return np.arange(self._sizes[task])
    known = self._orders.get(task)
    if known is None or known[0] != epoch:
      key = Draw(self._seed, "order of examples", self._names[task], epoch).key
      order = np.argsort(_hashes(key, int(self._sizes[task])), kind="stable")
      known = self._orders[task] = (epoch, order)
    return known[1]


def _hashes(key: int, count: int) -> UInt64[np.ndarray, "count"]:
  """The first numbers of SplitMix64 (Steele, Lea and Flood, 2014) from a key."""
  mixed = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
  mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return mixed ^ (mixed >> np.uint64(31))
