"""A run is judged beside it, while it trains."""

import json
import shutil
import subprocess
import sys
import time

import pytest

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")
FOLLOW = (*RECIPE, "--gin_file=runs/follow.gin", "--gin.OUT_DIR=runs/followed")


def judged(folder):
  path = folder / "runs/followed/evaluation.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_checkpoint_that_is_there_is_judged_once(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3")
  flan_jax("follow", *FOLLOW)
  assert [line["step"] for line in judged(folder)] == [3, 6]
  first = judged(folder)
  for step in (3, 6):
    report = json.loads((folder / f"runs/followed/{step}/report.json").read_text())
    assert report["tasks"][0]["after"] == first[step // 3 - 1]["tasks"]["tickets"]
  assert "Judged meanwhile" in (folder / "runs/followed/report.html").read_text()
  flan_jax("follow", *FOLLOW)
  assert judged(folder) == first


def test_the_held_out_loss_is_the_one_that_the_run_takes_itself(flan_jax, folder):
  splits = "{train: 0.8, test: 0.2}", "{train: 0.6, validation: 0.2, test: 0.2}"
  tickets = folder / "support/tickets.yaml"
  tickets.write_text(tickets.read_text().replace(*splits))
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3", "--gin.train.validation_batches=2")
  beside = ("--gin.follow.data=@data()", "--gin.follow.validation_batches=2")
  flan_jax("follow", *FOLLOW, *beside)
  own, taken = (
    [json.loads(line) for line in (folder / run / "validation.jsonl").read_text().splitlines()]
    for run in ("runs/tuned", "runs/followed")
  )
  assert [line["step"] for line in taken] == [3, 6]
  assert taken == [line for line in own if line["step"]]


def test_a_held_out_loss_wants_the_data_of_the_run(flan_jax, folder):
  several = "--gin.follow.validation_batches=2"
  done = flan_jax("follow", *FOLLOW, several, status=2)
  assert "follow.validation_batches=2 needs follow.data=@data()" in done.stderr
  flan_jax("train", *RECIPE)
  otherwise = (
    "--gin.follow.data=@data()",
    "--gin.data.separator=' // '",
    "--gin.data.eos_on_inputs=True",
  )
  done = flan_jax("follow", *FOLLOW, several, *otherwise, status=2)
  assert "was tuned on prompts that were written otherwise" in done.stderr


def test_a_run_that_never_begins_is_told(flan_jax):
  done = flan_jax("follow", *FOLLOW, "--gin.follow.patience_minutes=0.001", status=2)
  assert "runs/tuned got no checkpoint in 0.001 minutes" in done.stderr


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(flan_jax, folder):
  command = (sys.executable, "-m", "flan_jax.cli.main")
  follower = subprocess.Popen([*command, "follow", *FOLLOW], stderr=subprocess.PIPE, text=True)
  time.sleep(8)
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3", "--gin.train.keep=9")
  _, errors = follower.communicate(timeout=240)
  assert follower.returncode == 0, errors
  assert [line["step"] for line in judged(folder)] == [3, 6]


def test_a_checkpoint_that_goes_before_its_turn_is_passed_over(flan_jax, folder, monkeypatch):
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3")
  (folder / "runs/tuned/checkpoints/3/sizes.json").unlink()
  shutil.rmtree(folder / "runs/tuned/checkpoints/3/params")
  assert "step 3 is passed over" in flan_jax("follow", *FOLLOW).stderr
  assert [line["step"] for line in judged(folder)] == [6]
