"""Comparisons of evaluations whose numbers are known, and of what their folders hold."""

import json
from dataclasses import replace

import numpy as np
import pytest

from flan_jax.errors import EvaluationError
from flan_jax.evaluation import build_report, statistics
from flan_jax.evaluation.comparison import compare
from flan_jax.evaluation.explanation import LADDER, PARTS, explain
from flan_jax.evaluation.results import Evaluation, TaskResult, TemplateResult
from flan_jax.evaluation.saved import read_evaluations, read_several

from .known_results import GOLDS, evaluation, example, right_on, task, template

SEEDED = {"resamples": 500}


def judged(share: float, name="tuned", **others: float) -> Evaluation:
  """Two templates on which this share is right, and more tasks."""
  shares = {"topic": share, **others}
  return evaluation(
    *(
      task(
        each,
        [template(t, right_on(s, seed), GOLDS, unseen=t == "b") for seed, t in enumerate("ab")],
        cluster=each,
        held_out=each != "topic",
      )
      for each, s in shares.items()
    ),
    checkpoint=name,
  )


def test_differences_are_paired_and_from_the_first():
  three = {"a": judged(0.5), "b": judged(0.7), "c": judged(0.4)}
  found = compare(three, **SEEDED)
  (row,) = found.tasks
  assert [score["value"] for score in row["scores"]] == [0.5, 0.7, 0.4]
  assert "delta" not in row["scores"][0]
  for label, score in zip("bc", row["scores"][1:], strict=True):
    old, new = (three[key].tasks[0].table("t0") for key in ("a", label))
    ends = statistics.paired_interval(old, new, **SEEDED)
    assert score["delta_interval"] == list(ends)
    assert score["delta"] == pytest.approx(score["value"] - 0.5)
  assert [score["verdict"] for score in row["scores"][1:]] == ["improved", "worse"]
  pair = build_report(three["b"], three["a"], **SEEDED).tasks[0]
  assert row["scores"][1]["delta_interval"] == pair["delta_interval"]


def test_groups_are_those_of_a_report():
  first, second = judged(0.5, movies=0.6, piqa=0.8), judged(0.6, movies=0.6, piqa=0.9)
  found = compare({"first": first, "second": second}, **SEEDED)
  report = build_report(second, first, **SEEDED)
  assert [g["name"] for g in found.groups] == [row["name"] for row in report.macro]
  for group, row in zip(found.groups, report.macro, strict=True):
    assert [s["value"] for s in group["scores"]] == [row["before"], row["after"]]
    assert group["scores"][1]["delta_interval"] == row["delta_interval"]


def without(task: TaskResult, *left_out: int) -> TaskResult:
  return task.at({*task.indices} - {*left_out})


def test_only_what_all_were_asked_is_compared_and_the_rest_told():
  whole = judged(0.5, movies=0.6)
  part = Evaluation(
    "part",
    "plain",
    "t0",
    (replace(without(judged(0.7).tasks[0], 3, 4), templates=judged(0.7).tasks[0].templates[:1]),),
    whole.fingerprints,
  )
  found = compare({"whole": whole, "part": part}, **SEEDED)
  (row,) = found.tasks
  assert row["n"] == 98 and row["templates"] == ["a"]
  assert found.notes == [
    "Not judged for all, and left out: movies.",
    "topic: 98 of 100 examples are shared.",
    "topic: the templates that all have are a.",
  ]
  kept = [i for i in range(100) if i not in (3, 4)]
  right = right_on(0.5, 0)[kept] == np.where(GOLDS == 1, 1.0, -1.0)[kept]
  assert row["scores"][0]["value"] == pytest.approx(right.mean())


def test_what_was_asked_otherwise_is_refused_by_name():
  other = judged(0.5)
  dev = replace(other, tasks=(replace(other.tasks[0], split="validation"),))
  with pytest.raises(EvaluationError, match="topic was judged with split='test' for a and with 'v"):
    compare({"a": other, "b": dev})
  renamed = replace(other, tasks=(replace(other.tasks[0], name="other"),))
  with pytest.raises(EvaluationError, match="a, b were judged on no task in common"):
    compare({"a": other, "b": renamed})
  with pytest.raises(EvaluationError, match="two checkpoints or more"):
    compare({"a": other})


