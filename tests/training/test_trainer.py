"""The training loop: the same curve on every mesh, the same bits after every interruption."""

import errno
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run_tiny
from tiny import FAMILIES, TABLE, assert_trees_equal, batch_of

from flan_jax.checkpoints import Checkpoints, checkpoint_table, whole
from flan_jax.errors import CheckpointError, ConfigError, MeshError, StorageError
from flan_jax.training import optimizers, schedules
from flan_jax.training import trainer as trainer_module
from flan_jax.training.config import TrainerConfig
from flan_jax.training.logging import RunLog, read_log
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings
from flan_jax.training.trainer import Trainer

MESHES = {
  "one device": (MeshConfig(), 1),
  "data=8": (MeshConfig(data=8), 8),
  "fsdp=8": (MeshConfig(data=1, fsdp=8), 8),
  "data=2,fsdp=2,tensor=2": (MeshConfig(data=2, fsdp=2, tensor=2), 8),
  "data=2,sequence=2,tensor=2": (MeshConfig(data=2, sequence=2, tensor=2), 8),
}


@functools.cache
def start_of(family):
  return jax.tree.map(np.asarray, jax.jit(FAMILIES[family].init)(jax.random.key(3)))


def curve(family, mesh, directory):
  """Losses of 30 AdamW steps in float32, and the final state."""
  model = FAMILIES[family]
  config, devices = MESHES[mesh]
  schedule = schedules.cosine(1e-2, total_steps=30, warmup_steps=5)
  trainer = Trainer(
    TrainerConfig(steps=30, batch_size=8, checkpoint_every=1000, progress=False),
    model=model,
    loss=SupervisedLoss(model, z_loss=1e-4, tasks=3),
    tx=optimizers.adamw(schedule, weight_decay=0.1),
    schedule=schedule,
    layout=make_layout(model, make_mesh(config, jax.devices()[:devices])),
    batches=lambda row: (batch_of(rows=8, seed=r % 24) for r in itertools.count(row, 8)),
    directory=directory,
    load=lambda layout, key: jax.device_put(start_of(family), param_shardings(model, layout)),
  )
  state = trainer.run().state
  return [record["loss"] for record in read_log(directory)], state


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  @functools.cache
  def of(family):
    return curve(family, "one device", tmp_path_factory.mktemp("one"))[0]

  return of


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one device"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mesh_gives_the_loss_curve_of_one_device(family, mesh, reference, tmp_path):
  losses, state = curve(family, mesh, tmp_path)
  assert len(losses) == 30 and losses[-1] < losses[0]
  np.testing.assert_allclose(losses, reference(family), rtol=1e-5)
  share = MESHES[mesh][0].fsdp * MESHES[mesh][0].tensor
  for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
    if leaf.size >= 256 and "relative_bias" not in jax.tree_util.keystr(path):
      for shard in leaf.addressable_shards:
        assert shard.data.nbytes * share == leaf.nbytes, jax.tree_util.keystr(path)


