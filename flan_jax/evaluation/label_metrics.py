"""Metrics of labels that are the same in every example, from how often which was given for which.

All of them are functions of a confusion matrix `[..., L, L]`: of how many examples with the label of
the row was the label of the column predicted. A matrix of fractions does as well.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Confusion = Float[np.ndarray, "*B L L"]


def confusions(
  golds: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> Float[np.ndarray, "N L*L"]:
  """The confusion matrix of each example, laid flat: a single 1. Their sum is that of all."""
  place = {label: k for k, label in enumerate(labels)}
  found = np.zeros((len(golds), len(labels) ** 2))
  for row, gold, prediction in zip(found, golds, predictions, strict=True):
    row[place[gold] * len(labels) + place[prediction]] = 1
  return found


def macro_f1(confusion: Confusion, labels: Sequence[str]) -> Float[np.ndarray, "*B"]:
  """F1 of each label that occurs among targets or predictions, averaged over these labels."""
  right = np.diagonal(confusion, axis1=-2, axis2=-1)
  occurs = confusion.sum(axis=-1) + confusion.sum(axis=-2)
  f1 = 2 * right / np.where(occurs > 0, occurs, 1.0)
  return f1.sum(axis=-1) / np.maximum((occurs > 0).sum(axis=-1), 1)


def matthews(confusion: Confusion, labels: Sequence[str]) -> Float[np.ndarray, "*B"]:
  """Matthews correlation for any number of labels (Gorodkin 2004); 0 where all targets or all
  predictions are the same.
  """
  golds, predictions = confusion.sum(axis=-1), confusion.sum(axis=-2)
  count = golds.sum(axis=-1)
  right = np.trace(confusion, axis1=-2, axis2=-1)
  shared = right * count - (golds * predictions).sum(axis=-1)
  spreads = [count**2 - (margin**2).sum(axis=-1) for margin in (golds, predictions)]
  return _quotient(confusion, shared, spreads[0] * spreads[1])


def pearson(confusion: Confusion, labels: Sequence[str]) -> Float[np.ndarray, "*B"]:
  """Pearson correlation of labels that are numbers; 0 where all targets or all predictions are the
  same.
  """
  values = np.array(labels, np.float64)
  return _correlation(confusion, values, values)


def spearman(confusion: Confusion, labels: Sequence[str]) -> Float[np.ndarray, "*B"]:
  """Pearson correlation of the ranks, equal values sharing the mean of theirs; 0 as in `pearson`."""
  order = np.argsort(np.array(labels, np.float64))
  ordered = confusion[..., order, :][..., order]
  golds, predictions = (
    np.cumsum(margin, axis=-1) - margin / 2 for margin in (ordered.sum(-1), ordered.sum(-2))
  )
  return _correlation(ordered, golds, predictions)


LABEL_METRICS = {
  "macro_f1": macro_f1,
  "matthews": matthews,
  "pearson": pearson,
  "spearman": spearman,
}
"""Metrics of labels by the names that dataset files use."""


def _correlation(
  confusion: Confusion, golds: Float[np.ndarray, "*B L"], predictions: Float[np.ndarray, "*B L"]
) -> Float[np.ndarray, "*B"]:
  """Pearson correlation where the k-th label has these values as a target and as a prediction."""
  deviations, spreads = [], []
  for values, margin in ((golds, confusion.sum(-1)), (predictions, confusion.sum(-2))):
    average = (values * margin).sum(axis=-1) / np.maximum(margin.sum(axis=-1), 1e-300)
    deviations.append(values - average[..., None])
    spreads.append((margin * deviations[-1] ** 2).sum(axis=-1))
  shared = np.einsum("...gp,...g,...p->...", confusion, *deviations)
  return _quotient(confusion, shared, spreads[0] * spreads[1])


def _quotient(
  confusion: Confusion, shared: Float[np.ndarray, "*B"], spread: Float[np.ndarray, "*B"]
) -> Float[np.ndarray, "*B"]:
  """`shared / sqrt(spread)`; 0 where one side has a single label, whose spread rounding may hide."""
  varies = ((confusion.sum(-1) > 0).sum(-1) > 1) & ((confusion.sum(-2) > 0).sum(-1) > 1)
  return np.where(varies, shared / np.sqrt(np.where(varies, spread, 1.0)), 0.0)
