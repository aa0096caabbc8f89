"""What free text earns: each text by itself, or all of them as one corpus.

A metric here is what one prediction adds, and what a sum of that over examples is worth; a bootstrap
then has the metric of each resample without a look at the texts. All values are shares: a BLEU of
0.27 is what sacrebleu prints as 27.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flan_jax.evaluation.statistics import Value, mean

_BLEU_ORDER = 4
_CHRF_ORDER = 6
_CHRF_BETA = 2


class TextMetric(NamedTuple):
  """A metric of written text.

  Attributes:
    added: from a prediction and its accepted answers to the S numbers that it adds.
    value: of sums of these numbers, see `statistics.Table`.
  """

  added: Callable[[str, Sequence[str]], Sequence[float]]
  value: Value


def normalised_answer(text: str) -> str:
  """Lower case without punctuation, English articles and extra spaces, as SQuAD does."""
  return _without_articles(text.lower().translate(_NO_PUNCTUATION))


def normalised_trivia_answer(text: str) -> str:
  """The same as TriviaQA does it: punctuation, some curly quotes too, is a space between words."""
  return _without_articles(text.lower().translate(_SPACED_PUNCTUATION))


def exact_match(prediction: str, golds: Sequence[str]) -> float:
  """1 if the prediction is one of the accepted answers after `normalised_answer`."""
  return _exact_match(normalised_answer, prediction, golds)


def token_f1(prediction: str, golds: Sequence[str]) -> float:
  """F1 of the words shared with the closest accepted answer, after `normalised_answer`.

  An answer without words (such as "the") is matched only by another one, as in SQuAD 2.0.
  """
  return _token_f1(normalised_answer, prediction, golds)


def trivia_exact_match(prediction: str, golds: Sequence[str]) -> float:
  """`exact_match` after `normalised_trivia_answer`; the accepted answers are the aliases."""
  return _exact_match(normalised_trivia_answer, prediction, golds)


def trivia_f1(prediction: str, golds: Sequence[str]) -> float:
  """`token_f1` after `normalised_trivia_answer`; the accepted answers are the aliases."""
  return _token_f1(normalised_trivia_answer, prediction, golds)


def rouge(kind: str, prediction: str, golds: Sequence[str]) -> float:
  """ROUGE F-measure against the closest accepted answer, stemmed, as the `rouge_score` package
  computes it.

  Args:
    kind: "rouge1", "rouge2", "rougeL", or "rougeLsum", which goes sentence by sentence: a sentence
      ends with its line, or with " . ", as for the T5 library.
  """
  if kind == "rougeLsum":
    prediction, golds = _by_line(prediction), list(map(_by_line, golds))
  scorer = _rouge_scorer(kind)
  return max(scorer.score(gold, prediction)[kind].fmeasure for gold in golds)


def bleu_added(prediction: str, golds: Sequence[str]) -> list[float]:
  """What a text adds to the corpus: its length and that of the closest answer, then of 1- to 4-grams
  the matches and the counts.

  sacrebleu counts them, with its tokenizer "intl", which the T5 library and FLAN use.
  """
  return _sacrebleu("BLEU", prediction, golds)


def bleu(sums: Float[np.ndarray, "*B S"], count: Float[np.ndarray, "*B"]) -> np.ndarray:
  """BLEU of a corpus (Papineni et al. 2002) from sums of `bleu_added`, smoothed as sacrebleu does by
  default: the k-th order without a match counts as 2^-k of one.
  """
  lengths, matches, totals = np.split(np.asarray(sums, np.float64), [2, 2 + _BLEU_ORDER], axis=-1)
  missed = np.cumsum(matches == 0, axis=-1)
  precisions = np.where(matches > 0, matches, 0.5**missed) / np.maximum(totals, 1)
  brevity = np.minimum(0.0, 1 - lengths[..., 1] / np.maximum(lengths[..., 0], 1))
  score = np.exp(brevity + np.log(precisions).mean(axis=-1))
  return np.where((totals > 0).all(axis=-1) & (matches > 0).any(axis=-1), score, 0.0)


def chrf_added(prediction: str, golds: Sequence[str]) -> list[float]:
  """What a text adds to the corpus: how many n-grams of 1 to 6 characters it has, the answer that it
  is closest to has, and both have. sacrebleu counts them.
  """
  return _sacrebleu("CHRF", prediction, golds)


def chrf(sums: Float[np.ndarray, "*B S"], count: Float[np.ndarray, "*B"]) -> np.ndarray:
  """chrF2 of a corpus (Popović 2015) from sums of `chrf_added`: precision and recall are means over
  the orders that both sides have, as in sacrebleu.
  """
  triples = np.asarray(sums, np.float64).reshape(*np.shape(sums)[:-1], _CHRF_ORDER, 3)
  written, wanted, shared = np.moveaxis(triples, -1, 0)
  known = (written > 0) & (wanted > 0)
  orders = np.maximum(known.sum(axis=-1), 1)
  precision = np.where(known, shared / np.maximum(written, 1), 0.0).sum(axis=-1) / orders
  recall = np.where(known, shared / np.maximum(wanted, 1), 0.0).sum(axis=-1) / orders
  below = _CHRF_BETA**2 * precision + recall
  return (1 + _CHRF_BETA**2) * precision * recall / np.where(below > 0, below, 1.0)


def _mean_of(earned: Callable[[str, Sequence[str]], float]) -> TextMetric:
  return TextMetric(lambda prediction, golds: [earned(prediction, golds)], mean)


TEXT_METRICS = {
  "exact_match": _mean_of(exact_match),
  "f1": _mean_of(token_f1),
  "trivia_exact_match": _mean_of(trivia_exact_match),
  "trivia_f1": _mean_of(trivia_f1),
  **{
    kind: _mean_of(functools.partial(rouge, kind))
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")
  },
  "bleu": TextMetric(bleu_added, bleu),
  "chrf": TextMetric(chrf_added, chrf),
}
"""Metrics of free text by the names that dataset files use."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACED_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´", " "))
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def _without_articles(text: str) -> str:
  return " ".join(_ARTICLE.sub(" ", text).split())


