"""Adapters through the command line: trained on an earlier run, saved alone, merged when they are used."""

import json
import math
import shutil

import pytest

from flan_jax.checkpoints.saved_arrays import saved_arrays

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")
LORA = (
  *("--gin.MODEL=@lora()", "--gin.lora.model=@tuned()", "--gin.tuned.run_dir=runs/base"),
  *("--gin.lora.rank=2", "--gin.LEARNING_RATE=1e-2", "--gin.RUN_DIR=runs/lora"),
)


def checkpoint(flan_jax, run_dir):
  return json.loads(flan_jax("checkpoints", run_dir, "--json").stdout)[-1]


def scores(report):
  (task,) = json.loads(report.read_text())["tasks"]
  return task["after"]


@pytest.mark.slow
def test_a_run_of_adapters_is_small_goes_on_and_is_judged_merged(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.RUN_DIR=runs/base")
  judged = "--gin.train.evaluation=@evaluation()"
  done = flan_jax("train", *RECIPE, *LORA, judged)
  # Six attentions and four feed-forward layers of the two stacks, at rank 2.
  trained = 2 * (6 * 4 * (32 + 32) + 4 * 3 * (32 + 64))
  assert f"LoRA: {trained:,} of " in done.stderr
  rows = (folder / "runs/lora/metrics.jsonl").read_text().splitlines()
  assert json.loads(rows[-1])["loss"] < json.loads(rows[0])["loss"]
  saved = saved_arrays(folder / "runs/lora/checkpoints/6/params")
  assert trained == sum(math.prod(array.shape) for array in saved.values())
  whole, alone = (checkpoint(flan_jax, f"runs/{name}")["bytes"] for name in ("base", "lora"))
  assert alone < whole / 2

  flan_jax("evaluate", *RECIPE, "--gin.tuned.run_dir=runs/lora")
  untrained = ("--gin.evaluate.model=@lora()", "--gin.lora.model=@tuned()")
  done = flan_jax("evaluate", *RECIPE, "--gin.tuned.run_dir=runs/base", *untrained, status=2)
  assert "@lora() is a model whose adapters are yet to be trained" in done.stderr
  assert scores(folder / "runs/judged/report.json") == scores(folder / "runs/lora/report.json")
  done = flan_jax("train", *RECIPE, *LORA, "--gin.STEPS=8")
  assert "going on from step 6" in done.stderr and checkpoint(flan_jax, "runs/lora")["step"] == 8
  done = flan_jax("train", *RECIPE, *LORA, "--gin.STEPS=8", "--gin.lora.alpha=1", status=2)
  assert "another LoRA scale (16.0, not 0.5)" in done.stderr


@pytest.mark.slow
def test_a_phase_of_adapters_is_merged_into_what_the_phase_before_left_or_nothing(flan_jax, folder):
  phases = ("--gin.PHASES=('whole', 'adapters')", "--gin.adapters/train.model=@lora()")
  short = ("--gin.STEPS=2", "--gin.WARMUP_STEPS=0", "--gin.RUN_DIR=runs/two")
  flan_jax("train", *RECIPE, *phases, *short, "--gin.lora.model=@scratch()", "--gin.lora.rank=2")
  was = checkpoint(flan_jax, "runs/two/whole")["digest"]
  description = folder / "runs/two/adapters/model.json"
  about = json.loads(description.read_text())
  assert about["base"]["from"] == "tuned" and about["base"]["fingerprint"] == was
  evaluate = ("evaluate", *RECIPE, "--gin.tuned.run_dir=runs/two/adapters")
  about["base"]["fingerprint"] = "of another"
  description.write_text(json.dumps(about))
  done = flan_jax(*evaluate, status=2)
  assert f"step 2 has changed since: it was of another, and is {was}" in done.stderr
  shutil.rmtree(folder / "runs/two/whole")
  done = flan_jax(*evaluate, status=2)
  assert "runs/two/adapters holds adapters, and their base is gone" in done.stderr


@pytest.mark.parametrize(
  ("model", "words"),
  [
    ("@scratch()", "fresh parameters cannot be opened again"),
    ("%MODEL", "is defined by itself: %MODEL = @lora() = %MODEL"),
  ],
)
def test_adapters_need_a_base_that_can_be_opened_again(flan_jax, model, words):
  bindings = ("--gin.MODEL=@lora()", f"--gin.lora.model={model}")
  done = flan_jax("train", *RECIPE, *bindings, status=2)
  assert words in done.stderr