def test_a_folder_gives_back_what_was_written(tmp_path):
  def standing(found: Evaluation) -> Evaluation:
    first, second = found.tasks
    return replace(
      found, tasks=(replace(first, overlap=0.25), replace(second, trained_cluster=True))
    )

  before, after = standing(judged(0.5, movies=0.6)), standing(judged(0.7, movies=0.5))
  chat = replace(standing(judged(0.6, movies=0.6)), format="chat")
  report = build_report(after, before, chat, **SEEDED)
  assert report.notes == [
    "topic: 25.0% of its test split has text in common with what was trained on."
  ]
  report.write(tmp_path)
  found = read_evaluations(tmp_path)
  assert list(found) == ["after", "before", "baseline"]
  assert found == {"after": after, "before": before, "baseline": chat}
  whole = (tmp_path / "examples.jsonl").read_text()
  for damaged in ("{}\n", whole[: whole.rindex("\n", 0, -1) + 1]):
    (tmp_path / "examples.jsonl").write_text(damaged)
    with pytest.raises(EvaluationError, match="is damaged"):
      read_evaluations(tmp_path)
  with pytest.raises(EvaluationError, match=f"There are some below: {tmp_path}"):
    read_evaluations(tmp_path.parent)


def test_the_one_model_before_stands_first_and_keeps_its_name(tmp_path):
  for name, share in (("a", 0.6), ("b", 0.7), ("alone", 0.6)):
    before = None if name == "alone" else judged(0.5, "base")
    build_report(judged(share), before, **SEEDED).write(tmp_path / name)
  a, b, alone = (tmp_path / name for name in ("a", "b", "alone"))
  assert list(read_several({"a": a, "b": b})) == ["untuned", "a", "b"]
  assert list(read_several({"a": a, "alone": alone})) == ["a", "alone"]
  with pytest.raises(EvaluationError, match="'untuned' is the model before tuning: call"):
    read_several({"untuned": a, "b": b})


def biased(share: float, seed: int, prior: float, unseen=False) -> TemplateResult:
  """Right on a share by a margin of 1, with something added to the second option throughout."""
  return template("ab"[unseen], right_on(share, seed) + prior, GOLDS, unseen)


def of(*templates: TemplateResult, name="topic", held_out=False) -> TaskResult:
  return task(name, list(templates), cluster=name, held_out=held_out)


def test_a_prior_that_goes_is_no_discrimination():
  """Before: the order of the examples is known, and everything is called positive."""
  before = evaluation(of(biased(0.8, 0, 5.0)))
  after = evaluation(of(biased(0.8, 0, 0.0)))
  (row,) = explain(before, after, **SEEDED).tasks
  parts = {name: part["value"] for name, part in row["parts"].items()}
  assert row["before"] == 0.5 and row["after"] == 0.8 and row["calibrates"]
  assert parts["change"] == pytest.approx(0.3) and "format" not in parts
  assert parts["label prior"] == pytest.approx(0.3) and parts["discrimination"] == pytest.approx(0)
  assert row["auc_before"] == row["auc_after"]


