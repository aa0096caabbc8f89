"""Thirty steps on packed rows give one loss curve, however they are spread over devices, microbatches and time."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from meshes import MESHES, devices_of, packed_batch
from tiny import FAMILIES

from flan_jax.models import LoraConfig, build_model
from flan_jax.training import optimizers, schedules
from flan_jax.training.config import TrainerConfig
from flan_jax.training.logging import VALIDATION, read_log
from flan_jax.training.lora import AdaptedLoss, Lora
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import make_layout, make_mesh, param_shardings
from flan_jax.training.trainer import Trainer
from flan_jax.training.validation import HeldOutLoss

STEPS, RATE = 30, 1e-2


def _adafactor(model):
  schedule = schedules.constant(RATE)
  return optimizers.adafactor(schedule, model.logical_axes(), min_dim_size_to_factor=1, beta1=0.9)


OPTIMIZERS = {
  "adamw": lambda model: optimizers.adamw(schedules.constant(RATE), weight_decay=0.1, decay=("*",)),
  "adafactor": _adafactor,
  "muon": lambda model: optimizers.muon(schedules.constant(RATE)),
}
ADAPTERS = LoraConfig(4, 8.0, 0.0, False, ("*attention*kernel",), magnitudes=True)


@dataclasses.dataclass(frozen=True)
class Case:
  """What decides a curve and the held-out losses, and below the line what must not.

  Args:
    changed: of the model's configuration.
  """

  family: str
  changed: tuple[tuple[str, object], ...] = ()
  optimizer: str = "adamw"
  loss: tuple[tuple[str, float], ...] = ()
  rows: int = 8
  lora: bool = False
  # --- must not
  mesh: str = "one device"
  accumulation: int = 1
  spread: tuple[tuple[str, object], ...] = ()

  @property
  def alone(self):
    return dataclasses.replace(self, mesh="one device", accumulation=1, spread=())


def curve(case, directory):
  config = dataclasses.replace(FAMILIES[case.family].config, **dict((*case.changed, *case.spread)))
  model = build_model(config)
  lora = Lora(model, ADAPTERS) if case.lora else None
  trained, loss = lora or model, SupervisedLoss(model, tasks=3, **dict(case.loss))
  mesh = MESHES[case.mesh]
  layout = make_layout(model, make_mesh(mesh, jax.devices()[: devices_of(mesh)]))

  unseen = [packed_batch(model.layout, case.rows, seed) for seed in (100, 101)]

  def placed(which, layout):
    made = jax.tree.map(np.asarray, jax.jit(which.init)(jax.random.key(3)))
    return jax.device_put(made, param_shardings(which, layout))

  trainer = Trainer(
    TrainerConfig(
      steps=STEPS,
      batch_size=case.rows,
      accumulation=case.accumulation,
      checkpoint_every=1000,
      progress=False,
    ),
    model=trained,
    loss=AdaptedLoss(loss, lora) if lora else loss,
    tx=OPTIMIZERS[case.optimizer](trained),
    schedule=schedules.constant(RATE),
    layout=layout,
    batches=lambda row: (
      packed_batch(model.layout, case.rows, seed) for seed in itertools.cycle(range(7))
    ),
    directory=directory,
    held_out=None if lora else HeldOutLoss(loss, lambda: unseen, case.rows, layout),
    load=lambda layout, key: placed(trained, layout),
  )
  trainer.run(frozen=placed(model, layout) if lora else None)
  judged = [] if lora else read_log(directory, VALIDATION)
  return [record["loss"] for record in (*read_log(directory), *judged)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  return functools.cache(lambda case: curve(case, tmp_path_factory.mktemp("alone")))


def cases():
  """Every mesh, and what could be cut wrongly on the two that cut most."""
  for family in FAMILIES:
    base, many = Case(family), Case(family, rows=64)
    tied = FAMILIES[family].config.tied_embeddings
    yield from (dataclasses.replace(base, mesh=mesh) for mesh in MESHES if mesh != "one device")
    yield from (dataclasses.replace(many, accumulation=count) for count in (2, 4, 8))
    yield dataclasses.replace(many, accumulation=8, mesh="fsdp=8")
    for spread in (("scan_layers", False), ("remat", "full"), ("remat", "dots")):
      yield dataclasses.replace(base, spread=(spread,))
      yield dataclasses.replace(base, spread=(spread,), mesh="data=2,fsdp=2,tensor=2")
    for mesh in ("data=2,fsdp=2,tensor=2", "sequence=2,fsdp=4"):
      yield Case(family, optimizer="adafactor", mesh=mesh)
      yield Case(family, optimizer="muon", mesh=mesh)
      yield Case(family, loss=(("z_loss", 1e-3), ("label_smoothing", 0.1)), mesh=mesh)
      yield Case(family, changed=(("tied_embeddings", not tied), ("vocab_size", 63)), mesh=mesh)
      yield Case(family, lora=True, mesh=mesh)


def name_of(case):
  said = [case.family, case.mesh, f"accumulation={case.accumulation}", case.optimizer]
  told = (*case.changed, *case.loss, *case.spread)
  return " ".join([*said, *(f"{k}={v}" for k, v in told), *(["lora"] if case.lora else [])])


@pytest.mark.scale
@pytest.mark.parametrize("case", list(cases()), ids=name_of)
def test_the_curve_is_that_of_one_device(case, alone, tmp_path):
  losses = curve(case, tmp_path)
  assert len(losses) == STEPS + (0 if case.lora else 2)
  assert losses[28] < losses[0]  # the same batch, four times round
  np.testing.assert_allclose(losses, alone(case.alone), rtol=1e-5)
