"""Steps that are skipped: what they leave, how they are counted, and when they stop a run."""

import dataclasses
import itertools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_tiny
from tiny import DECODER, ENCODER_DECODER, FAMILIES, TABLE, assert_trees_equal, batch_of

from flan_jax.checkpoints import Checkpoints, Keep
from flan_jax.errors import ConfigError, TrainingError
from flan_jax.models import build_model
from flan_jax.training.config import TrainerConfig
from flan_jax.training.logging import read_log
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.not_finite import ForwardPass, not_finite
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, put_batch
from flan_jax.training.saved_state import parts_of

ROWS = run_tiny.ROWS
SPIKES = {"spike_window": 4, "spike_sigmas": 8.0}
# Divided by a constant, the loss grows with the weights of its batch.
ABSOLUTE = SupervisedLoss(TABLE, z_loss=1e-4, tasks=run_tiny.TASKS, normalising_factor=40.0)


def with_weights(factors):
  """The batches of run_tiny, the weights of some of them multiplied by a factor."""

  def batches(start):
    for row in itertools.count(start, ROWS):
      batch = batch_of(rows=ROWS, tasks=run_tiny.TASKS, seed=row)
      counts = batch["decoder_loss_weights"] > 0
      factor = np.float32(factors.get(row // ROWS, 1))
      batch["decoder_loss_weights"] = np.where(counts, factor, np.float32(0))
      yield batch

  return batches


def without(places):
  """The batches of run_tiny, some of them left out."""
  kept = (place for place in itertools.count() if place not in places)
  rows = (place * ROWS for place in kept)
  return lambda start: (batch_of(rows=ROWS, tasks=run_tiny.TASKS, seed=row) for row in rows)


def run(directory, factors, **settings):
  return run_tiny.make_trainer(directory, batches=with_weights(factors), **settings).run()


def test_a_nan_in_one_batch_is_skipped_counted_and_leaves_no_trace(tmp_path):
  said = []
  got = run(tmp_path / "bad", {2: np.nan}, config={"steps": 6}, say=said.append)
  never = run_tiny.make_trainer(tmp_path / "never", batches=without({2}), config={"steps": 5}).run()
  assert_trees_equal(got.state.params, never.state.params)
  assert_trees_equal(got.state.opt_state, never.state.opt_state)
  log = read_log(tmp_path / "bad")
  assert [line["skipped"] for line in log] == [0, 0, 1, 0, 0, 0]
  assert [line["skipped_so_far"]["not_finite"] for line in log] == [0, 0, 1, 1, 1, 1]
  assert log[2]["why_skipped"] == "not finite: the loss and all gradients"
  assert said == ["1 of 6 steps were skipped: 1 not finite"]
  assert not (tmp_path / "bad/bad_steps").exists()


def test_skipped_steps_in_a_row_stop_the_run_and_leave_the_batch(tmp_path):
  bad = {1: np.nan, 3: np.nan, 4: np.inf, 5: np.nan}
  with pytest.raises(
    TrainingError, match=r"step 6 \(rows 40 to 47\) .* last of 3 in a row"
  ) as stop:
    run(
      tmp_path,
      bad,
      config={"max_bad_steps": 3},
      describe=lambda rows: [f"row {row} tells of cats" for row in rows],
    )
  assert "in the batch decoder_loss_weights is not finite" in str(stop.value)
  assert [line["skipped"] for line in read_log(tmp_path)] == [0, 1, 0, 1, 1, 1]
  (folder,) = (tmp_path / "bad_steps").iterdir()
  assert str(folder) in str(stop.value)
  (batch,) = itertools.islice(with_weights(bad)(5 * ROWS), 1)
  assert_trees_equal(dict(np.load(folder / "batch.npz")), batch)
  report = (folder / "report.txt").read_text()
  assert "gradients that are not finite:\n  out\n  table\n" in report
  assert "row 40 tells of cats\n" in report and "row 47" in report and "row 48" not in report


def test_what_is_counted_goes_on_where_a_checkpoint_stands(tmp_path):
  bad = dict.fromkeys((1, 4, 5, 6), np.nan)
  run(tmp_path, bad, config={"steps": 6, "max_bad_steps": 3})
  with pytest.raises(TrainingError, match="step 7 .* last of 3 in a row"):
    run(tmp_path, bad, config={"max_bad_steps": 3})
  assert read_log(tmp_path)[-1]["skipped_so_far"]["not_finite"] == 4


def test_no_number_of_skipped_steps_stops_a_run_that_bears_all(tmp_path):
  said = []
  run(
    tmp_path, dict.fromkeys(range(1, 12), np.nan), config={"max_bad_steps": None}, say=said.append
  )
  assert said == ["11 of 12 steps were skipped: 11 not finite"]


def test_a_nan_in_a_parameter_of_a_checkpoint_stops_the_run_at_once_and_is_named(tmp_path):
  trainer = run_tiny.make_trainer(tmp_path, config={"steps": 6})
  trainer.run()
  with Checkpoints(tmp_path / "checkpoints", keep=Keep(None)) as checkpoints:
    state, meta = checkpoints.restore(parts_of(trainer._shapes))
    state["params"]["table"] = np.array(state["params"]["table"])
    state["params"]["table"][3, 4] = np.nan
    shutil.rmtree(tmp_path / "checkpoints/6")
    checkpoints.save(6, state, meta)
  with pytest.raises(
    TrainingError, match=r"^step 7 .* parameters are not finite: table\. "
  ) as stop:
    run_tiny.make_trainer(tmp_path).run()
  assert "remove the checkpoints" in str(stop.value)
  shutil.rmtree(tmp_path / "checkpoints/6")
  assert run_tiny.make_trainer(tmp_path).run().resumed_from == 3


def test_a_loss_spike_is_skipped_counted_and_leaves_no_trace(tmp_path):
  settings = {"loss": ABSOLUTE}
  got = run(tmp_path / "spike", {6: 50}, config={"steps": 9, **SPIKES}, **settings)
  config = {"steps": 8, **SPIKES}
  never = run_tiny.make_trainer(
    tmp_path / "never", batches=without({6}), config=config, **settings
  ).run()
  assert_trees_equal(got.state.params, never.state.params)
  np.testing.assert_array_equal(got.state.recent, never.state.recent)
  log = read_log(tmp_path / "spike")
  assert [line["skipped"] for line in log] == [0, 0, 0, 0, 0, 0, 1, 0, 0]
  assert log[-1]["skipped_so_far"] == {"not_finite": 0, "spike": 1, "empty": 0}
  assert "is a spike" in log[6]["why_skipped"]
  good = [np.float32(line["loss"]) for line in log if not line["skipped"]]
  np.testing.assert_array_equal(got.state.recent, good[-4:])


def test_a_window_that_is_not_full_tells_no_spike(tmp_path):
  run(tmp_path, {3: 50}, config={"steps": 4, **SPIKES}, loss=ABSOLUTE)
  assert [line["skipped"] for line in read_log(tmp_path)] == [0, 0, 0, 0]


def test_a_run_that_breaks_off_within_the_window_takes_the_same_decisions(tmp_path):
  def breaks_off(start):
    for row, batch in zip(itertools.count(start, ROWS), with_weights(spikes)(start), strict=False):
      if row == 8 * ROWS:
        raise InterruptedError
      yield batch

  spikes = {5: 50, 7: 50}
  config = {"config": SPIKES, "loss": ABSOLUTE}
  whole = run(tmp_path / "whole", spikes, **config)
  with pytest.raises(InterruptedError):
    run_tiny.make_trainer(tmp_path / "cut", batches=breaks_off, **config).run()
  rest = run(tmp_path / "cut", spikes, **config)
  assert rest.resumed_from == 6  # a window of 4 reaches to before the checkpoint
  assert_trees_equal(rest.state, whole.state)
  logs = [read_log(tmp_path / name) for name in ("whole", "cut")]
  skipped = [[(line["skipped"], line["skipped_so_far"]) for line in log] for log in logs]
  assert skipped[0] == skipped[1] and [pair[0] for pair in skipped[0]].count(1) == 2


def test_the_decisions_are_the_same_on_another_mesh(tmp_path):
  settings = {"loss": ABSOLUTE, "config": SPIKES | {"accumulation": 1}}
  meshes = {"one": MeshConfig(data=1), "four": MeshConfig(data=2, tensor=2)}
  for name, mesh in meshes.items():
    devices = jax.devices()[: mesh.data * mesh.tensor]
    layout = make_layout(TABLE, make_mesh(mesh, devices))
    run(tmp_path / name, {5: 50, 9: 1.02}, layout=layout, **settings)
  one, four = ([line["skipped"] for line in read_log(tmp_path / name)] for name in meshes)
  assert one == four and sum(one) == 1


def test_to_look_out_for_spikes_changes_no_bit_and_may_begin_in_a_run_that_did_not(tmp_path):
  run(tmp_path / "off", {}, loss=ABSOLUTE)
  run(tmp_path / "late", {}, loss=ABSOLUTE, config={"steps": 6})
  late = run(tmp_path / "late", {}, loss=ABSOLUTE, config=SPIKES)
  assert np.isfinite(late.state.recent).all()
  digests = {
    name: Checkpoints(tmp_path / name / "checkpoints").digest(12) for name in ("off", "late")
  }
  assert digests["off"] == digests["late"]


def test_half_a_rule_for_spikes_is_refused():
  for half in ({"spike_window": 8}, {"spike_sigmas": 3.0}):
    with pytest.raises(ConfigError, match="set both"):
      TrainerConfig(steps=1, batch_size=8, **half)
  with pytest.raises(ConfigError, match="spike_window=1"):
    TrainerConfig(steps=1, batch_size=8, spike_window=1, spike_sigmas=3.0)


VARIANTS = {
  **FAMILIES,
  "unrolled decoder": build_model(dataclasses.replace(DECODER.config, scan_layers=False)),
  "encoder-decoder with remat": build_model(
    dataclasses.replace(ENCODER_DECODER.config, remat="full")
  ),
}


def planted(params, path, value):
  """A copy of parameters with a number in the second layer of a kernel."""
  *above, last = path.split("/")
  params = jax.tree.map(np.array, params)
  folder = params
  for name in above:
    folder = folder[name]
  folder[last][1, 2, 3] = value
  return params


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_layer_that_is_not_finite_is_found(name):
  model = VARIANTS[name]
  stack = "layers" if model.layout == "decoder" else "encoder/layers"
  layout = make_layout(model, make_mesh(MeshConfig(data=2), jax.devices()[:2]))
  forward, start = ForwardPass(model, layout, accumulation=2), model.init(jax.random.key(1))
  with layout.active():
    batch = put_batch(batch_of(), layout)

    def found(params):
      return forward.first_not_finite(params, batch, jax.random.key(0), 5), not_finite(
        params, layout
      )

    assert found(start) == (None, [])
    # An infinity that no parameter holds begins where the product of finite numbers overflows.
    large = planted(start, f"{stack}/mlp/down/kernel", 3e38)
    large = planted(large, f"{stack}/mlp/up/kernel", 3e38)
    first, parameters = found(large)
    assert first.startswith(f"{stack}/mlp") and first.endswith("(layer 1)") and parameters == []
    torn = planted(start, f"{stack}/attention/key/kernel", np.nan)
    assert found(torn) == (
      f"{stack}/attention/key (layer 1)",
      [f"{stack}/attention/key/kernel (layer 1)"],
    )


def test_debugging_stops_at_the_first_step_and_says_which_layer(tmp_path):
  start = planted(DECODER.init(jax.random.key(1)), "layers/mlp/gate/kernel", np.nan)
  trainer = run_tiny.make_trainer(
    tmp_path,
    DECODER,
    load=lambda layout, key: jax.device_put(start, trainer._shardings.params),
    forward=ForwardPass(DECODER, run_tiny.layout_of(DECODER), accumulation=2),
  )
  with pytest.raises(TrainingError, match=r"^step 1 ") as stop:
    trainer.run()
  assert "the output of layers/mlp/gate (layer 1) is the first" in str(stop.value)
  assert "not finite: layers/mlp/gate/kernel (layer 1)" in str(stop.value)
  assert len(read_log(tmp_path)) == 1


def test_debugging_tells_a_batch_from_a_layer(tmp_path):
  with pytest.raises(TrainingError, match=r"^step 3 .*decoder_loss_weights is not finite") as stop:
    run(tmp_path, {2: jnp.nan}, forward=_NothingFound())
  assert "logits or weights of the loss are not" in str(stop.value)
  assert "--debug" not in str(stop.value)


def test_debugging_tells_the_backward_pass_from_the_forward_pass(tmp_path):
  trainer = run_tiny.make_trainer(tmp_path, loss=_Steep(TABLE), forward=_NothingFound())
  with pytest.raises(
    TrainingError, match=r"^step 1 .*: not finite: the gradients of table; "
  ) as stop:
    trainer.run()
  assert "the forward pass is finite and the backward pass is not, in table" in str(stop.value)


class _Steep(SupervisedLoss):
  """A loss that is finite with a gradient that is not: that of a root at zero."""

  def sums(self, params, batch, key=None, frozen=None):
    sums = super().sums(params, batch, key, frozen)
    term = sums.terms["cross_entropy"]
    steep = jnp.sqrt(0 * jnp.sum(params["table"]))
    return sums._replace(terms={"cross_entropy": term._replace(sum=term.sum + steep)})


class _NothingFound:
  """The forward pass of a table, which has no layers."""

  def first_not_finite(self, *arguments):
    return None


POISONED = """
import sys
sys.path.insert(0, {folder!r})
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
import numpy as np
import run_tiny
from tiny import TABLE
from flan_jax.jobs.clusters import find_place
from flan_jax.jobs.processes import joined
from flan_jax.training.partitioning import rows_of_process

def batches(start):
  share = rows_of_process(run_tiny.ROWS, run_tiny.layout_of(TABLE))
  for i, batch in enumerate(run_tiny.batches(start), start // run_tiny.ROWS):
    batch = {{name: np.array(value) for name, value in batch.items()}}
    if i in {steps!r}:
      batch["decoder_loss_weights"] = batch["decoder_loss_weights"].astype(np.float32)
      batch["decoder_loss_weights"][6] = np.nan  # a row of the second process
    yield {{name: value[share] for name, value in batch.items()}}

with joined(find_place()):
  config = {{"steps": 6, "max_bad_steps": 2}}
  run_tiny.make_trainer(sys.argv[1], batches=batches, config=config).run()
"""


def two_processes(directory, steps):
  """Runs a training with poison in some steps of the second process, and returns both when they have ended."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
  code = POISONED.format(folder=str(Path(run_tiny.__file__).parent), steps=steps)
  running = [
    subprocess.Popen(
      [sys.executable, "-c", code, directory],
      env={
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
      },
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  return [(process.communicate(timeout=300)[1], process.returncode) for process in running]


@pytest.mark.slow
def test_what_one_process_reads_is_skipped_by_both(tmp_path):
  for errors, status in two_processes(tmp_path, {3}):
    assert status == 0, errors
  assert [line["skipped"] for line in read_log(tmp_path)] == [0, 0, 0, 1, 0, 0]


@pytest.mark.slow
def test_what_one_process_reads_stops_both_and_each_leaves_its_rows(tmp_path):
  for errors, status in two_processes(tmp_path, {2, 3}):
    assert status != 0 and "TrainingError: step 4" in errors and "last of 2 in a row" in errors
  shares = [np.load(tmp_path / f"bad_steps/4/batch-{i}.npz") for i in range(2)]
  poisoned = [np.isnan(share["decoder_loss_weights"]).any(axis=1).tolist() for share in shares]
  assert poisoned == [[False] * 4, [False, False, True, False]]
