"""A checkpoint scored end to end, stopped, and gone on with."""

import re

import numpy as np
import pytest

from flan_jax.errors import EvaluationError, UnknownName
from flan_jax.evaluation import evaluator, statistics
from flan_jax.evaluation.evaluator import evaluate
from flan_jax.evaluation.option_scores import CONVENTIONS, RankRequest
from flan_jax.evaluation.rank_classification import score_options
from flan_jax.evaluation.report import build_report
from flan_jax.evaluation.tasks import EvaluationTask, prepare_task
from flan_jax.inference import Written


@pytest.fixture
def setting(tiny, reviews, questions, encoder_of, dataset_files):
  """Arguments of `evaluate` for a tiny model and two tasks."""
  model, params = tiny
  encoder = encoder_of(model.layout)
  tasks = [
    prepare_task(
      EvaluationTask(spec.name, examples=6, held_out=spec.name == "reviews"),
      encoder,
      dataset_files,
      spec=spec,
      records=records,
    )
    for spec, records in (reviews, questions)
  ]
  return model, params, tasks, encoder


NAMED = {"checkpoint": "tiny", "fingerprint": "step 0"}


def count_runs(monkeypatch) -> list[int]:
  """How many requests each call of the scorer gets."""
  sizes: list[int] = []
  score = evaluator.score_options

  def counted(model, params, requests, **options):
    sizes.append(len(requests))
    return score(model, params, requests, **options)

  monkeypatch.setattr(evaluator, "score_options", counted)
  return sizes


def test_every_example_of_every_template_is_scored(setting):
  seen = []
  found = evaluate(*setting, **NAMED, progress=seen.append)
  assert [task.name for task in found.tasks] == ["reviews", "questions"]
  for task, templates in zip(found.tasks, (2, 1), strict=True):
    assert task.table("t0").added.shape == (templates, 6, 1)
    for template in task.templates:
      assert [example.index for example in template.examples] == list(task.indices)
  assert (seen[-1].done, seen[-1].total, seen[-1].reused) == (18, 18, 0)
  report = build_report(found, resamples=100)
  assert [row["held_out"] for row in report.tasks] == [True, False]


def test_a_finished_evaluation_is_read_back_the_same(setting, tmp_path, monkeypatch):
  first = evaluate(*setting, **NAMED, out_dir=tmp_path)
  sizes, seen = count_runs(monkeypatch), []
  again = evaluate(*setting, **NAMED, out_dir=tmp_path, progress=seen.append)
  assert sizes == [] and seen[-1].reused == 18
  assert again.tasks == first.tasks
  assert len(list((tmp_path / "scores").iterdir())) == 3


def test_one_that_was_stopped_goes_on(setting, tmp_path, monkeypatch):
  model, params, tasks, encoder = setting
  evaluate(model, params, tasks[:1], encoder, **NAMED, out_dir=tmp_path)
  next((tmp_path / "scores").glob("reviews.words_only-*")).unlink()
  sizes = count_runs(monkeypatch)
  evaluate(*setting, **NAMED, out_dir=tmp_path)
  assert sizes == [6, 6]


def test_another_checkpoint_is_scored_anew(setting, tmp_path, monkeypatch):
  evaluate(*setting, **NAMED, out_dir=tmp_path)
  sizes = count_runs(monkeypatch)
  evaluate(*setting, checkpoint="tiny", fingerprint="step 1", out_dir=tmp_path)
  evaluate(*setting, **NAMED, out_dir=tmp_path, resume=False)
  assert sum(sizes) == 2 * 18


def test_another_convention_needs_no_new_run(setting, tmp_path, monkeypatch):
  evaluate(*setting, **NAMED, out_dir=tmp_path)
  sizes = count_runs(monkeypatch)
  found = evaluate(*setting, **NAMED, out_dir=tmp_path, scoring="lm_eval_norm")
  assert sizes == [] and found.scoring == "lm_eval_norm"
  (record, *_) = found.records()
  assert len(record["scores"]) == 2


def test_pmi_scores_the_options_once_more_after_nothing(setting, tmp_path, monkeypatch):
  model, params, tasks, encoder = setting
  plain = evaluate(*setting, **NAMED, out_dir=tmp_path)
  sizes = count_runs(monkeypatch)
  found = evaluate(*setting, **NAMED, out_dir=tmp_path, scoring="pmi")
  assert sum(sizes) == 2 * 18
  for task, prepared, old in zip(found.tasks, tasks, plain.tasks, strict=True):
    assert set(CONVENTIONS) - set(task.conventions) == {"contextual"}
    assert set(task.conventions) - set(old.conventions) == {"pmi"}
    for result, template in zip(task.templates, prepared.templates, strict=True):
      for example, prompt in zip(result.examples, template.prompts, strict=True):
        bare = RankRequest((encoder.vocabulary.eos_id,), prompt.option_ids, prompt.ends)
        (unasked,) = score_options(model, params, [bare])
        np.testing.assert_allclose(example.scores.unasked, unasked.without_end, rtol=1e-4)
  (record, *_) = found.records()
  scores = found.tasks[0].templates[0].examples[0].scores
  np.testing.assert_allclose(
    record["scores"], np.subtract(scores.without_end, scores.unasked), rtol=1e-6
  )


