"""Reports of results whose numbers are known."""

import json

import numpy as np
import pytest
import sacrebleu
import sklearn.metrics

from flan_jax.errors import StorageError
from flan_jax.evaluation.option_scores import OptionScores
from flan_jax.evaluation.pages.report_page import course_of, html_page
from flan_jax.evaluation.report import build_report
from flan_jax.evaluation.results import ScoredExample, TemplateResult
from flan_jax.evaluation.table import terminal_table

from .known_results import (
  GOLDS,
  NAMES,
  RIGHT,
  evaluation,
  judged_by,
  right_on,
  several,
  task,
  template,
  written,
)

REQUIRED = [
  "name",
  "cluster",
  "held_out",
  "templates",
  "metric",
  "n",
  "before",
  "after",
  "delta",
  "delta_interval",
  "majority",
  "auc_before",
  "auc_after",
  "top_label_share_before",
  "top_label_share_after",
  "baseline_format",
  "collapsed",
]


def row_of(before, after, baseline=None) -> dict:
  report = build_report(
    evaluation(task("t", [template("a", after, GOLDS)])),
    evaluation(task("t", [template("a", before, GOLDS)])),
    None
    if baseline is None
    else evaluation(task("t", [template("a", baseline, GOLDS)]), format="chat"),
    resamples=2000,
  )
  (row,) = report.tasks
  return row


def test_a_row_has_what_the_report_promises():
  row = row_of(right_on(0.5), right_on(0.9))
  assert set(REQUIRED) <= set(row)
  assert (row["before"], row["after"], row["n"]) == (0.5, 0.9, 100)
  assert row["delta"] == pytest.approx(0.4)
  assert (row["majority"], row["random"]) == (0.5, 0.5)
  assert row["auc_after"] == pytest.approx(0.9)
  assert row["verdict"] == "improved" and row["delta_interval"][0] > 0.2


@pytest.mark.parametrize(
  ("before", "after", "verdict"),
  [(0.5, 0.9, "improved"), (0.9, 0.5, "worse"), (0.7, 0.71, "flat")],
)
def test_verdicts_follow_the_paired_interval(before, after, verdict):
  assert row_of(right_on(before, 1), right_on(after, 2))["verdict"] == verdict


def test_one_label_for_everything_is_collapsed_and_no_gain():
  golds = np.arange(100) < 68  # the majority label is positive
  before = np.where(np.random.default_rng(0).random(100) < 0.5, 1.0, -1.0)
  report = build_report(
    evaluation(task("t", [template("a", np.ones(100), golds)])),
    evaluation(task("t", [template("a", before, golds)])),
    resamples=1000,
  )
  (row,), (macro,) = report.tasks, report.macro
  assert row["after"] == 0.68 and row["delta"] > 0
  assert row["collapsed"] and row["verdict"] == "collapsed"
  assert row["auc_after"] == 0.5 and row["balanced_accuracy_after"] == 0.5
  assert macro["delta"] == 0 and macro["delta_with_collapsed"] == pytest.approx(row["delta"])
  assert any("Collapsed" in note and "t" in note for note in report.notes)