def test_format_and_discrimination_are_told_apart_and_add_up():
  before, native = evaluation(of(biased(0.5, 0, 0.0))), evaluation(of(biased(0.7, 0, 0.0)))
  after = evaluation(of(biased(0.8, 0, 0.0)))
  found = explain(before, after, replace(native, format="chat"), **SEEDED)
  parts = {name: part["value"] for name, part in found.tasks[0]["parts"].items()}
  assert parts == pytest.approx(
    {"change": 0.3, "format": 0.2, "label prior": 0.0, "discrimination": 0.1}
  )
  low, high = found.tasks[0]["parts"]["format"]["interval"]
  assert 0.1 < low < 0.2 < high < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_add_up_to_the_change_whatever_was_scored(seed):
  draw = np.random.default_rng(seed)

  def random(k: int) -> Evaluation:
    tasks = []
    for number, held_out in enumerate((False, True)):
      templates = [
        template(f"t{t}", draw.normal(size=100) + draw.normal(), GOLDS, t == 0) for t in range(k)
      ]
      tasks.append(of(*templates, name=f"d{number}", held_out=held_out))
    return evaluation(*tasks)

  before, native, after = random(3), random(3), random(3)
  found = explain(before, after, replace(native, format="chat"), resamples=50)
  for row in (*found.tasks, *found.ladder):
    parts = {name: part["value"] for name, part in row["parts"].items()}
    assert parts["change"] == pytest.approx(row["after"] - row["before"])
    assert sum(parts[name] for name in PARTS if name != "change") == pytest.approx(parts["change"])
  assert [row["rung"] for row in found.ladder] == [
    "unseen examples",
    "unseen prompts",
    "unseen clusters",
  ]


def test_every_rung_has_its_place():
  def all_rungs(share: float) -> Evaluation:
    near = of(biased(share, 0, 0.0), name="near", held_out=True)
    return evaluation(
      of(biased(share, 0, 0.0), biased(share, 1, 0.0, unseen=True)),
      replace(near, trained_cluster=True),
      of(biased(share, 0, 0.0), name="far", held_out=True),
    )

  found = explain(all_rungs(0.5), all_rungs(0.6), **SEEDED)
  assert [(row["rung"], row["tasks"]) for row in found.ladder] == [
    ("unseen examples", ["topic"]),
    ("unseen prompts", ["topic"]),
    ("unseen datasets", ["near"]),
    ("unseen clusters", ["far"]),
  ]
  assert list(LADDER) == [row["rung"] for row in found.ladder]
  assert [row["templates"] for row in found.tasks] == [["a"], ["b"], ["a"], ["a"]]


def test_flips_are_the_examples_that_are_right_in_one_alone():
  before, after = evaluation(of(biased(0.5, 0, 0.0))), evaluation(of(biased(0.7, 3, 0.0)))
  found = explain(before, after, **SEEDED)
  was, now = ((right_on(*each) > 0) == (GOLDS == 1) for each in ((0.5, 0), (0.7, 3)))
  for to, expected in (("right", now & ~was), ("wrong", was & ~now)):
    assert [flip.index for flip in found.flips if flip.to == to] == np.flatnonzero(
      expected
    ).tolist()
    assert found.tasks[0]["flips"][to] == expected.sum()
  json.dumps(found.as_json())


def test_options_of_their_own_have_no_prior_and_texts_are_told_by_their_metric():
  def own(margins) -> TemplateResult:
    examples = [
      example(i, g, float(m)) for i, (g, m) in enumerate(zip(GOLDS, margins, strict=True))
    ]
    return TemplateResult("a", "accuracy", False, tuple(examples))

  def written(right) -> TemplateResult:
    examples = tuple(
      replace(example(i, 1, 0.0), options=(), labels=(), scores=None, generated=text)
      for i, text in enumerate(np.where(right, "good", "bad"))
    )
    return TemplateResult("a", "exact_match", False, examples)

  before = evaluation(of(own(right_on(0.5))), of(written(np.arange(100) < 40), name="free"))
  after = evaluation(of(own(right_on(0.7))), of(written(np.arange(100) < 60), name="free"))
  rows = explain(before, after, **SEEDED).tasks
  assert [(row["metric"], row["calibrates"]) for row in rows] == [
    ("accuracy", False),
    ("exact_match", False),
  ]
  for row in rows:
    parts = {name: part["value"] for name, part in row["parts"].items()}
    assert parts["label prior"] == 0 and parts["discrimination"] == pytest.approx(0.2)


def test_another_format_is_not_explained():
  with pytest.raises(EvaluationError, match="in the format 'chat' and tuned in 'plain'"):
    explain(replace(judged(0.5), format="chat"), judged(0.6))
