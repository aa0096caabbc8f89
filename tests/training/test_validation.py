"""The held-out loss is that of all its batches as one, and a run logs it once a step."""

import itertools

import jax
import numpy as np
import pytest
from tiny import TABLE, batch_of

from flan_jax.training import optimizers, schedules
from flan_jax.training.config import TrainerConfig
from flan_jax.training.logging import VALIDATION, read_log
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh
from flan_jax.training.trainer import Trainer
from flan_jax.training.validation import HeldOutLoss

BATCHES = [batch_of(seed=100), batch_of(seed=101)]
LOSS = SupervisedLoss(TABLE, tasks=3)


def layout_of(devices=1):
  return make_layout(TABLE, make_mesh(MeshConfig(), jax.devices()[:devices]))


def held_out(layout):
  return HeldOutLoss(LOSS, lambda: BATCHES, 8, layout, ["a", "b", "c"])


@pytest.mark.parametrize("devices", [1, 8])
def test_it_is_the_mean_over_the_tokens_of_all_batches(devices):
  params = TABLE.init(jax.random.key(0))
  layout = layout_of(devices)
  with layout.active():
    found = held_out(layout)(params)
  whole = {name: np.concatenate([b[name] for b in BATCHES]) for name in BATCHES[0]}
  log_probs = jax.nn.log_softmax(TABLE.logits(params, whole))
  targets = whole["decoder_target_tokens"][..., None]
  losses = -np.take_along_axis(np.asarray(log_probs), targets, axis=-1)[..., 0]
  weights = whole["decoder_loss_weights"]
  assert found["loss"] == pytest.approx(float((losses * weights).sum() / weights.sum()), rel=1e-5)
  assert found["terms"] == {"cross_entropy": found["loss"]}
  for number, task in enumerate("abc"):
    own = weights * (whole["task_ids"] == number)
    assert found["tasks"][task] == pytest.approx(float((losses * own).sum() / own.sum()), rel=1e-5)


def test_a_run_logs_it_before_with_every_checkpoint_and_at_the_end_once(tmp_path):
  def run(steps):
    schedule = schedules.constant(1e-2)
    layout = layout_of()
    return Trainer(
      TrainerConfig(steps=steps, batch_size=8, checkpoint_every=2, progress=False),
      model=TABLE,
      loss=LOSS,
      tx=optimizers.adamw(schedule),
      schedule=schedule,
      layout=layout,
      batches=lambda row: (batch_of(rows=8, seed=r) for r in itertools.count(row, 8)),
      directory=tmp_path,
      held_out=held_out(layout),
    ).run()

  run(3)
  final = run(5).state
  log = read_log(tmp_path, VALIDATION)
  assert [line["step"] for line in log] == [0, 2, 3, 4, 5]
  assert log[-1]["loss"] < log[0]["loss"]
  layout = layout_of()
  with layout.active():
    assert held_out(layout)(final.params)["loss"] == log[-1]["loss"]
