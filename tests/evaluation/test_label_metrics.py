"""Metrics of labels against scikit-learn, scipy and the T5 library."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.evaluation.label_metrics import (
  LABEL_METRICS,
  confusions,
  macro_f1,
  matthews,
  pearson,
  spearman,
)
from flan_jax.prompting import RANKED_METRICS

LABELS = ["-1", "0", "2.5", "4"]
PAIRS = st.lists(
  st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40
)


def measured(metric, golds, predictions, labels=LABELS) -> float:
  added = confusions(golds, predictions, labels)
  return float(metric(added.sum(axis=0).reshape(len(labels), len(labels)), labels))


@settings(max_examples=60)
@given(PAIRS)
def test_macro_f1_and_matthews_are_scikit_learns(pairs):
  golds, predictions = zip(*pairs, strict=True)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of labels that only one side has
    f1 = sklearn.metrics.f1_score(golds, predictions, average="macro")
    correlation = sklearn.metrics.matthews_corrcoef(golds, predictions)
  assert measured(macro_f1, golds, predictions) == pytest.approx(f1)
  assert measured(matthews, golds, predictions) == pytest.approx(correlation, abs=1e-12)


@settings(max_examples=60)
@given(PAIRS)
def test_correlations_are_scipys(pairs):
  golds, predictions = zip(*pairs, strict=True)
  numbers = [float(x) for x in golds], [float(x) for x in predictions]
  if min(len(set(golds)), len(set(predictions))) < 2:
    assert measured(pearson, golds, predictions) == measured(spearman, golds, predictions) == 0
    return
  expected = scipy.stats.pearsonr(*numbers).statistic
  assert measured(pearson, golds, predictions) == pytest.approx(expected, abs=1e-12)
  expected = scipy.stats.spearmanr(*numbers).statistic
  assert measured(spearman, golds, predictions) == pytest.approx(expected, abs=1e-12)


def test_labels_need_not_come_in_the_order_of_their_numbers():
  golds, predictions = ["10", "2", "9", "2"], ["9", "2", "10", "9"]
  named = sorted(set(golds))
  assert named == ["10", "2", "9"]
  expected = scipy.stats.spearmanr([10, 2, 9, 2], [9, 2, 10, 9]).statistic
  assert measured(spearman, golds, predictions, named) == pytest.approx(expected)


def test_they_are_the_t5_librarys(t5_metrics):
  generator = np.random.default_rng(0)
  golds = generator.integers(6, size=80)
  predictions = np.clip(golds + generator.integers(-2, 3, size=80), 0, 5)
  names, given_for = [*map(str, golds)], [*map(str, predictions)]
  digits = [*map(str, range(6))]

  def ours(metric):
    return 100 * measured(metric, names, given_for, digits)

  def theirs(metric):
    (value,) = metric(golds, predictions).values()
    return pytest.approx(value)

  assert ours(pearson) == theirs(t5_metrics.pearson_corrcoef)
  assert ours(spearman) == theirs(t5_metrics.spearman_corrcoef)
  assert ours(macro_f1) == theirs(t5_metrics.mean_multiclass_f1(6))
  assert ours(matthews) / 100 == theirs(t5_metrics.sklearn_metrics_wrapper("matthews_corrcoef"))


def test_many_matrices_are_measured_at_once():
  generator = np.random.default_rng(1)
  stack = generator.integers(0, 5, size=(3, 2, 4, 4)).astype(float)
  for metric in LABEL_METRICS.values():
    found = metric(stack, LABELS)
    assert found.shape == (3, 2)
    assert found[2, 1] == pytest.approx(metric(stack[2, 1], LABELS))


@pytest.mark.parametrize("metric", LABEL_METRICS.values())
def test_no_example_at_all_is_worth_nothing(metric):
  assert metric(np.zeros((4, 4)), LABELS) == 0


def test_dataset_files_may_name_the_metrics_that_there_are():
  assert ("accuracy", *LABEL_METRICS) == RANKED_METRICS
