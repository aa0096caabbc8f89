"""Moving averages of the parameters, from the run that makes them to whoever opens its checkpoints."""

import itertools

import jax
import numpy as np
import pytest
import run_tiny
from tiny import TABLE, assert_trees_close, assert_trees_equal, batch_of

from flan_jax.checkpoints import Checkpoints
from flan_jax.errors import CheckpointError
from flan_jax.training import optimizers, schedules
from flan_jax.training.averages import averaged_params

SKIPPED = 3


def batches(row):
  """The fourth of them weighs nothing."""
  while True:
    batch = batch_of(rows=run_tiny.ROWS, tasks=run_tiny.TASKS, seed=row)
    if row == SKIPPED * run_tiny.ROWS:
      batch["decoder_loss_weights"] *= 0
    yield batch
    row += run_tiny.ROWS


def trainer(directory, steps=6, **settings):
  schedule = schedules.constant(1e-2)
  return run_tiny.make_trainer(
    directory,
    tx=optimizers.adamw(schedule, **settings),
    schedule=schedule,
    batches=batches,
    config={"steps": steps, "checkpoint_every": 1, "keep": None, "progress": False},
    say=lambda text: None,
  )


AVERAGED = {"ema_decay": 0.9, "multipliers": {"out": 0.0}}


def saved(directory, step):
  """Parameters and averages of one step."""
  shapes = jax.eval_shape(TABLE.init, jax.random.key(0))
  checkpoints = Checkpoints(directory / "checkpoints")
  return (
    checkpoints.restore_params(shapes, step)[0],
    checkpoints.restore_averages(shapes, step)[0],
  )


def test_every_update_moves_the_averages_and_a_skipped_step_does_not(tmp_path):
  trainer(tmp_path, **AVERAGED).run()
  steps = [saved(tmp_path, step) for step in range(1, 7)]
  for number, ((_, before), (params, average)) in enumerate(itertools.pairwise(steps), start=1):
    want = before["table"] if number == SKIPPED else 0.9 * before["table"] + 0.1 * params["table"]
    np.testing.assert_allclose(average["table"], want, rtol=1e-5, atol=1e-7)
    assert np.any(average["table"] != params["table"])
    np.testing.assert_array_equal(average["out"], params["out"])  # frozen: none is kept


def test_a_run_that_goes_on_ends_with_the_averages_of_one_that_never_stopped(tmp_path):
  whole = trainer(tmp_path / "whole", **AVERAGED).run().state
  trainer(tmp_path / "parted", steps=2, **AVERAGED).run()
  parted = trainer(tmp_path / "parted", **AVERAGED).run()
  assert parted.resumed_from == 2
  assert_trees_equal(parted.state.opt_state, whole.opt_state)
  last = saved(tmp_path / "parted", 6)[1]
  assert_trees_close(last, averaged_params(whole.opt_state, whole.params), rtol=0, atol=0)


def test_without_averages_in_a_checkpoint_its_parameters_are_taken(tmp_path):
  trainer(tmp_path, steps=1).run()
  assert_trees_equal(*saved(tmp_path, 1))


def test_a_run_that_kept_no_averages_cannot_go_on_with_them(tmp_path):
  trainer(tmp_path, steps=1).run()
  with pytest.raises(CheckpointError, match="keeps no averages: it was saved under other settings"):
    trainer(tmp_path, steps=2, ema_decay=0.9).run()
