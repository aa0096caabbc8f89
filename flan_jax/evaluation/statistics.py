"""Error bars over examples, spread over prompts, and differences that are paired.

One task is a table `[K, N]`: row k holds what template k earned on each of the N examples (1 or 0
for accuracy, a fraction for F1 or ROUGE; NaN where a template is not for an example). Its headline
number is the median over templates of the mean over examples. The examples are the random sample, so
the bootstrap resamples them, and always takes all templates of an example together; before and after
are read at the same examples.
Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, "K N"]
Resampled = Float[np.ndarray, "R K"]

RESAMPLES = 10_000
_BLOCK = 4_000_000  # resampled counts held at once: 32 MB as float64


class Interval(NamedTuple):
  """Lower and upper end of a bootstrap interval."""

  low: float
  high: float


@dataclass(frozen=True)
class Spread:
  """One number per template, and how far the templates lie apart."""

  values: tuple[float, ...]
  median: float
  lower_quartile: float
  upper_quartile: float
  mean: float

  @property
  def interquartile_range(self) -> float:
    return self.upper_quartile - self.lower_quartile


def spread(values: Sequence[float]) -> Spread:
  """Median and quartiles over templates (linear interpolation between order statistics)."""
  if not len(values):
    raise ValueError("a spread needs at least one template")
  lower, median, upper = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75]).tolist()
  return Spread(tuple(float(v) for v in values), median, lower, upper, float(np.mean(values)))


def headline(table: Table) -> float:
  """Median over templates of the mean over examples."""
  return float(np.median(np.nanmean(_checked(table), axis=1)))


def interval(
  table: Table, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
  """Bootstrap interval of `headline(table)`, examples resampled."""
  return macro_interval([table], seed=seed, resamples=resamples, level=level)


def paired_interval(
  before: Table, after: Table, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
  """Bootstrap interval of `headline(after) - headline(before)`.

  Args:
    before, after: `[K, N]` and `[K', N]`. Column n of both is the same example; the templates may
    differ.
  """
  return macro_paired_interval([before], [after], seed=seed, resamples=resamples, level=level)


def macro_average(tables: Sequence[Table]) -> float:
  """Mean over tasks of their headlines: every task counts the same, whatever its size."""
  return float(np.mean([headline(table) for table in tables]))


def macro_interval(
  tables: Sequence[Table], *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
  """Bootstrap interval of `macro_average`; each task resamples its own examples."""
  checked = [_checked(table) for table in tables]
  statistics = [
    _resampled(table, _medians, _generator(seed, task), resamples)
    for task, table in enumerate(checked)
  ]
  return _percentiles(np.mean(statistics, axis=0), level)


def macro_paired_interval(
  before: Sequence[Table],
  after: Sequence[Table],
  *,
  seed: int = 0,
  resamples: int = RESAMPLES,
  level: float = 0.95,
) -> Interval:
  """Bootstrap interval of the macro-average of after minus before.

  Within each task the same resampled examples are read before and after; tasks are resampled
  independently of each other.
  """
  differences = []
  for task, (old, new) in enumerate(zip(before, after, strict=True)):
    old, new = _checked(old), _checked(new)
    if old.shape[1] != new.shape[1]:
      raise ValueError(
        f"a paired interval needs the same examples: {old.shape[1]} before, {new.shape[1]} after"
      )

    def gain(means: Resampled, split: int = len(old)) -> Float[np.ndarray, " R"]:
      return _medians(means[:, split:]) - _medians(means[:, :split])

    both = np.concatenate([old, new])
    differences.append(_resampled(both, gain, _generator(seed, task), resamples))
  return _percentiles(np.mean(differences, axis=0), level)


def _checked(table: Table) -> Table:
  table = np.asarray(table, np.float64)
  if table.ndim != 2 or not table.size:
    raise ValueError(f"expected a table [templates, examples], got shape {table.shape}")
  if np.isinf(table).any() or np.isnan(table).all(axis=1).any():
    raise ValueError("a table of results holds a value that is not finite, or a row without any")
  return table


def _generator(seed: int, task: int) -> np.random.Generator:
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(task,)))


def _medians(means: Resampled) -> Float[np.ndarray, " R"]:
  return np.median(means, axis=1)


def _resampled(
  table: Table,
  statistic: Callable[[Resampled], Float[np.ndarray, " R"]],
  generator: np.random.Generator,
  resamples: int,
) -> Float[np.ndarray, " R"]:
  """`statistic` of the row means of `resamples` tables whose columns are drawn with replacement."""
  earned, known = np.nan_to_num(table), ~np.isnan(table)
  return np.concatenate(
    [
      statistic(counts @ earned.T / np.maximum(counts @ known.T, 1))
      for counts in _counts(table.shape[1], generator, resamples)
    ]
  )


def _counts(examples: int, generator: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
  """How often each example occurs in each resample, in blocks `[r, N]`: a matrix product then gives
  all the means.
  """
  block = max(1, _BLOCK // examples)
  for start in range(0, resamples, block):
    rows = min(block, resamples - start)
    drawn = generator.integers(examples, size=(rows, examples))
    drawn += np.arange(rows)[:, None] * examples
    yield np.bincount(drawn.ravel(), minlength=rows * examples).reshape(rows, examples)


def _percentiles(samples: Float[np.ndarray, " R"], level: float) -> Interval:
  low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()
  return Interval(low, high)
