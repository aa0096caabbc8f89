"""Pretraining, adaptation and tuning in one launch that can be killed in any of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from flan_jax.errors import CheckpointError
from flan_jax.jobs.models import tuned

TASKS = """
from flan_jax.data import register_mixture, register_templates, register_text
from flan_jax.data.objectives import PrefixLM, SpanCorruption

register_templates(".")
register_mixture("tickets_only", ["tickets"])
register_text("spans", ["tickets"], SpanCorruption(), passes=20)
register_text("prefixes", ["tickets"], PrefixLM(), passes=20)
"""
PHASES = """
include "check.gin"
scratch.vocabulary = @byte_vocabulary()
byte_vocabulary.extra_ids = 100
LENGTHS = {"inputs": 128, "targets": 48}
PHASES = ("pretrain", "adapt", "tune")
pretrain/MIXTURE = "spans"
adapt/MIXTURE = "prefixes"
adapt/STEPS = 4
tune/encoder_decoder.dropout_rate = 0.1
tune/train.evaluation = @evaluation()
VALIDATION_BATCHES = 1
train.checkpoint_every = 2
train.keep = 10
"""
RECIPE = ("--module", "tasks.py", "--gin_file=phases.gin")


@pytest.fixture
def phases(folder):
  file = folder / "support/tickets.yaml"
  text = file.read_text().replace(
    "{train: 0.8, test: 0.2}", "{train: 0.6, validation: 0.2, test: 0.2}"
  )
  file.write_text(text.replace("metrics:", 'text: "{text}"\nmetrics:', 1))
  (folder / "tasks.py").write_text(TASKS)
  (folder / "phases.gin").write_text(PHASES)
  return folder


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def digests(flan_jax, run_dir):
  table = json.loads(flan_jax("checkpoints", str(run_dir), "--json").stdout)
  return {row["step"]: row["digest"] for row in table}


@pytest.mark.slow
def test_each_phase_is_a_run_that_begins_where_the_one_before_ended(flan_jax, phases):
  flan_jax("train", *RECIPE)
  run = phases / "runs/tuned"
  steps = {"pretrain": [0, 2, 4, 6], "adapt": [0, 2, 4], "tune": [0, 2, 4, 6]}
  held_out = {name: lines(run / name / "validation.jsonl") for name in steps}
  assert {name: [line["step"] for line in log] for name, log in held_out.items()} == steps
  assert all(log[-1]["loss"] < log[0]["loss"] for log in held_out.values())
  assert held_out["tune"][0]["tasks"].keys() == {"tickets"}
  for name, before in (("adapt", "pretrain"), ("tune", "adapt")):
    about = json.loads((run / name / "model.json").read_text())
    assert about["origin"].endswith(f"{before}, step {steps[before][-1]}")
  assert json.loads((run / "tune/model.json").read_text())["config"]["dropout_rate"] == 0.1
  assert (run / "pretrain/report.html").stat().st_size > 1000
  assert (run / "tune/report.json").exists()
  done = flan_jax("train", *RECIPE)
  assert done.stderr.count("nothing left to train") == 3
  with pytest.raises(
    CheckpointError, match="Its phases are runs: runs/tuned/adapt, runs/tuned/pre"
  ):
    tuned("runs/tuned")


def test_the_vocabulary_may_not_change_between_phases(flan_jax, phases):
  with (phases / "phases.gin").open("a") as file:
    file.write("tune/byte_vocabulary.extra_ids = 0\n")
  done = flan_jax("train", *RECIPE, status=2)
  assert (
    "phase tune: it cannot go on from the phase before: its vocabulary is another" in done.stderr
  )
  assert not (phases / "runs").exists()


def test_a_phase_that_asks_for_more_text_than_there_is_says_so(flan_jax, phases):
  done = flan_jax("train", *RECIPE, "--gin.pretrain/STEPS=4000", status=2)
  assert "the text 'spans' is too short for this run" in done.stderr
  assert not (phases / "runs/tuned/pretrain/checkpoints").exists()


@pytest.mark.parametrize(
  ("setting", "complaint"),
  [
    ("tune/WARMUP_STEPS=9", "phase tune: the warmup of 9 updates is longer"),
    ("adapt/STEPS=4000", "phase adapt: the text 'prefixes' is too short"),
    ("tune/adamw.multipliers={'*nrom*': 0.0}", "phase tune: .*Did you mean 'norm'"),
    ("PHASES=('pretrain','adpat')", "nothing is set for the phase 'adpat'. Did you mean 'adapt'"),
    ("pretrain/evaluation.examples=4", "this launch of 'train' never calls 'evaluation'"),
    ("VALIDATION_BATCHES=-1", "validation_batches 0 or more"),
    ("PHASES=()", "PHASES is \\(\\); it must be a list of names"),
  ],
)
def test_a_mistake_in_a_later_phase_is_told_before_the_first_begins(
  flan_jax, phases, setting, complaint
):
  done = flan_jax("train", *RECIPE, f"--gin.{setting}", status=2)
  assert re.search(complaint, done.stderr), done.stderr
  assert not (phases / "runs").exists()


def test_a_macro_that_other_phases_have_alone_is_told(flan_jax, phases):
  with (phases / "phases.gin").open("a") as file:
    file.write("train.keep = %KEPT\npretrain/KEPT = 1\nadapt/KEPT = 2\n")
  done = flan_jax("train", *RECIPE, status=2)
  assert "the phase 'tune' has no KEPT, which train.keep takes; it is set for adapt" in done.stderr


@pytest.mark.slow
def test_a_phase_that_another_one_has_begun_from_is_not_trained_on(flan_jax, phases):
  flan_jax("train", *RECIPE)
  before = digests(flan_jax, "runs/tuned/tune")
  done = flan_jax("train", *RECIPE, "--gin.adapt/STEPS=8", status=2)
  assert "runs/tuned/tune has begun from step 4 of runs/tuned/adapt" in done.stderr
  assert digests(flan_jax, "runs/tuned/tune") == before
  more = 'PHASES=("pretrain", "again", "adapt", "tune")'
  done = flan_jax("train", *RECIPE, f"--gin.{more}", "--gin.again/MIXTURE=spans", status=2)
  assert "runs/tuned/adapt has begun from step 0 of runs/tuned/again" in done.stderr


def test_validation_needs_a_dataset_with_that_split(flan_jax, folder):
  done = flan_jax(
    "train",
    "--module",
    "tasks.py",
    "--gin_file=check.gin",
    "--gin.VALIDATION_BATCHES=1",
    status=2,
  )
  assert (
    "unknown split 'validation'. Known: test, train. They are those of the mixture tickets_only"
    in done.stderr
  )


@pytest.mark.slow
def test_a_launch_that_is_killed_in_its_second_phase_goes_on_to_the_same_bits(flan_jax, phases):
  def command(run_dir):
    settings = ("--gin.adapt/STEPS=40", f"--gin.RUN_DIR={run_dir}")
    return [sys.executable, "-m", "flan_jax.cli.main", "train", *RECIPE, *settings]

  subprocess.run(command("runs/whole"), check=True, capture_output=True)
  process = subprocess.Popen(command("runs/killed"), stderr=subprocess.DEVNULL)
  log = phases / "runs/killed/adapt/metrics.jsonl"
  while not log.exists() or len(log.read_text().splitlines()) < 5:
    assert process.poll() is None, "the launch ended before it could be killed"
    time.sleep(0.02)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  assert not (phases / "runs/killed/tune").exists()
  done = subprocess.run(command("runs/killed"), check=True, capture_output=True, text=True)
  assert "6 steps, all made: nothing left to train" in done.stderr
  for name, step in (("pretrain", 6), ("adapt", 40), ("tune", 6)):
    whole, killed = (digests(flan_jax, f"runs/{run}/{name}")[step] for run in ("whole", "killed"))
    assert whole == killed
