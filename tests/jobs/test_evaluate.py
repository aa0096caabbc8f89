"""`flan-jax evaluate` goes on where it was killed, and ends with the same report."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")
# Each template by itself, so that there is something to be killed between.
MANY = ("--gin.evaluation.examples=None", "--gin.evaluation.batch_tokens=256")


def report(folder):
  """The report, times and memory aside."""
  found = json.loads((folder / "report.json").read_text())
  del found["environment"]["seconds"], found["environment"]["peak_memory_gb"]
  for checkpoint in found["checkpoints"].values():
    del checkpoint["seconds"]
  return found


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_report_of_an_unbroken_one(flan_jax, folder):
  flan_jax("train", *RECIPE)
  words = ("evaluate", *RECIPE, *MANY, "--gin.evaluate.before=@scratch()")
  flan_jax(*words, "--gin.OUT_DIR=runs/whole")
  command = [sys.executable, "-m", "flan_jax.cli.main", *words, "--gin.OUT_DIR=runs/killed"]
  scores = folder / "runs/killed/evaluation/scores"
  child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 300
  while not (scores.is_dir() and [*scores.glob("*.jsonl")]):
    assert child.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  os.kill(child.pid, signal.SIGKILL)
  child.wait()
  first = {path: path.stat().st_mtime_ns for path in scores.glob("*.jsonl")}
  assert not (folder / "runs/killed/report.json").exists()
  flan_jax(*words, "--gin.OUT_DIR=runs/killed")
  assert all(path.stat().st_mtime_ns == written for path, written in first.items())
  assert len(first) < len([*scores.glob("*.jsonl")])
  whole, killed = folder / "runs/whole", folder / "runs/killed"
  for name in ("examples.jsonl", "examples_before.jsonl"):
    assert (whole / name).read_bytes() == (killed / name).read_bytes()
  assert report(whole) == report(killed)
