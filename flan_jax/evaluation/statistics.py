"""Error bars over examples, spread over prompts, and differences that are paired.

One task is a `Table`: what each of N examples adds under each of K templates, and the metric of such
sums. What is earned by example (accuracy, F1, ROUGE) is summed and divided by the number of examples;
of a metric that only a whole set has (BLEU, Matthews correlation) its counts are summed. The headline
number is the median over templates of the metric. The examples are the random sample, so the bootstrap
resamples them, and always takes all templates of an example together; before and after are read at the
same examples.
Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Value = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The metric `[...]` of sums `[..., S]` over as many examples as `[...]` says; finite for any sums,
also those over no example."""

RESAMPLES = 10_000
_BLOCK = 4_000_000  # resampled counts or sums held at once: 32 MB as float64


class Interval(NamedTuple):
  """Lower and upper end of a bootstrap interval."""

  low: float
  high: float


@dataclass(frozen=True)
class Table:
  """What is known of N examples under each of K templates.

  Attributes:
    added: `[K, N, S]`, the S numbers that an example adds; NaN where a template is not for it.
    value: the metric of their sums.

  Raises:
    ValueError: no template or example, a template that is for none, or a number that is not finite.
  """

  added: Float[np.ndarray, "K N S"]
  value: Value

  def __post_init__(self) -> None:
    if self.added.ndim != 3 or not self.added.size:
      raise ValueError(
        f"expected a table [templates, examples, statistics], got shape {self.added.shape}"
      )
    if np.isinf(self.added).any() or np.isnan(self.added).all(axis=(1, 2)).any():
      raise ValueError("a table of results holds a value that is not finite, or a row without any")

  def values(self) -> Float[np.ndarray, " K"]:
    """The metric of each template."""
    return self.resampled(np.ones((1, self.added.shape[1])))[0]

  def resampled(self, counts: Float[np.ndarray, "R N"]) -> Float[np.ndarray, "R K"]:
    """The metric of each template where example n occurs `counts[r, n]` times."""
    templates, examples, width = self.added.shape
    rows = np.moveaxis(np.nan_to_num(self.added), 1, 0).reshape(examples, templates * width)
    known = ~np.isnan(self.added[..., 0])
    return self.value((counts @ rows).reshape(-1, templates, width), counts @ known.T)


def mean(
  sums: Float[np.ndarray, "*B S"], count: Float[np.ndarray, "*B"]
) -> Float[np.ndarray, "*B"]:
  """The metric of what is earned by example, the one number that is summed."""
  return sums[..., 0] / np.maximum(count, 1)


def earned(values: Float[np.ndarray, "K N"]) -> Table:
  """The table of what each example earned; NaN where a template is not for it."""
  return Table(np.asarray(values, np.float64)[..., None], mean)


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
  """Median over templates of the metric."""
  return float(np.median(table.values()))


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
    before, after: example n of both is the same; the templates may differ.
  """
  return macro_paired_interval([before], [after], seed=seed, resamples=resamples, level=level)


def macro_average(tables: Sequence[Table]) -> float:
  """Mean over tasks of their headlines: every task counts the same, whatever its size."""
  return float(np.mean([headline(table) for table in tables]))


def macro_interval(
  tables: Sequence[Table], *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
  """Bootstrap interval of `macro_average`; each task resamples its own examples."""
  medians = [_resampled([table], seed, task, resamples)[0] for task, table in enumerate(tables)]
  return _percentiles(np.mean(medians, axis=0), level)


def macro_paired_interval(
  before: Sequence[Table],
  after: Sequence[Table],
  *,
  seed: int = 0,
  resamples: int = RESAMPLES,
  level: float = 0.95,
) -> Interval:
  """Bootstrap interval of the macro-average of after minus before."""
  tasks = list(zip(before, after, strict=True))
  weights = [(-1.0, 1.0)] * len(tasks)
  return contrast_interval(tasks, weights, seed=seed, resamples=resamples, level=level)


def contrast(tasks: Sequence[Sequence[Table]], weights: Sequence[Sequence[float]]) -> float:
  """Mean over tasks of the weighted sum of the headlines of each task's tables."""
  return float(
    np.mean(
      [
        sum(w * headline(table) for w, table in zip(of_task, tables, strict=True))
        for of_task, tables in zip(weights, tasks, strict=True)
      ]
    )
  )


def contrast_interval(
  tasks: Sequence[Sequence[Table]],
  weights: Sequence[Sequence[float]],
  *,
  seed: int = 0,
  resamples: int = RESAMPLES,
  level: float = 0.95,
) -> Interval:
  """Bootstrap interval of `contrast`.

  Within each task the same resampled examples are read in all of its tables; tasks are resampled
  independently of each other.

  Args:
    tasks: of each task its tables; example n of all of them is the same, the templates may differ.
    weights: of each task one number a table.

  Raises:
    ValueError: tables of one task have different numbers of examples.
  """
  drawn = []
  for number, (tables, of_task) in enumerate(zip(tasks, weights, strict=True)):
    examples = [table.added.shape[1] for table in tables]
    if len(set(examples)) > 1:
      raise ValueError(
        f"a paired interval needs the same examples: {examples[0]} before, {examples[-1]} after"
      )
    drawn.append(np.asarray(of_task) @ _resampled(tables, seed, number, resamples))
  return _percentiles(np.mean(drawn, axis=0), level)


def _resampled(
  tables: Sequence[Table], seed: int, task: int, resamples: int
) -> Float[np.ndarray, "T R"]:
  """The headline of each table where its examples are drawn with replacement, the same in all of them."""
  generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(task,)))
  examples = tables[0].added.shape[1]
  widest = max(examples, *(table.added[:, 0].size for table in tables))
  found = [
    [np.median(table.resampled(counts), axis=1) for table in tables]
    for counts in _counts(examples, generator, resamples, max(1, _BLOCK // widest))
  ]
  return np.concatenate(found, axis=1)


def _counts(
  examples: int, generator: np.random.Generator, resamples: int, block: int
) -> Iterator[np.ndarray]:
  """How often each example occurs in each resample, in blocks `[r, N]`: a matrix product then gives
  all the sums.
  """
  for start in range(0, resamples, block):
    rows = min(block, resamples - start)
    drawn = generator.integers(examples, size=(rows, examples))
    drawn += np.arange(rows)[:, None] * examples
    counted = np.bincount(drawn.ravel(), minlength=rows * examples)
    yield counted.reshape(rows, examples).astype(np.float64)


def _percentiles(samples: Float[np.ndarray, " R"], level: float) -> Interval:
  low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()
  return Interval(low, high)