def test_a_letter_for_everything_is_collapsed_though_its_labels_vary():
  golds = GOLDS
  examples = []
  for i, gold in enumerate(golds):
    labels = NAMES if (i // 2) % 2 else NAMES[::-1]
    scores = OptionScores((-1.0, -2.0), (-1.0, -2.0), (1, 1), (1, 1))
    right = "AB"[labels.index(NAMES[gold])]
    examples.append(
      ScoredExample(
        i, "x", (1,), (right,), ("A", "B"), labels, ((4,), (5,)), scores, None, "letters"
      )
    )
  summary = TemplateResult("a", "accuracy", True, tuple(examples)).summary("t0")
  assert summary.value == 0.5 and summary.collapsed


def test_gains_are_against_the_better_of_plain_and_chat():
  row = row_of(right_on(0.5), right_on(0.8, 3), baseline=right_on(0.78, 4))
  assert row["baseline_format"] == "chat" and row["before"] == 0.78
  assert row["before_by_format"] == {"plain": 0.5, "chat": 0.78}
  assert row["verdict"] == "flat"
  assert row_of(right_on(0.5), right_on(0.8), baseline=right_on(0.4))["baseline_format"] == "plain"


def test_calibrated_accuracy_sees_through_a_prior():
  row = row_of(right_on(0.5), 0.8 * RIGHT + 1.0)
  assert row["after"] == 0.5 and row["auc_after"] == 1.0
  assert row["calibrated_accuracy_after"] == 1.0
  assert row["top_label_share_after"] == 1.0


def test_calibration_error_is_of_the_shares_of_the_options():
  row = row_of(right_on(0.5), right_on(0.9))
  sure = 1 / (1 + np.exp(-1.0))
  assert row["ece_before"] == pytest.approx(sure - 0.5)
  assert row["ece_after"] == pytest.approx(0.9 - sure)
  report = build_report(evaluation(written(["a", "b"], ["a", "c"])), resamples=10)
  assert report.tasks[0]["ece_after"] is None


def test_templates_are_reported_one_by_one_and_as_median_and_quartiles():
  after = [
    template(n, right_on(s), GOLDS, n == "c") for n, s in zip("abc", (0.5, 0.6, 0.9), strict=True)
  ]
  (row,) = build_report(evaluation(task("t", after)), resamples=500).tasks
  assert row["after"] == 0.6 and row["templates"] == ["a", "b", "c"]
  spread = row["spread"]
  assert [t["after"] for t in spread["templates"]] == [0.5, 0.6, 0.9]
  assert [t["unseen"] for t in spread["templates"]] == [False, False, True]
  assert spread["after"]["quartiles"] == pytest.approx([0.55, 0.75])


def test_one_checkpoint_alone_has_no_before():
  report = build_report(evaluation(task("t", [template("a", RIGHT, GOLDS)])), resamples=500)
  (row,) = report.tasks
  assert row["before"] is None and row["delta_interval"] is None and row["verdict"] is None
  assert row["after_interval"] == [1.0, 1.0]
  assert "value" in terminal_table(report) and "before" not in terminal_table(report)
  html_page(report, "alone")


def test_a_metric_of_all_examples_has_an_interval_and_a_paired_one():
  before, after = right_on(0.6, 1), right_on(0.9, 2)
  report = build_report(
    evaluation(judged_by("matthews", after, GOLDS, "accuracy")),
    evaluation(judged_by("matthews", before, GOLDS, "accuracy")),
    resamples=2000,
  )
  (row,) = report.tasks
  expected = [sklearn.metrics.matthews_corrcoef(GOLDS, m > 0) for m in (before, after)]
  assert [row["before"], row["after"]] == pytest.approx(expected)
  assert row["delta"] == pytest.approx(expected[1] - expected[0])
  low, high = row["after_interval"]
  assert low < row["after"] < high <= 1
  low, high = row["delta_interval"]
  assert 0 < low < row["delta"] < high and row["verdict"] == "improved"
  assert (row["majority"], row["random"]) == (0, 0)
  assert row["also"]["accuracy"]["after"] == 0.9
  assert row["also"]["accuracy"]["delta_interval"][0] > 0
  assert report.macro[0]["after"] == row["after"]
  assert "matthews" in terminal_table(report) and "accuracy 0.900" in html_page(report, "x")


def test_beside_it_stands_what_the_further_metric_alone_would_say():
  alone = build_report(evaluation(judged_by("accuracy", right_on(0.7), GOLDS)), resamples=500)
  beside = build_report(
    evaluation(judged_by("macro_f1", right_on(0.7), GOLDS, "accuracy")), resamples=500
  )
  for key in ("after", "after_interval", "before", "delta"):
    assert beside.tasks[0]["also"]["accuracy"][key] == alone.tasks[0][key]


def test_what_needs_no_look_at_the_example_is_of_the_same_metric():
  golds = np.arange(100) % 4 == 0
  margins = np.where(golds, 1.0, -1.0)
  (row,) = build_report(evaluation(judged_by("macro_f1", margins, golds)), resamples=10).tasks
  assert row["after"] == 1.0
  # Of 75 and 25: "negative" always has an F1 of 150/175 and 0; drawn, of 75/125 and 25/75.
  assert row["majority"] == pytest.approx((150 / 175 + 0) / 2)
  assert row["random"] == pytest.approx((75 / 125 + 25 / 75) / 2)


def test_bleu_is_that_of_the_corpus_and_paired_by_its_sentences():
  golds = [f"the number {i} stands in row {i % 7} of the long table" for i in range(60)]
  after = [g.replace("long ", "") if i % 3 else g for i, g in enumerate(golds)]
  before = [g.replace("stands in row", "is at") if i % 2 else g for i, g in enumerate(after)]
  report = build_report(
    evaluation(written(after, golds)), evaluation(written(before, golds)), resamples=1000
  )
  (row,) = report.tasks
  for role, texts in (("before", before), ("after", after)):
    expected = sacrebleu.corpus_bleu(texts, [golds], tokenize="intl").score / 100
    assert row[role] == pytest.approx(expected)
    low, high = row[f"{role}_interval"]
    assert low < expected < high
  low, high = row["delta_interval"]
  assert 0.1 < low < row["delta"] < high and row["verdict"] == "improved"
  values = [record["value"] for record in report.evaluations["after"].records()]
  assert values[0] == 1.0 and 0 < values[1] < 1


def test_a_correlation_below_zero_is_drawn():
  report = build_report(evaluation(judged_by("matthews", -right_on(0.9), GOLDS)), resamples=100)
  assert report.tasks[0]["after"] == pytest.approx(-0.8)
  assert "-0.8" in html_page(report, "x").replace("−", "-")


def test_macro_averages_keep_training_and_held_out_apart():
  before, after = several()
  report = build_report(after, before, resamples=1000)
  assert [row["name"] for row in report.macro] == [
    "training tasks",
    "held out: commonsense",
    "held out: sentiment",
    "held out: all",
  ]
  assert report.macro[0]["tasks"] == ["bbc"]
  assert report.macro[-1]["delta"] == pytest.approx(0.3)
  low, high = report.macro[-1]["delta_interval"]
  assert 0 < low < 0.3 < high
  low, high = report.macro[-1]["before_interval"]
  assert low < report.macro[-1]["before"] < high


def test_evaluations_of_other_tasks_are_not_compared():
  before, after = several()
  with pytest.raises(ValueError, match="not the same task"):
    build_report(evaluation(*after.tasks[:1]), evaluation(*before.tasks[1:2]), resamples=10)


def test_the_files_can_be_read_back(tmp_path):
  before, after = several()
  report = build_report(
    after, before, notes=["seen before?"], environment={"jax": "0.10"}, resamples=100
  )
  report.write(tmp_path)
  data = json.loads((tmp_path / "report.json").read_text())
  assert [row["name"] for row in data["tasks"]] == ["bbc", "movies", "piqa"]
  assert data["notes"] == ["seen before?"] and data["environment"]["jax"] == "0.10"
  lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
  assert len(lines) == 3 * 2 * 100
  keys = "task template index inputs options input_ids option_ids scores prediction target"
  assert set(keys.split()) <= set(lines[0])
  mean = np.mean([x["prediction"] == x["target"] for x in lines if x["task"] == "bbc"])
  assert mean == pytest.approx(data["tasks"][0]["after"])
  assert len((tmp_path / "examples_before.jsonl").read_text().splitlines()) == 600


def test_a_disk_that_refuses_leaves_nothing(tmp_path):
  (tmp_path / "file").write_text("")
  _, after = several()
  with pytest.raises(StorageError, match="cannot write"):
    build_report(after, resamples=10).write(tmp_path / "file" / "run")
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_terminal_table_is_narrow_and_says_the_verdict():
  before, after = several()
  table = terminal_table(build_report(after, before, resamples=500))
  assert max(map(len, table.splitlines())) <= 118
  assert "movies *" in table and "improved" in table and "held out: sentiment" in table


def test_a_step_without_a_finite_loss_is_no_point_of_the_curve(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": null}\n{"st'
  )
  assert course_of(tmp_path)[:2] == ([(1, 3.0)], [])
