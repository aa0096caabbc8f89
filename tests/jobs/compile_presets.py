"""Compiles a training step and the held-out loss on eight CPU devices: compile_presets.py GIN_FILE... [--plain_lookup]

Each GIN_FILE is a launch of `train`; --plain_lookup looks embeddings up as JAX itself would. What the
compiler thinks of it stands on stderr.
"""

import sys

import jax
import jax.numpy as jnp

import flan_jax.jobs.configurables  # noqa: F401  what gin files name
from flan_jax.jobs.compiled_plan import compile_step
from flan_jax.jobs.plan import setups
from flan_jax.models import layers
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import make_mesh, param_shardings
from flan_jax.training.validation import HeldOutLoss


def compile_launch(file):
  for setup in setups([file], []):
    compile_step(setup, jax.devices(), "CPU")
    work, layout = setup.work, setup.layout(make_mesh(setup.mesh))
    names = {"decoder": work.length, "encoder": work.inputs}
    batch = {
      f"{side}_{name}": jnp.zeros((work.rows, length), jnp.int32)
      for side, length in names.items()
      for name in ("input_tokens", "segment_ids", "positions")
      if length
    }
    batch["decoder_target_tokens"] = batch["decoder_input_tokens"]
    batch["decoder_loss_weights"] = jnp.ones((work.rows, work.length), jnp.float32)
    with layout.active():
      shardings = param_shardings(setup.model, layout)
      params = jax.jit(setup.model.init, out_shardings=shardings)(jax.random.key(0))
      HeldOutLoss(SupervisedLoss(setup.model), lambda: [batch], work.rows, layout)(params)  # noqa: B023


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  *files, last = sys.argv[1:]
  if last == "--plain_lookup":
    layers.embed_tokens = lambda table, tokens, dtype, rows="vocab": layers.constrain(
      table.astype(dtype)[tokens], "batch", "length", None
    )
  else:
    files.append(last)
  for each in files:
    compile_launch(each)
