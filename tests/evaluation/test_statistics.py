"""Intervals against closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.evaluation import statistics


def coin_table(hits: int, n: int) -> np.ndarray:
  return (np.arange(n) < hits).astype(float)[None]


@pytest.mark.parametrize(("hits", "n"), [(50, 100), (80, 100), (7, 10), (300, 1000)])
def test_the_interval_of_an_accuracy_is_the_binomials(hits, n):
  low, high = statistics.interval(coin_table(hits, n), resamples=40_000)
  expected = scipy.stats.binom.ppf([0.025, 0.975], n, hits / n) / n
  np.testing.assert_allclose([low, high], expected, atol=1.01 / n)


def test_the_interval_of_a_mean_agrees_with_scipy():
  values = np.random.default_rng(0).normal(size=200)
  ours = statistics.interval(values[None], resamples=20_000)
  theirs = scipy.stats.bootstrap(
    (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
  ).confidence_interval
  np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_a_paired_interval_is_that_of_the_differences():
  generator = np.random.default_rng(2)
  before = generator.normal(size=300)
  after = before + generator.normal(0.1, 0.2, size=300)
  ours = statistics.paired_interval(before[None], after[None], resamples=20_000)
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
  paired = statistics.paired_interval(hard, hard + 0.05)
  np.testing.assert_allclose(paired, [0.05, 0.05])


def test_all_templates_of_an_example_are_drawn_together():
  # Ten templates that agree on every example carry no more evidence than one.
  one = coin_table(60, 100)
  assert statistics.interval(np.repeat(one, 10, axis=0)) == statistics.interval(one)


def test_the_headline_is_the_median_over_templates():
  table = np.array([[0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1]], float)
  assert statistics.headline(table) == 0.5
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
  low, high = statistics.macro_paired_interval(before, after)
  differences = [(a - b)[0] for a, b in zip(after, before, strict=True)]
  mean = np.mean([d.mean() for d in differences])
  deviation = np.sqrt(sum(d.var() / len(d) for d in differences)) / len(differences)
  np.testing.assert_allclose(
    [low, high], [mean - 1.96 * deviation, mean + 1.96 * deviation], atol=2e-3
  )


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch):
  table = np.random.default_rng(6).random((3, 50))
  first = statistics.interval(table, seed=7)
  assert statistics.interval(table, seed=7) == first
  assert statistics.interval(table, seed=8) != first
  monkeypatch.setattr(statistics, "_BLOCK", 50 * 100)
  assert statistics.interval(table, seed=7) == pytest.approx(first)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**31))
def test_an_interval_lies_within_the_values(n, k, seed):
  table = np.random.default_rng(seed).random((k, n))
  low, high = statistics.interval(table, seed=seed, resamples=200)
  assert table.min() - 1e-9 <= low <= high <= table.max() + 1e-9


@pytest.mark.parametrize("table", [np.zeros((0, 3)), np.zeros((2, 0)), np.zeros(3), [[np.nan]]])
def test_tables_without_results_are_refused(table):
  with pytest.raises(ValueError, match="table"):
    statistics.interval(table)


def test_before_and_after_must_hold_the_same_examples():
  with pytest.raises(ValueError, match="3 before, 4 after"):
    statistics.paired_interval(np.zeros((1, 3)), np.zeros((1, 4)))