def test_a_batch_is_on_its_way_to_the_devices_while_the_step_before_it_runs(tmp_path, monkeypatch):
  steps, put = 6, trainer_module.put_batch
  sent = [threading.Event() for _ in range(steps)]
  waiting = iter(sent)
  not_sent = []

  def counted(*args):
    arrays = put(*args)
    next(waiting).set()
    return arrays

  def wait_for_the_next(step):
    if step + 1 < steps and not sent[int(step) + 1].wait(20):
      not_sent.append(int(step) + 1)
    return np.float32(0)

  class SlowLoss(SupervisedLoss):
    """Runs on the devices until the host has sent them the batch after this one."""

    def sums(self, params, batch, key=None, frozen=None):
      found = super().sums(params, batch, key, frozen)
      zero = jax.pure_callback(
        wait_for_the_next, jax.ShapeDtypeStruct((), jnp.float32), batch["step"][0]
      )
      terms = {name: term._replace(sum=term.sum + zero) for name, term in found.terms.items()}
      return found._replace(terms=terms)

  def batches(row):
    for start in itertools.count(row, 8):
      yield {**batch_of(rows=8, seed=start), "step": np.full(8, start // 8, np.float32)}

  monkeypatch.setattr(trainer_module, "put_batch", counted)
  run_tiny.make_trainer(
    tmp_path,
    loss=SlowLoss(TABLE),
    tasks=(),
    batches=batches,
    config={"steps": steps, "checkpoint_every": 100, "accumulation": 1},
  ).run()
  assert not_sent == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  directory = tmp_path_factory.mktemp("uninterrupted")
  run_tiny.make_trainer(directory).run()
  return directory


def start(directory, model, kill_at, how="SIGKILL", **environment):
  program = [sys.executable, run_tiny.__file__, str(directory), model, str(kill_at), how]
  environment = {**os.environ, **environment}
  return subprocess.run(program, capture_output=True, text=True, env=environment)


def assert_same_end(directory, uninterrupted):
  ours, theirs = (checkpoint_table(d / "checkpoints") for d in (directory, uninterrupted))
  assert [(row["step"], row["digest"]) for row in ours] == [
    (row["step"], row["digest"]) for row in theirs
  ]
  log, whole = read_log(directory), read_log(uninterrupted)
  assert [record["rows"] for record in log] == [[8 * k, 8 * k + 8] for k in range(12)]
  for record, other in zip(log, whole, strict=True):
    assert {k: v for k, v in record.items() if "second" not in k} == {
      k: v for k, v in other.items() if "second" not in k
    }


@pytest.mark.slow
def test_a_run_killed_at_any_step_ends_with_the_same_bits(tmp_path):
  # One compilation serves the four processes.
  cache = {
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  whole = start(tmp_path / "whole", "decoder", -1, **cache)
  assert whole.returncode == 0, whole.stderr
  run = tmp_path / "run"
  for step in sorted(random.sample(range(12), 2)):
    killed = start(run, "decoder", step, **cache)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert all(record["rows"][1] <= 8 * step for record in read_log(run))
  finished = start(run, "decoder", -1, **cache)
  assert finished.returncode == 0, finished.stderr
  assert_same_end(run, tmp_path / "whole")


def test_sigterm_saves_and_exits_with_zero_and_the_same_command_goes_on(tmp_path, uninterrupted):
  stopped = start(tmp_path, "table", 4, "SIGTERM")
  assert stopped.returncode == 0, stopped.stderr
  assert "stopped by SIGTERM; step 5 is saved" in stopped.stderr
  said = []
  result = run_tiny.make_trainer(tmp_path, say=said.append).run()
  assert (result.resumed_from, result.terminated) == (5, False)
  assert "going on from step 5 (row 40)" in said[0]
  assert checkpoint_table(tmp_path / "checkpoints")[-1] == checkpoint_table(
    uninterrupted / "checkpoints"
  )[-1] | {"bytes": checkpoint_table(tmp_path / "checkpoints")[-1]["bytes"]}


def test_sigterm_while_the_last_step_is_judged_is_not_lost(tmp_path):
  asked = itertools.count()

  def held_out(params, frozen, stop):
    if next(asked) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return {"loss": 0.0}

  result = run_tiny.make_trainer(tmp_path, config={"steps": 1}, held_out=held_out).run()
  assert (int(result.state.step), result.terminated) == (1, True)


def test_a_loss_that_comes_late_counts_for_what_is_best(tmp_path):
  losses, last = iter([9.0, 5.0, 4.0, 3.0]), []

  def held_out(params, frozen, stop):
    loss = next(losses, None)
    if loss is None and not last:
      last.append(os.kill(os.getpid(), signal.SIGTERM))
      return None
    return {"loss": 1.0 if loss is None else loss}

  run_tiny.make_trainer(tmp_path, held_out=held_out).run()
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  assert checkpoints.steps()[-1] == 12 and checkpoints.best("lowest loss") == 9
  run_tiny.make_trainer(tmp_path, held_out=held_out).run()
  assert checkpoints.best("lowest loss") == 12
  (tmp_path / "checkpoints/6/meta/metadata").write_text("{")
  assert checkpoints.best("lowest loss") == 12


@pytest.mark.parametrize("damage", ["a key", "a fingerprint", "no optimizer"])
def test_damage_is_not_taken_for_another_run(tmp_path, damage):
  run_tiny.make_trainer(tmp_path, config={"steps": 9}).run()
  last = tmp_path / "checkpoints/9"
  meta = last / "meta/metadata"
  if damage == "no optimizer":
    shutil.rmtree(last / "optimizer")
  else:
    was, now = ('"fingerprints"', '"fingerprintt"') if damage == "a key" else ('"abc"', '"abd"')
    assert was in meta.read_text()
    meta.write_text(meta.read_text().replace(was, now))
  trainer = run_tiny.make_trainer(tmp_path)
  trainer.check()
  assert trainer.run().resumed_from == 6 and (tmp_path / "checkpoints/torn-9").is_dir()


@pytest.mark.parametrize(("moment", "saved"), [(0, []), (1, [3]), (2, [3, 6]), (4, [6, 9, 12])])
def test_sigterm_cuts_a_held_out_loss_short_and_what_was_trained_is_saved(tmp_path, moment, saved):
  times = itertools.count()

  def held_out(params, frozen, stop):
    if next(times) == moment:
      os.kill(os.getpid(), signal.SIGTERM)
    return None if stop() else {"loss": 0.0}

  said = []
  stopped = run_tiny.make_trainer(tmp_path, held_out=held_out, say=said.append).run()
  assert stopped.terminated and int(stopped.state.step) == 3 * moment
  assert Checkpoints(tmp_path / "checkpoints").steps() == saved
  assert "stopped by SIGTERM" in said[-1]
  result = run_tiny.make_trainer(tmp_path, held_out=held_out).run()
  assert (result.resumed_from, result.terminated) == (3 * moment, False)
  assert [record["rows"][0] for record in read_log(tmp_path)] == [8 * k for k in range(12)]
  assert [record["step"] for record in read_log(tmp_path, "validation.jsonl")] == [0, 3, 6, 9, 12]


def test_the_best_checkpoints_stay_and_want_something_to_be_best_by(tmp_path):
  losses = iter([9.0, 3.0, 1.0, 5.0, 4.0])
  trainer = run_tiny.make_trainer(
    tmp_path,
    held_out=lambda params, frozen, stop: {"loss": next(losses)},
    config={"keep": 1, "keep_best": 1},
  )
  trainer.run()
  assert Checkpoints(tmp_path / "checkpoints").steps() == [6, 12]
  with pytest.raises(ConfigError, match="set validation_batches"):
    run_tiny.make_trainer(tmp_path, config={"keep_best": 1})


def test_a_write_that_fails_in_the_background_stops_the_run_before_the_next_save(
  tmp_path, monkeypatch
):
  failed = threading.Event()

  def note_files(folder):
    if folder.name.startswith("80."):
      failed.set()
      raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
    whole.note_files(folder)

  def batches(start):
    for row, batch in zip(itertools.count(start, 8), run_tiny.batches(start), strict=False):
      if row > 8 * 80:
        assert failed.wait(60)
        time.sleep(0.02)
      yield batch

  monkeypatch.setattr("flan_jax.checkpoints.saved.note_files", note_files)
  with pytest.raises(StorageError, match=r"Input/output error.*whole: \[40\]"):
    config = {"steps": 10_000, "checkpoint_every": 40}
    run_tiny.make_trainer(tmp_path, batches=batches, config=config).run()
  # Were it not looked for, the save of step 120 would have been the first to hear of it.
  assert len(read_log(tmp_path)) < 120


def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(tmp_path, uninterrupted):
  run_tiny.make_trainer(tmp_path, config={"steps": 6}).run()
  files = [path for path in (tmp_path / "checkpoints/6").rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:10])
  said = []
  result = run_tiny.make_trainer(tmp_path, say=said.append).run()
  assert result.resumed_from == 3
  assert "6 is damaged" in said[0] and "going on from step 3" in said[1]
  records = read_log(tmp_path)
  assert [record["rows"][0] for record in records] == [8 * k for k in range(12)]


def test_a_finished_run_has_nothing_left_to_do(uninterrupted):
  said = []
  before = (uninterrupted / "metrics.jsonl").read_bytes()
  result = run_tiny.make_trainer(uninterrupted, say=said.append).run()
  assert (result.resumed_from, int(result.state.step)) == (12, 12)
  assert "nothing left" in said[-1]
  assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_the_checkpoint_tells_the_position_and_what_was_given(uninterrupted):
  meta = Checkpoints(uninterrupted / "checkpoints").meta()
  assert {name: meta[name] for name in ("step", "updates", "row")} == {
    "step": 12,
    "updates": 12,
    "row": 96,
  }
  assert meta["fingerprints"] == {"batch_size": 8, "seed": 0, "store": "abc"}
  assert meta["note"] == "kept"


def test_the_log_tells_losses_by_task_and_cluster(uninterrupted):
  record = read_log(uninterrupted)[3]
  assert set(record["tasks"]) == {"first", "second", "third"}
  assert set(record["clusters"]) == {"reading", "topic"}
  assert record["clusters"]["topic"] == record["tasks"]["third"]
  low, high = sorted((record["tasks"]["first"], record["tasks"]["second"]))
  assert low < record["clusters"]["reading"] < high
  assert 0 < record["targets"] < record["tokens"] < record["positions"]
  assert list((uninterrupted / "tensorboard").iterdir())


def test_another_store_is_another_run(uninterrupted):
  with pytest.raises(CheckpointError, match=r"another store \(abc, not xyz\)"):
    run_tiny.make_trainer(uninterrupted, fingerprints={"store": "xyz"}).run()


def test_long_fingerprints_are_told_from_where_they_differ(tmp_path):
  long = "fresh DecoderConfig(vocab_size=64, emb_dim=32, num_heads=4, num_layers="
  run_tiny.make_trainer(tmp_path, fingerprints={"model": long + "2)"}).run()
  with pytest.raises(
    CheckpointError, match=r"\(\.\.\..*num_layers=2\), not \.\.\..*num_layers=3\)\)"
  ):
    run_tiny.make_trainer(tmp_path, fingerprints={"model": long + "3)"}).run()


def test_another_model_is_told_array_by_array(uninterrupted):
  with pytest.raises(CheckpointError, match="saved with another optimizer"):
    run_tiny.make_trainer(uninterrupted, tx=optax.sgd(0.1)).run()
  with pytest.raises(CheckpointError, match="ours missing"):
    run_tiny.make_trainer(uninterrupted, model=FAMILIES["encoder_decoder"]).run()


def test_a_step_that_is_not_finite_is_logged_and_the_cursor_goes_on(tmp_path):
  def batches(start):
    for row, batch in zip(itertools.count(start, 8), run_tiny.batches(start), strict=False):
      if row == 8:
        batch["decoder_loss_weights"] = np.where(batch["decoder_loss_weights"], np.inf, 0).astype(
          np.float32
        )
      yield batch

  run_tiny.make_trainer(tmp_path, batches=batches, config={"steps": 3}).run()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line["skipped"] for line in lines] == [0, 1, 0]
  assert [line["updates"] for line in lines] == [1, 1, 2]
  assert [line["rows"] for line in lines] == [[0, 8], [8, 16], [16, 24]]
  assert lines[1]["loss"] is None
  assert Checkpoints(tmp_path / "checkpoints").meta()["updates"] == 2


def test_loaded_parameters_are_where_training_starts(tmp_path):
  ours = jax.tree.map(np.asarray, TABLE.init(jax.random.key(5)))
  before = jax.tree.map(np.copy, ours)
  trainer = run_tiny.make_trainer(
    tmp_path,
    load=lambda layout, key: jax.tree.map(jax.device_put, ours, trainer._shardings.params),
    tx=optax.sgd(0.0),
    config={"steps": 2},
  )
  assert_trees_equal(trainer.run().state.params, before)
  assert_trees_equal(ours, before)


def test_numbers_that_cannot_be_obeyed_are_refused(tmp_path):
  with pytest.raises(ConfigError, match="checkpoint_every=0"):
    TrainerConfig(steps=1, batch_size=8, checkpoint_every=0)
  with pytest.raises(MeshError, match="multiple of 6"):
    run_tiny.make_trainer(tmp_path, config={"accumulation": 3})


def test_batches_that_end_too_early_are_an_error(tmp_path):
  with pytest.raises(ConfigError, match="ended after 2 of 12 steps"):
    run_tiny.make_trainer(
      tmp_path, batches=lambda row: itertools.islice(run_tiny.batches(row), 2)
    ).run()


def test_a_line_that_a_kill_left_unfinished_is_dropped_on_resuming(tmp_path):
  lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
  assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3]
  RunLog(tmp_path, start=2, total=9, progress=False).close()
  assert [record["step"] for record in read_log(tmp_path)] == [1, 2]
