"""The TPU compiler, without a TPU, on launches that a user would make: `make test-tpu-compiler`."""

from importlib.util import find_spec

import pytest

import flan_jax.jobs.configurables  # noqa: F401  what recipes name
from flan_jax.jobs.compiled_plan import compiled_plans
from flan_jax.jobs.plan import make_plans
from flan_jax.training.devices import DEVICES

pytestmark = [
  pytest.mark.slow,
  pytest.mark.tpu_compiler,
  pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: make test-tpu-compiler"
  ),
]
V5E = DEVICES["v5e"]
DECODER = ("LENGTHS={'inputs': 1536, 'targets': 512}", "LEARNING_RATE=3e-5")
T5 = ("LENGTHS={'inputs': 512, 'targets': 128}",)
ADAMW = ("WARMUP_STEPS=10",)


def launch(model, mesh, rows, *bindings, optimizer=None):
  files = ["recipes/flan2021.gin", f"models/{model}.gin", f"meshes/{mesh}.gin"]
  if optimizer:
    files.append(f"optimizers/{optimizer}.gin")
  return files, ("VOCABULARY_PATH=none.model", f"BATCH_SIZE={rows}", *bindings)


LAUNCHES = {
  "7B on 64, fsdp, AdamW": (
    64,
    launch("decoder_7b", "fsdp", 64, *DECODER, *ADAMW, optimizer="adamw"),
  ),
  "7B on 64, tensor 4, AdamW": (
    64,
    launch("decoder_7b", "pod", 64, *DECODER, *ADAMW, optimizer="adamw"),
  ),
  "1B on 8, fsdp": (8, launch("decoder_1b", "fsdp", 16, *DECODER)),
  "T5 large on 8, fsdp": (8, launch("t5_1_1_large", "fsdp", 64, *T5)),
  "T5 xl on 8, tensor 2": (8, launch("t5_1_1_xl", "fsdp_tensor", 32, *T5)),
  "T5 xl on 64, fsdp, long": (
    64,
    launch("t5_1_1_xl", "fsdp", 64, "LENGTHS={'inputs': 2048, 'targets': 512}"),
  ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_plan_is_within_15_percent_of_the_compilers_peak(name):
  devices, (files, bindings) = LAUNCHES[name]
  [plan] = make_plans(files, bindings, V5E, devices)
  [compiled] = compiled_plans(files, bindings, V5E, devices)
  assert plan.memory.total == pytest.approx(compiled.peak, rel=0.15)


SHORT = ("LENGTHS={'inputs': 384, 'targets': 128}",)
MESHES = ("single", "fsdp", "fsdp_tensor", "megatron", "pod")


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
  ("model", "bindings"),
  [
    ("t5_1_1_small", SHORT),
    ("decoder_1b", SHORT),
    ("decoder_1b", (*SHORT, "decoder.attention='splash'")),
  ],
  ids=["t5", "decoder", "decoder with splash"],
)
def test_every_mesh_preset_compiles_for_64_chips_and_nothing_is_gathered_by_surprise(
  mesh, model, bindings, capsys
):
  # Of T5 small's 6 heads no more than 2 shares can be made.
  cut = mesh in ("fsdp_tensor", "megatron", "pod")
  tensor = ("TENSOR=2",) if model == "t5_1_1_small" and cut else ()
  files, given = launch(model, mesh, 64, *bindings, *tensor)
  [compiled] = compiled_plans(files, given, V5E, 64)
  assert compiled.peak > 0
  assert "full rematerialization" not in capsys.readouterr().err
