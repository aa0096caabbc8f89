"""Metrics of written text against the T5 library, sacrebleu and rouge_score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from flan_jax.evaluation import text_metrics
from flan_jax.evaluation.text_metrics import TEXT_METRICS
from flan_jax.prompting import WRITTEN_METRICS

ANSWERS = [
  ("The Eiffel Tower!", ["eiffel tower"]),
  ("a cat sat on the mat", ["the cat sat", "dog"]),
  ("in 1912", ["1912", "the year 1912"]),
  ("", ["nothing"]),
  ("completely different", ["other words here"]),
  ("co-operate, now", ["cooperate now"]),
  ("An an AN apple apple", ["apple"]),
  ("rock-n-roll", ["rock n roll", "rock'n'roll"]),
  ("`Auld Lang Syne´", ["auld_lang_syne"]),
  ("the ‘Danube’", ["Donau", "River Danube", "Danube"]),
]

SENTENCES = [
  ("The cat sat on the mat today .", ["The cat sat on the mat ."]),
  ("A quick brown fox jumps over it.", ["The quick brown fox jumped over the dog."]),
  ("Hello", ["Hello there, friend!"]),
  ("It's 3.5% (more or less), isn't it?", ["It is 3.5 % more or less, is it not?"]),
  ("", ["Nothing was written here."]),
  ("Über die Brücke geht niemand mehr.", ["Niemand geht mehr über die Brücke."]),
]

WORDS = st.lists(st.sampled_from("abcdef"), max_size=8).map(" ".join)
CORPORA = st.lists(
  st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6
)


def corpus_value(name: str, pairs) -> float:
  """The metric of a corpus, as it is made of what each text adds."""
  metric = TEXT_METRICS[name]
  added = np.array([metric.added(text, golds) for text, golds in pairs])
  return float(metric.value(added.sum(axis=0), np.array(len(pairs))))


def streams(pairs) -> tuple[list[str], list[list[str | None]]]:
  """As sacrebleu wants it: the k-th reference of each text, or None."""
  most = max(len(golds) for _, golds in pairs)
  references = [[golds[k] if k < len(golds) else None for _, golds in pairs] for k in range(most)]
  return [text for text, _ in pairs], references


@pytest.mark.parametrize(
  ("theirs", "exact_match", "f1"),
  [("squad", "exact_match", "f1"), ("trivia_qa", "trivia_exact_match", "trivia_f1")],
)
def test_answers_are_judged_as_the_t5_library_does(t5_metrics, theirs, exact_match, f1):
  judge = getattr(t5_metrics, theirs)
  for text, golds in ANSWERS:
    expected = judge([golds], [text])
    assert 100 * corpus_value(exact_match, [(text, golds)]) == pytest.approx(expected["em"])
    assert 100 * corpus_value(f1, [(text, golds)]) == pytest.approx(expected["f1"])
  expected = judge([golds for _, golds in ANSWERS], [text for text, _ in ANSWERS])
  assert 100 * corpus_value(exact_match, ANSWERS) == pytest.approx(expected["em"])
  assert 100 * corpus_value(f1, ANSWERS) == pytest.approx(expected["f1"])


def test_squad_joins_at_a_hyphen_where_trivia_qa_parts():
  assert text_metrics.normalised_answer("A co-operative’s") == "cooperative’s"
  assert text_metrics.normalised_trivia_answer("A co-operative’s") == "co operative s"


def test_an_answer_without_words_is_matched_only_by_another():
  assert text_metrics.token_f1("the", ["a"]) == 1.0
  assert text_metrics.token_f1("the", ["cat"]) == 0.0


KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@pytest.mark.parametrize("kind", KINDS)
def test_rouge_is_the_t5_librarys_with_stems(t5_metrics, kind):
  texts = [
    ("the cats sat on mats . it rained .", "it was raining . the cat sat on the mat ."),
    ("police killed the gunman", "the gunman police killed"),
    ("nothing here", "words of another kind"),
  ]
  for text, gold in texts:
    # One text at a time: the library bootstraps the mean of several.
    (expected,) = t5_metrics.rouge([gold], [text], score_keys=[kind], use_stemmer=True).values()
    assert 100 * corpus_value(kind, [(text, [gold])]) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rouge_takes_the_closest_reference(kind):
  scorer = rouge_scorer.RougeScorer([kind], use_stemmer=True)
  prediction, golds = "the cats sat on mats", ["a dog ran", "the cat sat on the mat"]
  expected = max(scorer.score(gold, prediction)[kind].fmeasure for gold in golds)
  assert text_metrics.rouge(kind, prediction, golds) == pytest.approx(expected)


def test_rouge_lsum_finds_sentences_that_changed_places():
  summary, gold = "It rained.\nThe cat sat.", "The cat sat.\nIt rained."
  assert text_metrics.rouge("rougeLsum", summary, [gold]) == 1.0
  assert text_metrics.rouge("rougeL", summary, [gold]) < 1.0


def test_bleu_is_the_t5_librarys(t5_metrics):
  expected = t5_metrics.bleu([golds[0] for _, golds in SENTENCES], [text for text, _ in SENTENCES])
  assert expected["bleu"] > 10
  assert 100 * corpus_value("bleu", SENTENCES) == pytest.approx(expected["bleu"])


@settings(max_examples=60)
@given(CORPORA)
def test_bleu_and_chrf_of_a_corpus_are_sacrebleus(pairs):
  bleu = BLEU(tokenize="intl").corpus_score(*streams(pairs)).score
  assert 100 * corpus_value("bleu", pairs) == pytest.approx(bleu, abs=1e-9)
  chrf = CHRF().corpus_score(*streams(pairs)).score
  assert 100 * corpus_value("chrf", pairs) == pytest.approx(chrf, abs=1e-9)


def test_bleu_of_a_corpus_is_not_the_mean_of_its_texts():
  alone = [corpus_value("bleu", [pair]) for pair in SENTENCES]
  assert abs(np.mean(alone) - corpus_value("bleu", SENTENCES)) > 0.01


def test_chrf_worked_by_hand():
  # Of "ab" for "abc": 1-grams 2 of 2 and of 3, 2-grams 1 of 1 and of 2; "ab" has no 3-gram.
  precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
  expected = 5 * precision * recall / (4 * precision + recall)
  assert corpus_value("chrf", [("ab", ["abc"])]) == pytest.approx(expected)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_many_sums_are_measured_at_once_and_none_is_worth_nothing(name):
  metric = TEXT_METRICS[name]
  added = np.array([metric.added(text, golds) for text, golds in SENTENCES])
  counts = np.array([[1, 1, 1, 1, 1, 1], [0, 2, 0, 1, 3, 0], [0, 0, 0, 0, 0, 0]])
  found = metric.value(counts @ added, counts.sum(axis=1))
  again = [pair for pair, n in zip(SENTENCES, counts[1], strict=True) for _ in range(n)]
  assert found[0] == pytest.approx(corpus_value(name, SENTENCES))
  assert found[1] == pytest.approx(corpus_value(name, again))
  assert found[2] == 0


def test_dataset_files_may_name_the_metrics_that_there_are():
  assert tuple(TEXT_METRICS) == WRITTEN_METRICS
