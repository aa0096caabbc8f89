"""What is seen of a run: where its time went, traces, its rate, early stopping."""

import gc
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import run_tiny
from tiny import TABLE

from flan_jax.checkpoints import Checkpoints
from flan_jax.errors import ConfigError, StorageError
from flan_jax.training import devices
from flan_jax.training.config import TrainerConfig
from flan_jax.training.logging import RunLog, read_log
from flan_jax.training.timers import Attempts, Timers, goodput, read_attempts


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr("flan_jax.training.timers.time.monotonic", clock)
  return clock


def test_of_kinds_within_one_another_the_inner_one_counts_alone(clock):
  timers = Timers()
  clock.now += 9  # before anything is counted
  with timers("step"):
    clock.now += 3
    with timers("save"):
      clock.now += 4
    clock.now += 2
    for _ in timers.each("feed", range(2)):
      clock.now += 1
    assert timers.seconds == {"step": 7, "save": 4, "feed": 0}
  clock.now += 5
  assert timers.seconds == {"step": 7, "save": 4, "feed": 0}


def test_waiting_for_the_next_item_is_counted_and_using_it_is_not(clock):
  timers = Timers()

  def slow():
    for item in range(3):
      clock.now += 2
      yield item

  for _ in timers.each("feed", slow()):
    clock.now += 10
  assert timers.seconds == {"feed": 6}


def test_steps_that_are_made_again_are_no_goodput(tmp_path, clock):
  timers = Timers()
  first = Attempts(tmp_path, timers, 0, [])
  with timers("compile"):
    clock.now += 10
  with timers("step"):
    clock.now += 30
  first.write(3)
  # Killed five steps later, of which the last checkpoint has none.
  again = [{"step": step, "seconds": 4.0} for step in (4, 5, 6, 7, 8)]
  second = Attempts(tmp_path, later := Timers(), 3, again)
  with later("step"):
    clock.now += 60
  second.write(9)
  assert [line["from"] for line in read_attempts(tmp_path)] == [0, 3]
  assert goodput(tmp_path) == {
    "attempts": 2,
    "goodput": pytest.approx(90 / 120),
    "seconds": {"compile": 10, "step": 90, "lost": 20},
  }


@pytest.mark.slow
def test_a_killed_run_tells_what_was_lost(tmp_path):
  killed = subprocess.run(
    [sys.executable, Path(run_tiny.__file__), tmp_path, "table", "8"], capture_output=True
  )
  assert killed.returncode == -signal.SIGKILL
  made = read_log(tmp_path)
  run_tiny.make_trainer(tmp_path).run()
  first, second = read_attempts(tmp_path)
  lost = [line for line in made if line["step"] > second["from"]]
  assert first["again"]["steps"] == len(lost) > 0 and second["step"] == 12
  assert first["again"]["seconds"] == pytest.approx(sum(line["seconds"] for line in lost), abs=1e-3)
  kinds = goodput(tmp_path)["seconds"]
  assert {"restore", "compile", "step", "lost"} <= kinds.keys() and min(kinds.values()) >= 0


def held_out_losses(monkeypatch, losses):
  """A held-out loss that takes these values, one after the other."""
  values = iter(losses)
  return lambda params, frozen, stop: {"loss": next(values), "terms": {}}


def test_a_run_stops_when_its_patience_is_at_an_end(tmp_path, monkeypatch):
  told = []
  patient = {"patience": 2, "checkpoint_every": 2}
  # Before the first step, then after steps 2, 4, 6 and 8.
  losses = held_out_losses(monkeypatch, [5.0, 4.0, 4.5, 3.9, 3.9, 4.1])
  run = run_tiny.make_trainer(tmp_path, config=patient, held_out=losses, say=told.append).run()
  assert run.stopped_early and int(run.state.step) == 10
  assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 10
  assert "2 held-out losses in a row were no lower than the lowest before them, 3.9000" in told[-1]
  again = run_tiny.make_trainer(
    tmp_path, config=patient, held_out=held_out_losses(monkeypatch, []), say=told.append
  ).run()
  assert again.stopped_early and int(again.state.step) == 10 and "nothing left" in told[-1]


def test_patience_goes_on_over_a_restart(tmp_path, monkeypatch):
  patient = {"patience": 2, "checkpoint_every": 2}
  first = run_tiny.make_trainer(
    tmp_path,
    config=patient | {"steps": 4},
    held_out=held_out_losses(monkeypatch, [5.0, 4.0, 4.5]),
  )
  assert not first.run().stopped_early
  second = run_tiny.make_trainer(
    tmp_path, config=patient, held_out=held_out_losses(monkeypatch, [4.2])
  )
  run = second.run()
  assert run.stopped_early and int(run.state.step) == 6


def test_patience_without_a_held_out_loss_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="validation_batches"):
    run_tiny.make_trainer(tmp_path, config={"patience": 2})


def test_a_run_is_judged_meanwhile_once_a_step(tmp_path):
  seen = []

  def judge(params, frozen):
    seen.append(float(np.sum(jax.tree.leaves(params)[0])))
    return {"means": {"all": float(len(seen))}, "tasks": {}}

  config = {"evaluate_every": 6}
  run_tiny.make_trainer(tmp_path, config=config, judge=judge).run()
  log = read_log(tmp_path, "evaluation.jsonl")
  assert [line["step"] for line in log] == [6, 12] and seen[0] != seen[1]
  # A kill between the checkpoint and its evaluation: the next attempt comes to it.
  (tmp_path / "evaluation.jsonl").write_text(json.dumps(log[0]) + "\n")
  run_tiny.make_trainer(tmp_path, config=config | {"steps": 15}, judge=judge).run()
  assert [line["step"] for line in read_log(tmp_path, "evaluation.jsonl")] == [6, 12]
  assert len(seen) == 3


