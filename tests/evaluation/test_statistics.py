"""Intervals against closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.evaluation import statistics
from flan_jax.evaluation.label_metrics import confusions, matthews
from flan_jax.evaluation.statistics import Table, earned


def coin_table(hits: int, n: int) -> Table:
  return earned((np.arange(n) < hits).astype(float)[None])


@pytest.mark.parametrize(("hits", "n"), [(50, 100), (80, 100), (7, 10), (300, 1000)])
def test_the_interval_of_an_accuracy_is_the_binomials(hits, n):
  low, high = statistics.interval(coin_table(hits, n), resamples=40_000)
  expected = scipy.stats.binom.ppf([0.025, 0.975], n, hits / n) / n
  np.testing.assert_allclose([low, high], expected, atol=1.01 / n)


def test_the_interval_of_a_mean_agrees_with_scipy():
  values = np.random.default_rng(0).normal(size=200)
  ours = statistics.interval(earned(values[None]), resamples=20_000)
  theirs = scipy.stats.bootstrap(
    (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
  ).confidence_interval
  np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_a_paired_interval_is_that_of_the_differences():
  generator = np.random.default_rng(2)
  before = generator.normal(size=300)
  after = before + generator.normal(0.1, 0.2, size=300)
  ours = statistics.paired_interval(earned(before[None]), earned(after[None]), resamples=20_000)
  theirs = scipy.stats.bootstrap(
    (before, after),
    lambda x, y, axis: np.mean(y - x, axis=axis),
    paired=True,
    vectorized=True,
    method="percentile",
    n_resamples=20_000,
    rng=np.random.default_rng(3),
  ).confidence_interval
  np.testing.assert_allclose(ours, theirs, atol=0.004)


def test_pairing_takes_away_what_the_examples_share():
  hard = np.random.default_rng(4).normal(size=(1, 400))
  paired = statistics.paired_interval(earned(hard), earned(hard + 0.05))
  np.testing.assert_allclose(paired, [0.05, 0.05])


def test_all_templates_of_an_example_are_drawn_together():
  # Ten templates that agree on every example carry no more evidence than one.
  one = coin_table(60, 100)
  ten = earned(np.repeat(one.added[..., 0], 10, axis=0))
  assert statistics.interval(ten) == statistics.interval(one)


def test_the_headline_is_the_median_over_templates():
  table = np.array([[0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1]], float)
  assert statistics.headline(earned(table)) == 0.5
  spread = statistics.spread(table.mean(axis=1).tolist())
  assert (spread.median, spread.lower_quartile, spread.upper_quartile) == (0.5, 0.375, 0.75)
  assert spread.interquartile_range == 0.375


def test_a_macro_average_counts_every_task_the_same():
  small, large = coin_table(10, 10), coin_table(0, 1000)
  assert statistics.macro_average([small, large]) == 0.5


def test_the_macro_interval_of_many_tasks_follows_the_normal_law():
  generator = np.random.default_rng(5)
  before = [(generator.random((1, 200)) < 0.4).astype(float) for _ in range(9)]
  after = [(generator.random((1, 200)) < 0.6).astype(float) for _ in range(9)]
  low, high = statistics.macro_paired_interval([*map(earned, before)], [*map(earned, after)])
  differences = [(a - b)[0] for a, b in zip(after, before, strict=True)]
  mean = np.mean([d.mean() for d in differences])
  deviation = np.sqrt(sum(d.var() / len(d) for d in differences)) / len(differences)
  np.testing.assert_allclose(
    [low, high], [mean - 1.96 * deviation, mean + 1.96 * deviation], atol=2e-3
  )


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch):
  table = earned(np.random.default_rng(6).random((3, 50)))
  first = statistics.interval(table, seed=7)
  assert statistics.interval(table, seed=7) == first
  assert statistics.interval(table, seed=8) != first
  monkeypatch.setattr(statistics, "_BLOCK", 50 * 100)
  assert statistics.interval(table, seed=7) == pytest.approx(first)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**31))
def test_an_interval_lies_within_the_values(n, k, seed):
  table = np.random.default_rng(seed).random((k, n))
  low, high = statistics.interval(earned(table), seed=seed, resamples=200)
  assert table.min() - 1e-9 <= low <= high <= table.max() + 1e-9


@pytest.mark.parametrize("table", [np.zeros((0, 3)), np.zeros((2, 0)), np.zeros(3), [[np.nan]]])
def test_tables_without_results_are_refused(table):
  with pytest.raises(ValueError, match="table"):
    earned(table)


def test_before_and_after_must_hold_the_same_examples():
  with pytest.raises(ValueError, match="3 before, 4 after"):
    statistics.paired_interval(earned(np.zeros((1, 3))), earned(np.zeros((1, 4))))


def labelled(golds, predictions) -> Table:
  """Matthews correlation of two labels, one template."""
  added = confusions([*map(str, golds)], [*map(str, predictions)], ["0", "1"])[None]
  return Table(added, lambda sums, count: matthews(sums.reshape(*sums.shape[:-1], 2, 2), "01"))


def drawn_labels(seed: int, right: float) -> tuple[np.ndarray, np.ndarray]:
  generator = np.random.default_rng(seed)
  golds = generator.integers(2, size=150)
  return golds, np.where(generator.random(150) < right, golds, 1 - golds)


def of_labels(golds, predictions, axis):
  return np.apply_along_axis(
    lambda both: np.corrcoef(both[:150], both[150:])[0, 1],
    axis,
    np.concatenate([golds, predictions], axis=axis),
  )


def test_the_interval_of_a_metric_of_all_examples_agrees_with_scipy():
  golds, predictions = drawn_labels(0, 0.8)
  ours = statistics.interval(labelled(golds, predictions), resamples=4000)
  theirs = scipy.stats.bootstrap(
    (golds, predictions),
    of_labels,
    paired=True,
    vectorized=True,
    method="percentile",
    n_resamples=4000,
    rng=np.random.default_rng(1),
  ).confidence_interval
  np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_its_paired_interval_reads_the_same_examples_before_and_after():
  golds, before = drawn_labels(0, 0.7)
  after = np.where(np.random.default_rng(2).random(150) < 0.3, golds, before)
  ours = statistics.paired_interval(labelled(golds, before), labelled(golds, after), resamples=4000)
  theirs = scipy.stats.bootstrap(
    (golds, before, after),
    lambda g, b, a, axis: of_labels(g, a, axis) - of_labels(g, b, axis),
    paired=True,
    vectorized=True,
    method="percentile",
    n_resamples=4000,
    rng=np.random.default_rng(3),
  ).confidence_interval
  np.testing.assert_allclose(ours, theirs, atol=0.02)
  same = statistics.paired_interval(labelled(golds, after), labelled(golds, after))
  assert same == (0, 0)


def test_a_template_that_is_not_for_an_example_is_measured_on_the_others():
  table = earned(np.array([[1, np.nan, 0, np.nan], [1, 1, 1, 0]]))
  np.testing.assert_allclose(table.values(), [0.5, 0.75])
