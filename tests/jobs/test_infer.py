"""`flan-jax infer` answers every prompt in its place, says why where it does not, and goes on after a kill."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from flan_jax.data import dataset_spec, load_records, records
from flan_jax.data.atomic import claimed_file
from flan_jax.data.sources import Source
from flan_jax.errors import ConfigError, EvaluationError, NetworkError
from flan_jax.jobs import infer
from flan_jax.jobs.models import tuned
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")
ANSWERS = "runs/answers.jsonl"
MIXED = (
  "--gin.infer.input_file=None",
  "--gin.infer.prompts=@mixture_prompts()",
  "--gin.mixture_prompts.mixture=mixed",
  "--gin.sampling.max_new_tokens=16",
)
REPLIES = """
cluster: replies
description: Answer a customer in a few words.
source: {files: replies.jsonl}
splits: {train: 0.5, test: 0.5}
fields: {text: text, reply: text, accepted: list}
answer: {field: reply, golds: accepted}
metrics: [f1]
record: {text: "Hello?", reply: "Hi.", accepted: ["Hi.", "Hello."]}
templates:
  - name: in_short
    input: "A customer writes: {text} Answer:"
    target: "{answer}"
"""


@pytest.fixture
def answers(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.STEPS=2")

  def run(*settings):
    run.stderr = flan_jax("infer", *RECIPE, *settings).stderr
    return [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]

  run.again = lambda: (folder / ANSWERS).unlink()
  return run


def test_lines_objects_tables_and_standard_input_give_the_same_answers(
  answers, folder, monkeypatch
):
  prompts = ["Say yes.", 'A "quoted", word', "Trois mots français"]
  (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
  (folder / "prompts.jsonl").write_text("".join(json.dumps({"inputs": p}) + "\n" for p in prompts))
  quoted = ['"' + p.replace('"', '""') + '"' for p in prompts]
  (folder / "prompts.csv").write_text("number,inputs\n" + "".join(f"1,{p}\n" for p in quoted))
  first = answers()
  assert [line["inputs"] for line in first] == prompts
  assert all(set(line) == {"inputs", "prediction", "finish", "tokens", "logprob"} for line in first)
  assert all(line["logprob"] < 0 and 0 <= line["tokens"] <= 8 for line in first)
  typed = SimpleNamespace(buffer=io.BytesIO("\n".join(prompts).encode()))
  monkeypatch.setattr("sys.stdin", typed)
  for name in ("prompts.jsonl", "prompts.csv", "-"):
    (folder / ANSWERS).unlink()
    assert answers(f"--gin.INPUT_FILE={name}") == first


def test_a_prompt_that_cannot_be_answered_says_why_and_the_others_go_on(answers, folder):
  rows = [
    b'{"inputs": "Good."}',
    b'{"inputs": ""}',
    b'{"prompt": "Good."}',
    b"{",
    b'{"inputs": "\xff"}',
    b'{"inputs": "\\ud800"}',
    json.dumps({"inputs": "long " * 400}).encode(),
    b'{"inputs": "Good too."}',
  ]
  (folder / "prompts.jsonl").write_bytes(b"\n".join(rows))
  found = answers("--gin.INPUT_FILE=prompts.jsonl", "--gin.infer.batch_size=2")
  said = [line.get("error", "")[:30] for line in found]
  assert len(found) == len(rows)
  assert [i for i, line in enumerate(found) if "prediction" in line] == [0, 7]
  assert said[1] == "the prompt is empty" and "no JSON object" in found[2]["error"]
  assert "byte 13 of the line is not UTF-8" in found[4]["error"]
  assert "surrogate" in found[5]["error"] and "max_prompt_tokens=1024" in found[6]["error"]
  assert "6 prompts have no answer" in answers.stderr


def test_a_table_may_hold_a_field_of_any_length(answers, folder):
  (folder / "prompts.csv").write_text(f"inputs\nGood.\n{'long ' * 40_000}\nGood too.\n")
  found = answers("--gin.INPUT_FILE=prompts.csv")
  assert [("prediction" in line) for line in found] == [True, False, True]
  assert "max_prompt_tokens=1024" in found[1]["error"]


def test_one_process_at_a_time_adds_to_a_file(answers, folder, flan_jax):
  with claimed_file(folder / ANSWERS):
    said = flan_jax("infer", *RECIPE, status=2).stderr
  assert "another process is writing to" in said and not (folder / ANSWERS).exists()
  assert "is no file" in flan_jax("infer", *RECIPE, "--gin.OUTPUT_FILE=-", status=2).stderr


def test_drawn_answers_differ_by_place_and_not_by_batch(answers, folder):
  (folder / "prompts.txt").write_text("Say something.\n" * 5)
  drawn = ("--gin.sampling.temperature=2.0", "--gin.sampling.seed=3")
  together = answers(*drawn)
  assert len({line["prediction"] for line in together}) > 1
  (folder / ANSWERS).unlink()
  assert answers(*drawn, "--gin.infer.batch_size=1") == together


@pytest.fixture
def mixed(folder):
  """A mixture of tickets, whose options are ranked, and of replies, which are written."""
  rows = [
    {"text": f"Question {i}?", "reply": f"Yes {i}.", "accepted": [f"Yes {i}.", "Yes."]}
    for i in range(400)
  ]
  (folder / "support/replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "support/replies.yaml").write_text(REPLIES)
  with (folder / "tasks.py").open("a") as file:
    file.write('register_mixture("mixed", ["tickets", "replies"])\n')


def test_a_mixture_s_options_are_ranked_and_the_rest_is_written(mixed, answers, folder):
  found = answers(*MIXED, "--gin.mixture_prompts.examples=20")
  assert [(line["task"], line["template"]) for line in found] == [
    *[("tickets", "which_team")] * 20,
    *[("tickets", "forward_to")] * 20,
    *[("replies", "in_short")] * 20,
  ]
  ranked, written = found[:40], found[40:]
  records = load_records(dataset_spec("tickets"), folder.parent / "home")["test"]
  for line in ranked:
    record = records[line["index"]]
    assert record["text"] in line["inputs"] and line["split"] == "test"
    assert line["finish"] == "ranked" and {*line["targets"]} < {*line["options"]}
    letters = "(A)" in line["inputs"]
    assert line["options"] == (["A", "B"] if letters else ["billing", "technical"])
    assert letters or line["targets"] == [record["queue"]]
    best = line["options"].index(line["prediction"])
    assert line["logprob"] == line["logprobs"][best] == max(line["logprobs"])
    assert line["tokens"] == len(line["prediction"]) + 1  # bytes, and the end of text
    assert all(a > b for a, b in zip(line["logprobs_without_end"], line["logprobs"], strict=True))
  for line in written:
    assert line["targets"][1] == "Yes." and line["finish"] in ("stop", "length")
    assert "options" not in line and line["logprob"] < 0 and line["tokens"] <= 16
  indices = [[line["index"] for line in found[i : i + 20]] for i in (0, 20)]
  assert indices[0] == indices[1] == sorted(set(indices[0]))


def test_scores_of_a_mixture_are_those_of_the_model(mixed, answers, folder):
  found = answers(*MIXED, "--gin.mixture_prompts.examples=3")
  model = tuned("runs/tuned")
  params = model.load(make_layout(model.model, make_mesh(MeshConfig())), jax.random.key(0))
  logits_of = jax.jit(model.model.logits)
  for line in found[:6]:
    for option, told, without_end in zip(
      line["options"], line["logprobs"], line["logprobs_without_end"], strict=True
    ):
      source = np.array([model.vocabulary.encode(line["inputs"])])
      target = np.array([[*model.vocabulary.encode(option), model.vocabulary.eos_id]])
      logits = logits_of(
        params,
        {
          "encoder_input_tokens": source,
          "encoder_segment_ids": np.ones_like(source),
          "decoder_input_tokens": np.concatenate([[[0]], target[:, :-1]], 1),
          "decoder_segment_ids": np.ones_like(target),
        },
      )
      each = np.asarray(jax.nn.log_softmax(logits))[0, np.arange(target.size), target[0]]
      np.testing.assert_allclose([told, without_end], [each.sum(), each[:-1].sum()], atol=2e-3)


def test_a_mixture_goes_on_and_other_prompts_are_told(mixed, answers, folder, flan_jax):
  some = (*MIXED, "--gin.mixture_prompts.examples=20", "--gin.infer.batch_size=1")
  answers(*some)
  whole = (folder / ANSWERS).read_bytes()
  (folder / ANSWERS).write_bytes(b"".join(whole.splitlines(keepends=True)[:37]))
  assert len(answers(*some)) == 60
  assert (folder / ANSWERS).read_bytes() == whole
  for other in ("examples=21", "seed=1", "shots=1", "tasks={'tickets': ()}"):
    done = flan_jax("infer", *RECIPE, *some, f"--gin.mixture_prompts.{other}", status=2)
    assert "holds other answers" in done.stderr


def test_what_does_not_fit_of_a_mixture_says_so_in_its_line(mixed, answers):
  narrow = ("--gin.sampling.max_new_tokens=8", "--gin.infer.max_prompt_tokens=60")
  found = answers(*MIXED, "--gin.mixture_prompts.examples=4", *narrow)
  assert len(found) == 12 and all(
    "sampling.max_new_tokens=8" in line["error"] for line in found[:8]
  )
  assert all("Ticket" in line["inputs"] and "index" in line for line in found[:8])
  assert all("prediction" in line for line in found[8:])
  assert "8 prompts have no answer" in answers.stderr


def test_scores_that_are_not_finite_are_the_error_of_their_line(mixed, answers, monkeypatch):
  broken = infer._Answering._scores

  def scores(self, questions):
    if any("Ticket 7:" in each.inputs for each in questions):
      raise EvaluationError("the log-probability is nan")
    return broken(self, questions)

  whole = answers(*MIXED)
  monkeypatch.setattr(infer._Answering, "_scores", scores)
  answers.again()
  found = answers(*MIXED)
  for line, told in zip(found, whole, strict=True):
    if "Ticket 7:" in line["inputs"]:
      assert "nan" in line["error"] and "prediction" not in line
    else:
      assert line["prediction"] == told["prediction"]


def test_what_is_wrong_with_the_model_is_the_error_of_no_prompt(flan_jax, folder, monkeypatch):
  def refused(*arguments, **settings):
    raise ConfigError("no engine for this model")

  monkeypatch.setattr(infer, "Engine", refused)
  done = flan_jax("infer", *RECIPE, "--gin.infer.model=@scratch()", status=2)
  assert "no engine for this model" in done.stderr
  assert not (folder / ANSWERS).read_text()


class Published(Source):
  """What the packages of two datasets of `mini` would hold."""

  parts = ("all",)

  def records(self, part):
    for i in range(60):
      if "sarcasm" in self.settings["members"]:
        content = f"bird number {i} has big plans for its cage"
        yield {"input": [{"content": content}], "ideal": str(i % 2)}
      else:
        yield {"question": f"who wrote book number {i}", "answer": [f"writer {i}"]}


def test_clusters_are_left_out_of_a_mixture_of_the_library_s(answers, folder, monkeypatch):
  def opened(settings, *folders):
    if any(name in str(settings["members"]) for name in ("sarcasm", "NQ-open")):
      return Published(settings)
    raise NetworkError("nothing is downloaded here")

  monkeypatch.setattr(records, "open_source", opened)
  mini = (
    *MIXED,
    "--gin.mixture_prompts.mixture=mini without topic",
    "--gin.mixture_prompts.examples=1",
  )
  found = answers(*mini, "--gin.sampling.max_new_tokens=24")
  assert {line["task"] for line in found} == {"nq_open", "sarcasm"}
  assert "boolq is not asked: nothing is downloaded here" in answers.stderr
  assert "bbc_news" not in answers.stderr and "piqa" not in answers.stderr
  for line in found:
    assert ("options" in line) == (line["task"] == "sarcasm") and "prediction" in line
  templates = dataset_spec("sarcasm").evaluation_templates()
  assert [x["template"] for x in found if x["task"] == "sarcasm"] == [t.name for t in templates]


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (("infer.input_file=None",), "infer.prompts = @mixture_prompts(): neither is set"),
    (("infer.input_file=prompts.txt",), "both are set"),
    (("mixture_prompts.mixture=mixd",), "unknown mixture to be asked 'mixd'. Did you mean 'mixed'"),
    (("mixture_prompts.mixture=mixed without suport",), "Did you mean 'support'"),
    (("mixture_prompts.tasks={'tikets': ()}",), "Did you mean 'tickets'"),
    (("mixture_prompts.tasks={'tickets': ('forward',)}",), "forward_to"),
    (("mixture_prompts.tasks={'tickets': 'forward_to'}",), "write 'tickets': ('forward_to',)"),
    (("mixture_prompts.split=tset",), "Did you mean 'test'"),
    (("mixture_prompts.examples=0",), "examples=0"),
  ],
)
def test_wrong_prompts_of_a_mixture_are_told_before_anything_is_written(
  mixed, flan_jax, folder, settings, words
):
  given = () if "neither" in words else MIXED
  fresh = "--gin.infer.model=@scratch()"
  done = flan_jax(
    "infer", *RECIPE, fresh, *given, *(f"--gin.{each}" for each in settings), status=2
  )
  assert words in done.stderr
  assert not (folder / ANSWERS).exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), MIXED], ids=["file", "mixture"])
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(mixed, answers, folder, settings):
  (folder / "prompts.txt").write_text("".join(f"Number {i}.\n" for i in range(400)))
  settings = (*settings, "--gin.infer.batch_size=4")
  answers(*settings)
  unbroken = (folder / ANSWERS).read_bytes()
  (folder / ANSWERS).unlink()
  command = (sys.executable, "-m", "flan_jax.cli.main", "infer", *RECIPE, *settings)
  for lines in (20, 150):
    with (folder / "log").open("ab") as log:
      job = subprocess.Popen(command, cwd=folder, stderr=log, start_new_session=True)
    while not (folder / ANSWERS).exists() or (folder / ANSWERS).read_bytes().count(b"\n") < lines:
      time.sleep(0.01)
      assert job.poll() is None, (folder / "log").read_text()
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    with (folder / ANSWERS).open("ab") as file:
      file.write(b'{"inputs": "half a li')
  answers(*settings)
  assert (folder / ANSWERS).read_bytes() == unbroken
