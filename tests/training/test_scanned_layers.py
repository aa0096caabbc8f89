"""Layers in a loop or unrolled: the same training with every optimizer, on one device and on eight."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from tiny import FAMILIES, batch_of

from flan_jax.models import build_model
from flan_jax.training import optimizers, schedules
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import (
  MeshConfig,
  make_layout,
  make_mesh,
  param_shardings,
  put_batch,
  state_shardings,
)
from flan_jax.training.step import TrainState, make_train_step

SCHEDULE = schedules.cosine(1e-2, total_steps=30, warmup_steps=5)
SHELF = {
  "adamw": lambda model: optimizers.adamw(SCHEDULE, weight_decay=0.1),
  "adafactor": lambda model: optimizers.adafactor(
    SCHEDULE, model.logical_axes(), min_dim_size_to_factor=8, beta1=0.9
  ),
  "lion": lambda model: optimizers.lion(schedules.constant(1e-3)),
  "muon": lambda model: optimizers.muon(SCHEDULE, weight_decay=0.1),
}


def curve(family, optimizer, scan_layers, devices):
  """Losses of 30 steps."""
  config = FAMILIES[family].config
  model = build_model(dataclasses.replace(config, scan_layers=scan_layers))
  mesh = MeshConfig(data=2, fsdp=2, tensor=2) if devices == 8 else MeshConfig()
  layout = make_layout(model, make_mesh(mesh, jax.devices()[:devices]))
  tx, everywhere = SHELF[optimizer](model), layout.sharding()
  with layout.active():
    shardings = param_shardings(model, layout)
    params = jax.jit(FAMILIES[family].init)(jax.random.key(3))
    of_state = TrainState(shardings, state_shardings(tx, params, shardings), everywhere, everywhere)
    state = jax.device_put(TrainState.create(params, tx), of_state)
    step = make_train_step(SupervisedLoss(model), tx, shardings=of_state)
    losses = []
    for row in itertools.islice(itertools.count(0, 8), 30):
      state, metrics = step(state, put_batch(batch_of(seed=row % 24), layout), jax.random.key(0))
      losses.append(float(metrics["loss"]))
  return losses


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", SHELF)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_curve_does_not_depend_on_how_the_layers_are_run(family, optimizer):
  scanned = curve(family, optimizer, True, 1)
  assert scanned[-1] < scanned[0]
  for scan_layers, devices in ((False, 1), (True, 8), (False, 8)):
    losses = curve(family, optimizer, scan_layers, devices)
    np.testing.assert_allclose(
      losses, scanned, rtol=1e-5, err_msg=f"scan_layers={scan_layers}, {devices} devices"
    )