def _exact_match(normalised: Callable[[str], str], prediction: str, golds: Sequence[str]) -> float:
  return float(normalised(prediction) in map(normalised, golds))


def _token_f1(normalised: Callable[[str], str], prediction: str, golds: Sequence[str]) -> float:
  words = normalised(prediction).split()
  return max(_f1(words, normalised(gold).split()) for gold in golds)


def _f1(predicted: list[str], gold: list[str]) -> float:
  if not predicted or not gold:
    return float(predicted == gold)
  shared = sum((collections.Counter(predicted) & collections.Counter(gold)).values())
  return 2 * shared / (len(predicted) + len(gold))


def _by_line(text: str) -> str:
  return text.replace(" . ", " .\n")


@functools.cache
def _rouge_scorer(kind: str):
  from rouge_score import rouge_scorer  # brings nltk, which takes a second to import

  return rouge_scorer.RougeScorer([kind], use_stemmer=True)


def _sacrebleu(name: str, prediction: str, golds: Sequence[str]) -> list[float]:
  """The counts that sacrebleu sums over a corpus, and resamples in its own bootstrap."""
  metric = _sacrebleu_metric(name)
  return metric._extract_corpus_statistics([prediction], [[gold] for gold in golds])[0]


@functools.cache
def _sacrebleu_metric(name: str):
  from sacrebleu.metrics import BLEU, CHRF

  if name == "BLEU":
    return BLEU(tokenize="intl", force=True, max_ngram_order=_BLEU_ORDER)
  return CHRF(char_order=_CHRF_ORDER, beta=_CHRF_BETA)
