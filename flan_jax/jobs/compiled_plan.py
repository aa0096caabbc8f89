"""`flan-jax plan --compile`: what the compiler says of a step, on devices that are not there.

It runs in a process of its own, for devices have to be faked before JAX looks for any. TPUs and GPUs have compilers of
their own, which are asked if they are installed.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flan_jax.errors import ConfigError
from flan_jax.jobs.fake_devices import WITHOUT_DEVICES, check_compiler, fake_devices
from flan_jax.jobs.plan import Setup, setups
from flan_jax.training.devices import Device, parse_devices
from flan_jax.training.lora import AdaptedLoss
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import (
  Layout,
  batch_shardings,
  check_kernels,
  make_mesh,
  param_shardings,
)
from flan_jax.training.step import abstract_state, make_train_step


class Compiled(NamedTuple):
  """What the compiler says of one device, in bytes and FLOPs.

  Args:
    arguments: parameters, optimizer state and batch, which the step is called with.
    temporary: what it needs beside them at the peak.
    flops: of one pass through the program: the body of a loop counts once, however often it runs; None: it does
      not say.
    seconds: that compiling took.
  """

  compiler: str
  arguments: int
  temporary: int
  flops: float | None
  seconds: float

  @property
  def peak(self) -> int:
    return self.arguments + self.temporary


def compiled_plans(
  files: Sequence[str], bindings: Sequence[str], device: Device, devices: int
) -> list[Compiled]:
  """For each phase of a launch, in the order of `make_plans`.

  Raises:
    ConfigError: the compiler is not installed, devices that it does not know, or it gave up; its last words are told.
  """
  check_compiler(device, devices)
  asked = json.dumps([f"{device.name}-{devices}", list(files), list(bindings)])
  done = subprocess.run(
    [sys.executable, "-m", __name__, asked],
    capture_output=True,
    text=True,
    env={**os.environ, **WITHOUT_DEVICES},
  )
  if done.returncode:
    errors = [
      line for line in done.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception): ", line)
    ]
    words = (errors or done.stderr.splitlines() or ["it said nothing"])[-1]
    kind, _, own = words.partition(": ")
    if kind == f"{ConfigError.__module__}.{ConfigError.__name__}":
      raise ConfigError(own)
    if "cuDNN not found" in words:
      words += " cuDNN compiles its attention itself: pip install nvidia-cudnn-cu13, or set attention='flash'."
    raise ConfigError(f"the compiler gave up on this launch: {words[:600]}")
  # A layout that no collective leads to: the compiler gathers the whole array instead.
  surprises = (line for line in done.stderr.splitlines() if "full rematerialization" in line)
  sys.stderr.writelines(f"the compiler warns: {line}\n" for line in surprises)
  return [Compiled(*each) for each in json.loads(done.stdout.splitlines()[-1])]


def program_of(setup: Setup, fake: Sequence[jax.Device]) -> jax.stages.Compiled:
  """One training step, compiled for devices that it will never run on."""
  mesh = make_mesh(setup.mesh, fake)
  check_kernels(setup.model.config, mesh)
  layout = setup.layout(mesh)
  step, arguments = _lowerable(setup, layout)
  # Devices that are not there cannot be given the constants that tracing makes on the way.
  with (
    jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh),
    nn.logical_axis_rules(layout.rules),
  ):
    return step.lower(*arguments).compile()


def compile_step(setup: Setup, fake: Sequence[jax.Device], compiler: str) -> Compiled:
  """What the compiler of that name says of `program_of`."""
  begun = time.perf_counter()
  made = program_of(setup, fake)
  memory: Any = made.memory_analysis()
  costs = made.cost_analysis() or {}
  if fake[0].platform == "tpu":
    # Its `temp_size_in_bytes` counts what never exists together, as the CPU's peak leaves loops out.
    temporary = memory.peak_memory_in_bytes - memory.argument_size_in_bytes
  else:
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Compiled(
    compiler,
    memory.argument_size_in_bytes,
    temporary,
    costs.get("flops"),
    time.perf_counter() - begun,
  )


def _lowerable(setup: Setup, layout: Layout) -> tuple[Any, tuple[Any, ...]]:
  """The step as training makes it, and the shapes that it is called with."""
  tx = setup.optimizer.transformation(setup.trained)
  state = jax.tree.map(_placed, *abstract_state(setup.trained, tx, layout))
  supervised = SupervisedLoss(setup.model, z_loss=setup.z_loss)
  loss = AdaptedLoss(supervised, setup.lora) if setup.lora else supervised
  frozen = None
  if setup.lora:
    frozen = jax.tree.map(_placed, setup.model.shapes(), param_shardings(setup.model, layout))
  step = make_train_step(
    loss,
    tx,
    trained=setup.optimizer.trained,
    accumulation=setup.work.accumulation,
    accumulator_dtype=setup.accumulator_dtype,
    schedule=setup.optimizer.schedule,
    shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
  )
  batch = _batch(setup)
  batch = jax.tree.map(_placed, batch, batch_shardings(batch, layout))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return step, (state, batch, key, frozen)


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the keys that `flan_jax.data.batches` gives a model."""
  work, names = setup.work, ("input_tokens", "segment_ids", "positions")

  def of(length: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((work.rows, length), dtype)

  batch = {f"decoder_{name}": of(work.length) for name in (*names, "target_tokens")}
  batch["decoder_loss_weights"] = of(work.length, jnp.float32)
  if work.inputs:
    batch |= {f"encoder_{name}": of(work.inputs) for name in names}
  if setup.model.bidirectional_inputs:
    batch["decoder_causal_attention"] = of(work.length)
  return batch


def _main(asked: str) -> None:
  import flan_jax.jobs.configurables  # noqa: F401  what gin files name

  kind, files, bindings = json.loads(asked)
  compiler, fake = fake_devices(*parse_devices(kind))
  print(json.dumps([compile_step(setup, fake, compiler) for setup in setups(files, bindings)]))


if __name__ == "__main__":
  _main(sys.argv[1])
