"""Adapters through the command line: trained on an earlier run, saved alone, merged when they are used."""

import json
import shutil

import pytest

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")
LORA = (
  *("--gin.MODEL=@lora()", "--gin.lora.model=@tuned()", "--gin.tuned.run_dir=runs/base"),
  *("--gin.lora.rank=2", "--gin.LEARNING_RATE=1e-2", "--gin.RUN_DIR=runs/lora"),
)


@pytest.fixture
def base(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.RUN_DIR=runs/base")
  return folder / "runs/base"


def checkpoint(flan_jax, run_dir):
  return json.loads(flan_jax("checkpoints", run_dir, "--json").stdout)[-1]


def scores(report):
  (task,) = json.loads(report.read_text())["tasks"]
  return task["after"]


def test_a_run_of_adapters_is_small_goes_on_and_is_judged_merged(flan_jax, folder, base):
  judged = "--gin.train.evaluation=@evaluation()"
  done = flan_jax("train", *RECIPE, *LORA, judged)
  # Six attentions and four feed-forward layers of the two stacks, at rank 2.
  trained = 2 * (6 * 4 * (32 + 32) + 4 * 3 * (32 + 64))
  assert f"LoRA: {trained:,} of " in done.stderr
  rows = (folder / "runs/lora/metrics.jsonl").read_text().splitlines()
  assert json.loads(rows[-1])["loss"] < json.loads(rows[0])["loss"]
  whole, alone = (checkpoint(flan_jax, f"runs/{name}")["bytes"] for name in ("base", "lora"))
  assert 3 * 4 * trained < alone < 3 * 4 * trained + whole / 4

  flan_jax("evaluate", *RECIPE, "--gin.tuned.run_dir=runs/lora")
  assert scores(folder / "runs/judged/report.json") == scores(folder / "runs/lora/report.json")
  done = flan_jax("train", *RECIPE, *LORA, "--gin.STEPS=8")
  assert "going on from step 6" in done.stderr and checkpoint(flan_jax, "runs/lora")["step"] == 8
  done = flan_jax("train", *RECIPE, *LORA, "--gin.STEPS=8", "--gin.lora.alpha=1", status=2)
  assert "another LoRA scale (16.0, not 0.5)" in done.stderr


def test_adapters_whose_base_has_changed_or_is_gone_are_not_merged(flan_jax, folder, base):
  flan_jax("train", *RECIPE, *LORA, "--gin.STEPS=2", "--gin.WARMUP_STEPS=0")
  evaluate = ("evaluate", *RECIPE, "--gin.tuned.run_dir=runs/lora")
  about = json.loads((folder / "runs/lora/model.json").read_text())
  was = json.loads(flan_jax("checkpoints", "runs/base", "--json").stdout)[-1]["digest"]
  assert about["base"]["fingerprint"] == was
  about["base"]["fingerprint"] = "of another"
  (folder / "runs/lora/model.json").write_text(json.dumps(about))
  done = flan_jax(*evaluate, status=2)
  assert f"step 6 has changed since: it was of another, and is {was}" in done.stderr
  shutil.rmtree(base)
  done = flan_jax(*evaluate, status=2)
  assert "runs/lora holds adapters, and their base is gone" in done.stderr


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
