"""What choices earn, against scikit-learn and numbers worked by hand."""

import itertools

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.evaluation import metrics


def test_the_first_of_equal_scores_wins():
  assert metrics.first_maximum([-3.0, -1.0, -1.0]) == 1


def test_either_of_two_equal_options_is_correct():
  options = ["bank", "bank", "river"]
  assert [metrics.chosen_is_gold(options, k, ["bank"]) for k in range(3)] == [True, True, False]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
@pytest.mark.filterwarnings(
  "ignore::UserWarning"
)  # scikit-learn warns of labels not among the targets
def test_balanced_accuracy_is_scikit_learns(pairs):
  targets, predictions = zip(*pairs, strict=True)
  expected = sklearn.metrics.balanced_accuracy_score(targets, predictions)
  assert metrics.balanced_accuracy(targets, predictions) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auc_is_scikit_learns_with_ties(pairs):
  positive, scores = map(list, zip(*pairs, strict=True))
  if len(set(positive)) < 2:
    assert metrics.binary_auc(positive, scores) is None
  else:
    expected = sklearn.metrics.roc_auc_score(positive, scores)
    assert metrics.binary_auc(positive, scores) == pytest.approx(expected)


def test_calibration_undoes_a_constant_preference_for_one_label():
  generator = np.random.default_rng(0)
  targets = np.arange(200) % 2
  scores = generator.normal(size=(200, 2)) * 0.1
  scores[np.arange(200), targets] += 1.0
  biased = scores + np.array([0.0, 8.0])
  assert (np.argmax(biased, axis=1) == 1).all()
  assert np.mean(metrics.batch_calibrated(biased) == targets) > 0.95


def test_calibration_worked_by_hand():
  # p = (.9, .1) and (.6, .4): the mean is (.75, .25), the ratios are (1.2, .4) and (.8, 1.6).
  scores = np.log([[0.9, 0.1], [0.6, 0.4]]) - 5.0
  assert metrics.batch_calibrated(scores).tolist() == [0, 1]


def test_shares_of_labels():
  assert metrics.top_label_share(["yes", "yes", "no", "yes"]) == 0.75
  assert metrics.majority_share(["a", "b", "c", "b"]) == 0.5


def test_random_guessing_counts_ragged_options_and_duplicates():
  options = [["a", "b"], ["a", "b", "c", "d"], ["x", "x", "y"]]
  golds = [["a"], ["d"], ["x"]]
  assert metrics.random_guessing(options, golds) == pytest.approx((1 / 2 + 1 / 4 + 2 / 3) / 3)


def test_reliability_worked_by_hand():
  # In (0.5, 0.6]: 0.55 and 0.6, one of them right. In (0.9, 1]: 0.95 and 1, both right.
  found = metrics.reliability([0.55, 1.0, 0.6, 0.95], [1, 1, 0, 1])
  assert found.share.tolist() == [0.5, 0.5]
  assert found.confidence.tolist() == pytest.approx([0.575, 0.975])
  assert found.accuracy.tolist() == [0.5, 1.0]
  assert found.expected_calibration_error == pytest.approx(0.5 * 0.075 + 0.5 * 0.025)


def test_an_example_of_twice_the_weight_counts_as_two():
  sure, right = [0.55, 0.58, 0.95], [1, 0, 1]
  doubled = metrics.reliability([*sure, 0.58], [*right, 0])
  weighted = metrics.reliability(sure, right, [1, 2, 1])
  for of_one, of_other in zip(doubled, weighted, strict=True):
    assert of_one == pytest.approx(of_other)


def calibration_error(confidences, correct, bins=10) -> float:
  """Guo et al. 2017, equations 2 and 3, bin by bin."""
  error = 0.0
  for low, high in itertools.pairwise(np.linspace(0, 1, bins + 1)):
    inside = [
      (sure, right) for sure, right in zip(confidences, correct, strict=True) if low < sure <= high
    ]
    if inside:
      accuracy = sum(right for _, right in inside) / len(inside)
      confidence = sum(sure for sure, _ in inside) / len(inside)
      error += len(inside) / len(correct) * abs(accuracy - confidence)
  return error


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0.001, 1), st.booleans()), min_size=2, max_size=60))
def test_reliability_is_scikit_learns_curve_and_its_error_that_of_the_paper(pairs):
  sure, right = map(list, zip(*pairs, strict=True))
  found = metrics.reliability(sure, right)
  assert found.expected_calibration_error == pytest.approx(calibration_error(sure, right), abs=1e-9)
  if len(set(right)) == 2:
    accuracy, confidence = sklearn.calibration.calibration_curve(right, sure, n_bins=10)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.confidence == pytest.approx(confidence)


def test_how_sure_a_choice_is():
  assert metrics.largest_share(np.log([0.2, 0.7, 0.1])) == pytest.approx(0.7)
  assert metrics.largest_share([-5000.0, -5000.0]) == 0.5
