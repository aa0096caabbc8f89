"""No shipped mesh makes XLA give an array up to every device in order to cut it anew."""

import subprocess
import sys
from pathlib import Path

import pytest

from flan_jax.jobs.gin_files import CONFIG_DIRECTORY

PRESETS = {
  path.stem: f'include "meshes/{path.name}"' for path in (CONFIG_DIRECTORY / "meshes").glob("*.gin")
}
ALL_AXES = """
MESH = @mesh()
mesh.data = 2
mesh.fsdp = 2
mesh.tensor = 2
"""
COMPILE = Path(__file__).parent / "compile_presets.py"
WARNING = "Involuntary full rematerialization"
LAUNCH = """
include "optimizers/adamw.gin"
include "runs/train.gin"
{mesh}
MODEL = @scratch()
scratch.vocabulary = @byte_vocabulary()
MIXTURE = "mini_short"
LENGTHS = {{"inputs": 32, "targets": 32}}
BATCH_SIZE = 16
STEPS = 2
WARMUP_STEPS = 1
LEARNING_RATE = 1e-3
RUN_DIR = "runs/none"
"""
FAMILIES = {
  "encoder_decoder": """
scratch.architecture = @encoder_decoder()
encoder_decoder.vocab_size = 384
encoder_decoder.emb_dim = 64
encoder_decoder.num_heads = 4
encoder_decoder.head_dim = 16
encoder_decoder.num_encoder_layers = 2
encoder_decoder.num_decoder_layers = 2
encoder_decoder.mlp_dim = 128
""",
  "decoder": """
scratch.architecture = @decoder()
decoder.vocab_size = 384
decoder.emb_dim = 64
decoder.num_heads = 4
decoder.num_kv_heads = 2
decoder.head_dim = 16
decoder.num_layers = 2
decoder.mlp_dim = 128
""",
}


def compilers_log(folder, family, meshes, *options):
  files = []
  for name, mesh in meshes.items():
    files.append(folder / f"{name}.gin")
    files[-1].write_text(LAUNCH.format(mesh=mesh) + FAMILIES[family])
  program = [sys.executable, COMPILE, *files, *options]
  done = subprocess.run(program, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stderr


@pytest.mark.scale
def test_the_compilers_log_has_the_warning_where_there_is_reason_for_it(tmp_path):
  assert WARNING in compilers_log(tmp_path, "decoder", {"all": ALL_AXES}, "--plain_lookup")


@pytest.mark.scale
@pytest.mark.parametrize("family", FAMILIES)
def test_no_shipped_mesh_is_warned_of(family, tmp_path):
  assert {"single", "fsdp", "fsdp_tensor"} <= set(PRESETS)
  assert WARNING not in compilers_log(tmp_path, family, {"all": ALL_AXES, **PRESETS})
