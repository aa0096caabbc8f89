"""`flan-jax infer` answers every prompt in its place, says why where it does not, and goes on after a kill."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")
ANSWERS = "runs/answers.jsonl"


@pytest.fixture
def answers(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.STEPS=2")

  def run(*settings):
    run.stderr = flan_jax("infer", *RECIPE, *settings).stderr
    return [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]

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


def test_drawn_answers_differ_by_place_and_not_by_batch(answers, folder):
  (folder / "prompts.txt").write_text("Say something.\n" * 5)
  drawn = ("--gin.sampling.temperature=2.0", "--gin.sampling.seed=3")
  together = answers(*drawn)
  assert len({line["prediction"] for line in together}) > 1
  (folder / ANSWERS).unlink()
  assert answers(*drawn, "--gin.infer.batch_size=1") == together


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(answers, folder):
  (folder / "prompts.txt").write_text("".join(f"Number {i}.\n" for i in range(400)))
  answers("--gin.infer.batch_size=4")
  unbroken = (folder / ANSWERS).read_bytes()
  (folder / ANSWERS).unlink()
  command = (
    sys.executable,
    "-m",
    "flan_jax.cli.main",
    "infer",
    *RECIPE,
    "--gin.infer.batch_size=4",
  )
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
  answers("--gin.infer.batch_size=4")
  assert (folder / ANSWERS).read_bytes() == unbroken
