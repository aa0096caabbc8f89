"""What a choice among options earns, and what a set of choices tells of the model.

Everything here takes plain lists and numpy arrays. A *label* is whatever a prediction is counted
under: the label's name where a dataset has one fixed set of choices, the position (or letter) where
each example brings its own options.
"""

import collections
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike


def first_maximum(scores: ArrayLike) -> int:
  """The option with the highest score; of equals the first."""
  return int(np.argmax(np.asarray(scores, np.float64)))


def chosen_is_gold(options: Sequence[str], chosen: int, golds: Sequence[str]) -> bool:
  """Whether the chosen option says what a gold answer says; of two equal options either is right."""
  return options[chosen] in golds


def accuracy(correct: ArrayLike) -> float:
  """Share of correct examples, or the mean of what they earned."""
  return float(np.mean(np.asarray(correct, np.float64)))


def balanced_accuracy(targets: Sequence[Hashable], predictions: Sequence[Hashable]) -> float:
  """Recall of each label that occurs among the targets, averaged over these labels."""
  found: dict[Hashable, list[bool]] = collections.defaultdict(list)
  for target, prediction in zip(targets, predictions, strict=True):
    found[target].append(prediction == target)
  return float(np.mean([np.mean(hits) for hits in found.values()]))


def binary_auc(positive: ArrayLike, scores: ArrayLike) -> float | None:
  """Area under the ROC curve: how often a positive example scores above a negative one, a tie
  counting one half.

  It does not see the label prior, so it shows what a model knows whose every answer is the same
  label.

  Returns:
    None where only one of the two labels occurs.
  """
  is_positive = np.asarray(positive, bool)
  values = np.asarray(scores, np.float64)
  negatives, positives = np.sort(values[~is_positive]), values[is_positive]
  if not len(negatives) or not len(positives):
    return None
  below = np.searchsorted(negatives, positives, side="left")
  not_above = np.searchsorted(negatives, positives, side="right")
  return float((below + not_above).sum() / (2 * len(negatives) * len(positives)))


def batch_calibrated(scores: Float[np.ndarray, "N L"]) -> Int[np.ndarray, " N"]:
  """The label of each example after the prior that the prompt itself brings is divided out.

  Batch calibration (Zhou et al. 2023, arXiv:2309.17249), with the N examples as its batch: p(y|x)
  is the softmax of the scores over the labels, p̄(y) its mean over the batch, and the answer is
  argmax over y of log p(y|x) - log p̄(y). No target is looked at.

  Args:
    scores: log-probabilities; column l is the same label in every row.
  """
  return np.argmax(_log_shares(scores) - log_mean_shares(scores), axis=1)


def log_mean_shares(scores: Float[np.ndarray, "N L"]) -> Float[np.ndarray, " L"]:
  """Logarithm of the share of each label, the softmax of the scores, averaged over the rows."""
  log_p = _log_shares(scores)
  top = log_p.max(axis=0)
  return top + np.log(np.exp(log_p - top).mean(axis=0))


class Reliability(NamedTuple):
  """Confidence beside accuracy, in bins of equal width that hold something, the least sure first.

  Attributes:
    share: of the examples (or of their weight) in each bin.
    confidence, accuracy: the mean in each bin.
  """

  share: Float[np.ndarray, " B"]
  confidence: Float[np.ndarray, " B"]
  accuracy: Float[np.ndarray, " B"]

  @property
  def expected_calibration_error(self) -> float:
    """How far confidence and accuracy of a bin lie apart, by its share (Guo et al. 2017)."""
    return float((self.share * np.abs(self.accuracy - self.confidence)).sum())


def reliability(
  confidence: ArrayLike, correct: ArrayLike, weights: ArrayLike | None = None, bins: int = 10
) -> Reliability:
  """What is right among the answers of about the same confidence.

  Args:
    confidence: from 0 to 1; a bin takes its upper edge and not its lower one.
    correct: 0 or 1.
    weights: of the examples. Default: all the same.
  """
  sure = np.asarray(confidence, np.float64)
  weight = np.ones_like(sure) if weights is None else np.asarray(weights, np.float64)
  place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure)
  whole, of_confidence, of_correct = (
    np.bincount(place, weight * values, minlength=bins)
    for values in (1.0, sure, np.asarray(correct, np.float64))
  )
  held = whole > 0
  return Reliability(
    whole[held] / whole.sum(), of_confidence[held] / whole[held], of_correct[held] / whole[held]
  )


def largest_share(scores: ArrayLike) -> float:
  """How sure a choice is: the softmax of the chosen option's score, the highest, among all."""
  values = np.asarray(scores, np.float64)
  return float(1 / np.exp(values - values.max()).sum())


def top_label_share(predictions: Sequence[Hashable]) -> float:
  """Share of the examples that got the most predicted label: 1 when every answer is the same."""
  return max(collections.Counter(predictions).values()) / len(predictions)


def majority_share(targets: Sequence[Hashable]) -> float:
  """What a predictor earns that always gives the most frequent target of these very examples."""
  return top_label_share(targets)


def random_guessing(options: Sequence[Sequence[str]], golds: Sequence[Sequence[str]]) -> float:
  """What a uniform draw among each example's options earns on average; equal texts count as often
  as they stand.
  """
  return float(
    np.mean(
      [
        sum(option in gold for option in shown) / len(shown)
        for shown, gold in zip(options, golds, strict=True)
      ]
    )
  )


def _log_shares(scores: Float[np.ndarray, "N L"]) -> Float[np.ndarray, "N L"]:
  shifted = scores - scores.max(axis=1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
