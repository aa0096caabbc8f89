"""What was trained goes out, as a model or as adapters, and others find in it what we found."""

import json

import jax
import numpy as np
import pytest

import flan_jax as library
from flan_jax.jobs.models import pretrained, tuned
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh

RECIPE = ("--module=tasks.py", "--gin_file=check.gin")
CONVERT = ("--gin_file=models/tuned.gin", "--gin_file=runs/convert.gin")
LORA = ("--gin.MODEL=@lora()", "--gin.lora.model=@tuned()", "--gin.lora.rank=2")
SMOLLM2 = "--gin_file=models/smollm2_135m.gin"
FEW_STEPS = ("--gin.STEPS=2", "--gin.WARMUP_STEPS=0")


def test_a_run_goes_out_as_a_folder_with_its_card(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.train.evaluation=@evaluation()")
  flan_jax("convert", *CONVERT, "--gin.RUN_DIR=runs/tuned", "--gin.FOLDER=out/model")
  found, ids = library.load("out/model"), [[5, 6, 7, 1]]
  params = loaded(tuned("runs/tuned"))
  want = tuned("runs/tuned").model.logits(
    params, {"encoder_input_tokens": np.array(ids), "decoder_input_tokens": np.array([[0, 9]])}
  )
  np.testing.assert_allclose(found.logits(ids, None, [[0, 9]]), want, atol=1e-5)
  assert found.tokenizer.fingerprint == tuned("runs/tuned").vocabulary.fingerprint
  card = (folder / "out/model/README.md").read_text()
  assert "library_name: transformers" in card and "mixture `tickets_only`, 6 steps" in card
  assert "| tickets | accuracy | 8 |" in card
  done = flan_jax(
    "convert", *CONVERT, "--gin.RUN_DIR=runs/tuned", "--gin.FOLDER=out/model", status=2
  )
  assert "out/model exists" in done.stderr
  adapters = ("--gin.FOLDER=out/adapters", "--gin.convert.adapters=True")
  done = flan_jax("convert", *CONVERT, "--gin.RUN_DIR=runs/tuned", *adapters, status=2)
  assert (
    "runs/tuned, step 6 has no adapters" in done.stderr and not (folder / "out/adapters").exists()
  )


@pytest.mark.slow
def test_adapters_go_out_merged_or_alone(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.RUN_DIR=runs/base")
  base = ("--gin.tuned.run_dir=runs/base", "--gin.RUN_DIR=runs/lora")
  flan_jax("train", *RECIPE, *LORA, *base, "--gin.LEARNING_RATE=1e-1", "--gin.lora.magnitudes=True")
  for run in ("base", "lora"):
    flan_jax("convert", *CONVERT, f"--gin.RUN_DIR=runs/{run}", f"--gin.FOLDER=out/{run}")
  alone = (
    "--gin.FOLDER=out/adapters",
    "--gin.convert.adapters=True",
    "--gin.convert.base=out/base",
  )
  flan_jax("convert", *CONVERT, "--gin.RUN_DIR=runs/lora", *alone)
  about = json.loads((folder / "out/adapters/adapter_config.json").read_text())
  assert about["base_model_name_or_path"] == "out/base" and about["use_dora"]
  assert "library_name: peft" in (folder / "out/adapters/README.md").read_text()
  merged, joined = library.load("out/lora"), library.load("out/base", adapters="out/adapters")
  plain = library.load("out/base")
  said = [
    np.asarray(model.logits([[5, 6, 7, 1]], None, [[0, 9]])) for model in (merged, joined, plain)
  ]
  np.testing.assert_allclose(said[0], said[1], atol=1e-5)
  assert np.abs(said[0] - said[2]).max() > 1e-2
  rates = [
    pretrained("out/base", **dropout).model.config.dropout_rate
    for dropout in ({}, {"dropout_rate": 0.2})
  ]
  assert rates == [0.0, 0.2]


@pytest.mark.oracle
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_transformers_and_peft_find_our_evaluation_in_what_we_wrote(flan_jax, folder):
  torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
  from transformers import AutoModelForCausalLM, AutoTokenizer

  flan_jax("convert", SMOLLM2, "--gin_file=runs/convert.gin", "--gin.FOLDER=out/base")
  lora = ("--gin.train.model=@lora()", "--gin.lora.model=@pretrained()", "--gin.lora.rank=4")
  judged = "--gin.train.evaluation=@evaluation()"
  flan_jax("train", *RECIPE, SMOLLM2, *FEW_STEPS, *lora, judged, "--gin.LEARNING_RATE=1e-2")
  flan_jax("convert", *CONVERT, "--gin.RUN_DIR=runs/tuned", "--gin.FOLDER=out/merged")
  alone = (
    "--gin.FOLDER=out/adapters",
    "--gin.convert.adapters=True",
    "--gin.convert.base=out/base",
  )
  flan_jax("convert", *CONVERT, "--gin.RUN_DIR=runs/tuned", *alone)

  package, written = (tuned("runs/tuned"), library.load("out/merged"))
  text = "Ticket 3: the printer is on fire.\nWho takes it?"
  tokenizer = AutoTokenizer.from_pretrained("out/merged")
  assert package.vocabulary.encode(text) == written.tokenizer.encode(text) == tokenizer.encode(text)
  theirs = [
    AutoModelForCausalLM.from_pretrained("out/merged").eval(),
    peft.PeftModel.from_pretrained(
      AutoModelForCausalLM.from_pretrained("out/base"), "out/adapters"
    ),
  ]
  lines = [json.loads(line) for line in (folder / "runs/tuned/examples.jsonl").open()]
  assert len(lines) >= 8
  for line in lines[:8]:
    for option, want in zip(line["option_ids"], line["scores"], strict=True):
      ids = torch.tensor([[*line["input_ids"], *option]])
      for model in theirs:
        with torch.no_grad():
          said = torch.log_softmax(model.eval()(ids).logits[0, -len(option) - 1 : -1], -1)
        total = said[torch.arange(len(option)), torch.tensor(option)].sum().item()
        np.testing.assert_allclose(total, want, atol=2e-3)


def loaded(source):
  return source.load(make_layout(source.model, make_mesh(MeshConfig())), jax.random.key(0))
