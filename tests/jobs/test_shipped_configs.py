"""Every gin file of the library is one that some launch takes."""

import pytest

import flan_jax.jobs.configurables  # noqa: F401
from flan_jax.jobs.gin_files import CONFIG_DIRECTORY
from flan_jax.jobs.launch import configure

IO = ("INPUT_FILE=prompts.txt", "OUTPUT_FILE=answers.jsonl")
FOLLOW = ("RUN_DIR=runs/t5", "OUT_DIR=out", "MIXTURE=mini", "LENGTHS={'inputs': 64, 'targets': 8}")
RECIPE = "recipes/t5_tiny.gin"


def launches():
  """(job, gin files, bindings), in which each shipped file occurs."""
  yield "train", ("recipes/quickstart.gin",), ()
  yield "train", ("recipes/quickstart_lora.gin",), ()
  yield "train", (RECIPE,), ()
  for recipe in ("flan2021", "flan_t5", "t0"):
    yield "train", (f"recipes/{recipe}.gin",), ("INITIAL_CHECKPOINT=folder",)
  yield "train", ("recipes/quickstart.gin", "models/t5_tiny.gin"), ()
  yield "prepare", ("recipes/quickstart.gin",), ()
  for recipe in ("mini", "t0", "flan", "bigbench", "mmlu"):
    yield "evaluate", (f"recipes/{recipe}_eval.gin",), ()
  yield "follow", ("meshes/single.gin", "runs/follow.gin"), FOLLOW
  yield "infer", ("models/smollm2_135m.gin", "runs/infer.gin"), IO
  yield "infer", ("models/tuned.gin", "runs/infer.gin"), (*IO, "RUN_DIR=runs/quickstart")
  yield (
    "infer",
    ("models/tuned.gin", "runs/infer_mixture.gin"),
    ("OUTPUT_FILE=answers.jsonl", "RUN_DIR=runs/quickstart", "MIXTURE=mini without sentiment"),
  )
  yield "convert", ("models/tuned.gin", "runs/convert.gin"), ("RUN_DIR=runs/t5", "FOLDER=out")
  yield (
    "train_vocabulary",
    ("runs/train_vocabulary.gin",),
    ("MIXTURE=mini", "VOCABULARY=runs/words"),
  )
  for folder in ("models", "optimizers", "meshes"):
    for path in sorted((CONFIG_DIRECTORY / folder).glob("*.gin")):
      if path.stem in ("t5_1_1", "decoder"):  # what their sizes share
        continue
      needs = {
        "t5_1_1_": ("VOCABULARY_PATH=spiece.model",),
        "decoder_": ("VOCABULARY_PATH=spiece.model",),
        "tuned": ("tuned.run_dir=runs/t5",),
        "pretrained": ("INITIAL_CHECKPOINT=folder",),
      }
      bindings = next((given for name, given in needs.items() if path.stem.startswith(name)), ())
      yield "train", (RECIPE, f"{folder}/{path.name}"), bindings


@pytest.mark.parametrize(("job", "files", "bindings"), list(launches()), ids=str)
def test_a_shipped_launch_is_accepted(job, files, bindings):
  configure(job, files, bindings)