def test_evaluations_fall_on_checkpoints():
  with pytest.raises(ConfigError, match="evaluate_every=4 must be a multiple"):
    TrainerConfig(10, 8, checkpoint_every=3, evaluate_every=4)


def test_each_regular_checkpoint_is_handed_on_when_it_is_whole(tmp_path):
  handed = []

  def saved(step, params, frozen):
    assert step in Checkpoints(tmp_path / "checkpoints").steps()
    handed.append(step)

  run_tiny.make_trainer(tmp_path, saved=saved).run()
  assert handed == [3, 6, 9, 12]


def test_what_a_kill_kept_from_the_last_step_is_made_up_for(tmp_path):
  handed, judged = [], []

  def judge(params, frozen):
    judged.append(params)
    return {"means": {"all": 1.0}, "tasks": {}}

  config = {"evaluate_every": 6}
  run_tiny.make_trainer(tmp_path, config=config, judge=judge).run()
  (tmp_path / "evaluation.jsonl").unlink()
  run_tiny.make_trainer(
    tmp_path,
    config=config,
    judge=judge,
    saved=lambda step, params, frozen: handed.append(step),
  ).run()
  assert handed == [12] and len(judged) == 3
  assert len(read_attempts(tmp_path)) == 1


def test_an_attempt_is_told_of_that_is_killed_before_it_saves(tmp_path):
  RunLog(tmp_path, start=0, total=9, progress=False).close()
  lines = [json.dumps({"step": step, "seconds": 2.0}) for step in (1, 2, 3)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  for _ in range(2):  # killed at once, both times
    RunLog(tmp_path, start=0, total=9, progress=False).close()
  first, second, third = read_attempts(tmp_path)
  assert first["again"] == {"steps": 3, "seconds": 6.0} and first["seconds"]["step"] == 6.0
  assert "again" not in second and third["from"] == 0
  assert goodput(tmp_path)["attempts"] == 3


def test_a_damaged_line_of_attempts_is_named(tmp_path):
  RunLog(tmp_path, start=0, total=9, progress=False).close()
  path = tmp_path / "attempts.jsonl"
  path.write_text("{" + path.read_text())
  with pytest.raises(StorageError, match=r"attempts.jsonl:1 is damaged"):
    RunLog(tmp_path, start=0, total=9, progress=False)


def test_some_steps_are_traced(tmp_path):
  run_tiny.make_trainer(tmp_path, config={"profile_steps": (2, 3)}).run()
  assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))
  assert (tmp_path / "profile/memory.prof").stat().st_size > 0


@pytest.mark.parametrize("steps", [(0, 2), (5, 4), (3, 13)])
def test_steps_that_are_not_made_cannot_be_traced(steps):
  with pytest.raises(ConfigError, match="profile_steps"):
    TrainerConfig(12, 8, profile_steps=steps)


def test_no_garbage_is_collected_of_its_own_accord_while_training(tmp_path):
  enabled = []

  def batches(row):
    for batch in run_tiny.batches(row):
      enabled.append(gc.isenabled())
      yield batch

  run_tiny.make_trainer(tmp_path, batches=batches).run()
  assert enabled and not any(enabled) and gc.isenabled() and gc.get_freeze_count() == 0


def test_a_deterministic_step_is_asked_of_the_compiler(tmp_path, monkeypatch):
  asked = []
  jit = jax.jit
  monkeypatch.setattr(
    jax, "jit", lambda *a, **k: asked.append(k.get("compiler_options")) or jit(*a, **k)
  )
  run_tiny.make_trainer(tmp_path, config={"deterministic": True, "steps": 1}).run()
  assert {"xla_gpu_deterministic_ops": True} in asked


def test_utilisation_is_of_the_peak_of_all_devices(tmp_path, monkeypatch):
  cpu = devices.Device("cpu", peak=1e9)
  monkeypatch.setattr("flan_jax.training.trainer.device_of", lambda kind: cpu)
  run_tiny.make_trainer(tmp_path, config={"steps": 2}, flops=lambda batch: 6e6).run()
  for line in read_log(tmp_path):
    assert line["model_flops_utilisation"] == pytest.approx(6e6 / line["seconds"] / 2e9, rel=1e-3)


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("NVIDIA A100-SXM4-80GB", "a100-80"),
    ("NVIDIA A100-SXM4-40GB", "a100-40"),
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H200", "h200"),
    ("cpu", "cpu"),
  ],
)
def test_what_jax_calls_a_device_is_found_in_the_table(kind, name):
  assert devices.device_of(kind).name == name


def test_a_missing_library_is_told_before_the_first_step(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match="pip install wandb"):
    run_tiny.make_trainer(tmp_path, config={"wandb": "tuning"}).run()
  assert not read_log(tmp_path)


def test_weights_and_biases_is_told_every_step(tmp_path, monkeypatch):
  class Project:
    lines, axis, finished = [], None, False

    def init(self, **settings):
      self.settings = settings
      return self

    def define_metric(self, names, step_metric):
      self.axis = step_metric

    def log(self, line):
      self.lines.append(line)

    def finish(self):
      self.finished = True

  project = Project()
  monkeypatch.setitem(sys.modules, "wandb", project)
  run_tiny.make_trainer(tmp_path, model=TABLE, config={"wandb": "tuning", "steps": 4}).run()
  assert project.settings["project"] == "tuning" and project.axis == "step" and project.finished
  assert [line["step"] for line in project.lines] == [1, 2, 3, 4]
  assert [line["loss"] for line in project.lines] == [line["loss"] for line in read_log(tmp_path)]