def test_contextual_divides_by_what_prompts_without_content_give(
  tiny, reviews, encoder_of, dataset_files, tmp_path, monkeypatch
):
  model, params = tiny
  encoder, (spec, records) = encoder_of(model.layout), reviews
  task = EvaluationTask("reviews", examples=12)
  prepared = prepare_task(
    task, encoder, dataset_files, spec=spec, records=records, content_free=True
  )
  with pytest.raises(EvaluationError, match="reviews.verdict_first .* content_free=True"):
    plain = prepare_task(task, encoder, dataset_files, spec=spec, records=records)
    evaluate(model, params, [plain], encoder, **NAMED, scoring="contextual")
  sizes = count_runs(monkeypatch)
  (found,) = evaluate(model, params, [prepared], encoder, **NAMED, scoring="contextual").tasks
  # Two templates; the options come in two orders, and only letters show them before they are ranked.
  assert sizes == [24, 12]
  for result, template in zip(found.templates, prepared.templates, strict=True):
    for example, prompt in zip(result.examples, template.prompts, strict=True):
      free = [RankRequest(p.input_ids, p.option_ids, p.ends) for p in prompt.content_free]
      scored = score_options(
        model, params, [*free, RankRequest(prompt.input_ids, prompt.option_ids)]
      )
      shares = [np.exp(s.total) / np.exp(s.total).sum() for s in scored]
      expected = np.log(shares[-1]) - np.log(np.mean(shares[:-1], axis=0))
      got = np.array(example.scores.by("contextual"))
      np.testing.assert_allclose(got - got[0], expected - expected[0], atol=2e-3)
  assert set(found.conventions) == set(CONVENTIONS) - {"pmi"}


@pytest.mark.parametrize(
  "damage",
  [
    lambda text: text[:-40],
    lambda text: text[: text.rindex("\n", 0, -1) + 1],
    lambda text: "".join(reversed(text.splitlines(keepends=True))),
    lambda text: re.sub(r"-\d+\.\d+", "NaN", text, count=1),
  ],
  ids=["torn", "a line less", "another order", "not a number"],
)
def test_a_damaged_file_is_scored_again(setting, tmp_path, caplog, damage):
  first = evaluate(*setting, **NAMED, out_dir=tmp_path)
  scores = next((tmp_path / "scores").glob("questions.*"))
  scores.write_text(damage(scores.read_text()))
  again = evaluate(*setting, **NAMED, out_dir=tmp_path)
  assert "damaged" in caplog.text
  for old, new in zip(first.records(), again.records(), strict=True):
    np.testing.assert_allclose(old["scores"], new["scores"], rtol=1e-5)


def test_an_unknown_convention_stops_before_any_work(setting, monkeypatch):
  sizes = count_runs(monkeypatch)
  with pytest.raises(UnknownName, match="lm_eval"):
    evaluate(*setting, **NAMED, scoring="lm_evl")
  assert sizes == []


@pytest.fixture
def writing(tiny, capitals, encoder_of, dataset_files):
  """Arguments of `evaluate` for a tiny model and a task of free text."""
  model, params = tiny
  encoder = encoder_of(model.layout, targets=8)
  spec, records = capitals
  task = EvaluationTask("capitals", examples=4)
  prepared = prepare_task(task, encoder, dataset_files, spec=spec, records=records)
  return model, params, [prepared], encoder


def test_what_a_model_writes_is_measured_by_the_datasets_metric(writing, monkeypatch):
  *_, (prepared,), encoder = writing
  assert [(t.name, t.metrics) for t in prepared.templates] == [("name_it", ("f1", "chrf"))]
  accepted = [prompt.golds for prompt in prepared.templates[0].prompts]
  words = [accepted[0][0], accepted[1][1], "Port", "elsewhere"]
  written = [
    Written(i, tuple(encoder.vocabulary.encode(text)), (), "stop") for i, text in enumerate(words)
  ]
  monkeypatch.setattr(evaluator.Engine, "run", lambda *args: written)
  (task,) = evaluate(*writing, **NAMED).tasks
  np.testing.assert_allclose(task.table("t0").added[..., 0], [[1, 1, 2 / 3, 0]])
  assert task.also == ("chrf",) and 0 < statistics.headline(task.table("t0", "chrf")) < 1


def test_free_text_is_written_kept_and_reported(writing, tmp_path, monkeypatch):
  first = evaluate(*writing, **NAMED, out_dir=tmp_path)
  monkeypatch.setattr(evaluator, "Engine", None)
  again = evaluate(*writing, **NAMED, out_dir=tmp_path)
  assert again.tasks == first.tasks
  (row,) = build_report(first, again, resamples=100).tasks
  assert row["metric"] == "f1" and row["majority"] is None and row["delta"] == 0
  assert row["also"]["chrf"]["delta_interval"] == [0, 0]
  record = next(first.records())
  assert record["options"] == [] and record["scores"] == []
  assert record["targets"][0] == record["target"]
