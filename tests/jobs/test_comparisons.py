"""Launches of several phases that are judged alike, and the commands that set reports side by side."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

TRAINED = """
include "check.gin"
PHASES = ("few", "many")
train.from_phase_before = False
few/STEPS = 2
few/data.templates_per_dataset = 1
train.checkpoint_every = 2
train.keep = 10
train.evaluation = @evaluation()
"""
JUDGED = """
include "check.gin"
PHASES = ("early", "late")
RUN_DIR = "runs/tuned/many"
early/tuned.step = 2
late/tuned.step = 6
"""
RECIPE = ("--module", "tasks.py", "--gin_file=trained.gin")


@pytest.fixture
def recipes(folder):
  (folder / "trained.gin").write_text(TRAINED)
  (folder / "judged.gin").write_text(JUDGED)
  return folder


def compared(run):
  return json.loads((run / "comparison.json").read_text())


@pytest.mark.slow
def test_phases_begin_alike_and_are_compared_at_the_end(flan_jax, recipes):
  done = flan_jax("train", *RECIPE)
  run = recipes / "runs/tuned"
  found = compared(run)
  assert found["checkpoints"] == ["untuned", "few", "many"]
  assert "comparison: runs/tuned/comparison.html" in done.stdout
  assert (run / "comparison.html").read_text().count("<svg") == 1
  reports = {name: json.loads((run / name / "report.json").read_text()) for name in ("few", "many")}
  for name, score in zip(("few", "many"), found["tasks"][0]["scores"][1:], strict=True):
    (row,) = reports[name]["tasks"]
    assert (score["value"], score["delta"]) == (row["after"], row["delta"])
    assert score["delta_interval"] == row["delta_interval"]
  about = json.loads((run / "many/model.json").read_text())
  assert about["trained_on"] == {"tickets": "support"}
  first, second = (report["checkpoints"]["before"]["fingerprints"] for report in reports.values())
  assert first == second
  templates = len(reports["few"]["tasks"][0]["templates"])
  assert len([*(run / "evaluation/scores").iterdir()]) == templates  # untuned: asked once
  # Two checkpoints of a run in one launch of evaluate, and by hand.
  flan_jax("evaluate", "--module", "tasks.py", "--gin_file=judged.gin")
  assert compared(recipes / "runs/judged")["checkpoints"] == ["early", "late"]
  words = ("runs/judged/early", "last=runs/judged/late", "runs/tuned/few")
  told = json.loads(flan_jax("compare", *words, "--json", "--out", "out.html").stdout)
  assert told["checkpoints"] == ["early", "last", "few"]
  scores = compared(recipes / "runs/judged")["tasks"][0]["scores"]
  assert told["tasks"][0]["scores"][:2] == scores
  assert (recipes / "out.html").exists()
  # The run's own report says where its gain came from, and so do two reports.
  told = json.loads(flan_jax("explain", "runs/tuned/many", "--json", "--out", "why.html").stdout)
  (row,) = told["ladder"]
  assert row["rung"] == "unseen examples"
  assert row["parts"]["change"]["value"] == pytest.approx(found["tasks"][0]["scores"][2]["delta"])
  flan_jax("explain", "runs/judged/early", "runs/judged/late")
  done = flan_jax("explain", "runs/judged/early", status=2)
  assert "has no untuned model to compare with: set evaluate.before" in done.stderr
  done = flan_jax("compare", "runs/tuned", "runs/tuned/few", status=2)
  assert "There are some below: runs/tuned/few, runs/tuned/many" in done.stderr
  done = flan_jax("compare", "a=runs/tuned/few", "a=runs/tuned/many", status=2)
  assert "have one name: say NAME=FOLDER" in done.stderr


@pytest.mark.slow
def test_a_launch_that_is_killed_in_any_phase_comes_to_the_same_comparison(flan_jax, recipes):
  flan_jax("train", *RECIPE)
  expected = (recipes / "runs/tuned/comparison.json").read_bytes()
  other = "--gin.RUN_DIR=runs/again"
  for sign in ("few/checkpoints/2", "few/examples.jsonl", "many/checkpoints/4"):
    command = [sys.executable, "-m", "flan_jax.cli.main", "train", *RECIPE, other]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (recipes / "runs/again" / sign).exists():
      assert child.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
  flan_jax("train", *RECIPE, other)
  assert (recipes / "runs/again/comparison.json").read_bytes() == expected
