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


def test_a_run_that_never_begins_is_told(flan_jax):
  done = flan_jax("follow", *FOLLOW, "--gin.follow.patience_minutes=0.001", status=2)
  assert "runs/tuned got no checkpoint in 0.001 minutes" in done.stderr


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(flan_jax, folder):
  command = (sys.executable, "-m", "flan_jax.cli.main")
  follower = subprocess.Popen([*command, "follow", *FOLLOW], stderr=subprocess.PIPE, text=True)
  time.sleep(8)
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3", "--gin.train.keep=9")
  assert follower.wait(timeout=240) == 0, follower.stderr.read()
  assert [line["step"] for line in judged(folder)] == [3, 6]


def test_a_checkpoint_that_goes_before_its_turn_is_passed_over(flan_jax, folder, monkeypatch):
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3")
  (folder / "runs/tuned/checkpoints/3/sizes.json").unlink()
  shutil.rmtree(folder / "runs/tuned/checkpoints/3/params")
  assert "step 3 is passed over" in flan_jax("follow", *FOLLOW).stderr
  assert [line["step"] for line in judged(folder)] == [6]
