"""The training loop: begin or go on, step, log, save, stop."""

import dataclasses
import functools
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from flan_jax.checkpoints import Checkpoints
from flan_jax.errors import CheckpointError, ConfigError
from flan_jax.training.bad_steps import BadSteps, Taken
from flan_jax.training.config import TrainerConfig
from flan_jax.training.devices import device_of
from flan_jax.training.logging import NoLog, RunLog, step_record
from flan_jax.training.losses import Loss
from flan_jax.training.meanwhile import Meanwhile
from flan_jax.training.not_finite import ForwardPass
from flan_jax.training.partitioning import (
  Layout,
  ShardedModel,
  check_batch,
  path_of,
  put_batch,
)
from flan_jax.training.profiling import Profile, collected_at_saves
from flan_jax.training.saved_state import parts_of, state_of
from flan_jax.training.saving_times import SavingTimes
from flan_jax.training.step import (
  Metrics,
  TrainState,
  abstract_state,
  gradients_of,
  make_train_step,
)
from flan_jax.training.termination import Termination
from flan_jax.training.timers import STEP, Timers
from flan_jax.training.validation import HeldOutLoss
from flan_jax.training.watchdog import Watchdog

PyTree = Any
_MADE_OF = {"store": ": other records, templates, rates, format, lengths or data seed"}
Batches = Callable[[int], Iterable[Mapping[str, Any]]]


class TrainingResult(NamedTuple):
  """Args:
  state: after the last step.
  resumed_from: the step of the checkpoint that this attempt went on from; 0: it began afresh.
  terminated: SIGTERM came. A checkpoint is saved, of the last step where that was being made.
  stopped_early: patience with the held-out loss was at its end.
  """

  state: TrainState
  resumed_from: int
  terminated: bool = False
  stopped_early: bool = False


class Trainer:
  """Trains parameters with a loss over a stream of batches, and can be killed at any moment.

  The run's directory holds `checkpoints/`, `metrics.jsonl` and `tensorboard/`. Running again in the
  same directory goes on from the last whole checkpoint, and ends with the very bits of a run that
  was never interrupted.

  Args:
    model: initialises parameters and names their axes.
    loss: of any kind; see `flan_jax.training.losses.Loss`.
    tx, schedule: the optimizer, and the learning rate that it follows (for the log).
    trained: from gradients to those of the parameters that `tx` does not freeze.
    layout: mesh and rules.
    batches: from a row number to the batches from that row on, `batch_size` rows each (this
      process's share of them).
    directory: of the run.
    load: from layout and key to parameters on the mesh; None: the model's own fresh ones. Not
      called on resuming. Arrays of JAX are consumed: keep a copy of what is needed afterwards.
    held_out: the loss of parameters on batches that are not trained on; taken before the first step, with
      every checkpoint and at the end.
    tasks: (name, cluster) of each task id, for losses by task and cluster.
    fingerprints: what must be the same when a run goes on, by name (store, tokenizer, model, ...).
    meta: other facts to keep beside each checkpoint; plain JSON values.
    describe: from row numbers to lines that tell what these rows hold.
    flops: from this process's share of a batch to the FLOPs that the model needs for it; with the peak of the
      devices the log tells how much of that was reached.
    judge: from parameters and frozen ones to a line of evaluation.jsonl, every `evaluate_every` steps.
    saved: called with step, parameters and frozen ones of each checkpoint, but for one that SIGTERM asked for.
    timers: of the launch.
    forward: the forward pass of the loss. With it the first step that is not finite is looked into and stops
      the run, and every step waits for the one before.
    watchdog: is told of every step, and of what is done between two.
    say: told, in a sentence, what the user should know.
  """

  def __init__(
    self,
    config: TrainerConfig,
    *,
    model: ShardedModel,
    loss: Loss,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    layout: Layout,
    batches: Batches,
    directory: str | Path,
    trained: Callable[[PyTree], PyTree] = lambda gradients: gradients,
    load: Callable[[Layout, jax.Array], PyTree] | None = None,
    held_out: HeldOutLoss | None = None,
    tasks: Sequence[tuple[str, str]] = (),
    fingerprints: Mapping[str, str | int] | None = None,
    meta: Mapping[str, Any] | None = None,
    describe: Callable[[Iterable[int]], Iterable[str]] | None = None,
    flops: Callable[[Mapping[str, Any]], float] | None = None,
    judge: Callable[[PyTree, PyTree], Mapping[str, Any]] | None = None,
    saved: Callable[[int, PyTree, PyTree], None] | None = None,
    timers: Timers | None = None,
    forward: ForwardPass | None = None,
    watchdog: Watchdog | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
  ):
    check_batch(config.batch_size, config.accumulation, layout)
    self.config, self.directory = config, Path(directory)
    self._model, self._tx, self._layout = model, tx, layout
    self._batches, self._load = batches, load
    self._flops, self._tasks = flops, tuple(tasks)
    self._timers = timers or Timers()
    self._meanwhile = Meanwhile(
      config, held_out=held_out, judge=judge, saved=saved, timers=self._timers
    )
    # Neither rows nor dropout would go on where they were.
    own = {"batch_size": config.batch_size, "seed": config.seed}
    self._fingerprints = {**own, **(fingerprints or {})}
    self._meta = dict(meta or {})
    self._say = say if jax.process_index() == 0 else lambda text: None
    with layout.active():
      self._shapes, self._shardings = abstract_state(model, tx, layout, config.spike_window)
    self._step = make_train_step(
      loss,
      tx,
      trained=trained,
      accumulation=config.accumulation,
      accumulator_dtype=config.accumulator_dtype,
      schedule=schedule,
      spike_sigmas=config.spike_sigmas,
      shardings=self._shardings,
      deterministic=config.deterministic,
    )
    gradients = jax.tree_util.tree_leaves_with_path(trained(self._shapes.params))
    self._bad_steps = BadSteps(
      config.max_bad_steps,
      self.directory,
      layout,
      gradients=["/".join(path_of(keys)) for keys, _ in gradients],
      describe=describe,
      forward=forward,
      backward=functools.partial(gradients_of, loss, config.accumulation, config.accumulator_dtype),
    )
    self._waits = forward is not None
    self._watchdog = watchdog or Watchdog()

  def check(self) -> dict[str, Any] | None:
    """Whether this run may go on from what the directory holds.

    Returns:
      What stands beside the checkpoint that it would go on from; None where it would begin.

    Raises:
      CheckpointError: it holds the checkpoint of another run.
    """
    checkpoints = Checkpoints(self.directory / "checkpoints")
    for step in reversed(checkpoints.steps()):
      try:
        meta = checkpoints.meta(step)
        checkpoints.compare(parts_of(self._shapes), step)
        self._check_fingerprints(meta, checkpoints.directory)
        return meta
      except Exception as error:
        # Of a damaged one nothing can be said; restoring puts it aside.
        if checkpoints.damage(step) is None and isinstance(error, CheckpointError):
          raise
    return None

  def run(self, frozen: PyTree = None) -> TrainingResult:
    """Trains until all steps are made, or SIGTERM asks to stop.

    Args:
      frozen: parameters on the mesh that the loss reads and that are not trained.

    Raises:
      StorageError: the disk is full.
      CheckpointError: the directory holds the checkpoint of another model or run.
      TrainingError: too many steps in a row were skipped, or a parameter is not finite.
    """
    folder = self.directory / "checkpoints"
    with (
      Termination() as termination,
      Checkpoints(folder, keep=self.config.kept, say=self._say) as checkpoints,
      self._layout.active(),
    ):
      with self._timers("restore"):
        state, row = self._begin(checkpoints)
      start = int(state.step)
      if start >= self.config.steps or self._meanwhile.out_of_patience:
        with self._log(start) as log:
          self._meanwhile.catch_up(log, state, frozen, checkpoints, termination.asked)
        made = "out of patience with the held-out loss" if start < self.config.steps else "all made"
        self._say(f"{start} steps, {made}: nothing left to train")
        return TrainingResult(state, start, stopped_early=start < self.config.steps)
      with self._log(start) as log, self._timers(STEP), collected_at_saves(), self._watchdog:
        self._meanwhile.catch_up(log, state, frozen, checkpoints, termination.asked)
        if not termination.asked():
          state = self._loop(state, row, frozen, checkpoints, log, termination)
        with self._timers("save"), self._watchdog.pause("saving step"):
          checkpoints.wait()
        log.reached(int(state.step))
      self._tell_end(int(state.step), termination.came)
    early = self._meanwhile.out_of_patience and int(state.step) < self.config.steps
    return TrainingResult(state, start, termination.came, early)

  def _tell_end(self, step: int, terminated: bool) -> None:
    if skipped := self._bad_steps.summary(step):
      self._say(skipped)
    if terminated:
      saved = f"step {step} is saved" if step else "no step was made"
      self._say(f"stopped by SIGTERM; {saved}, the same command goes on")
    elif self._meanwhile.out_of_patience:
      self._say(
        f"stopped after step {step}: {self.config.patience} held-out losses in a row were no lower than the "
        f"lowest before them, {min(self._meanwhile.losses):.4f}"
      )

  def _loop(
    self,
    state: TrainState,
    row: int,
    frozen: PyTree,
    checkpoints: Checkpoints,
    log: RunLog | NoLog,
    termination: Termination,
  ) -> TrainState:
    config, key = self.config, self._key
    step, waiting, clock = int(state.step), None, time.perf_counter()
    times = SavingTimes(step, config.checkpoint_every, config.checkpoint_minutes)
    profile, kind = Profile(config.profile_steps, self.directory), "compile"
    for batch in self._timers.each("feed", self._batches(row)):
      step += 1
      self._watchdog.beat(step)
      profile.before(step)
      with self._timers(kind):
        arrays = put_batch(batch, self._layout, config.batch_size)
        state, metrics = self._step(state, arrays, key, frozen)
      profile.after(step, metrics)
      kind = STEP
      # The metrics of a step are fetched while the next one runs, so that the devices never wait
      # for the log.
      if waiting is not None:
        clock = self._write(log, waiting, clock, state, frozen)
      waiting = _Made((row, row + config.batch_size), _positions(arrays), batch, metrics)
      row += config.batch_size
      checkpoints.check()
      last = termination.asked() or step == config.steps
      saves = times.due(step) or last
      if saves or self._waits:
        # The log first: a checkpoint whose steps are missing from the log would leave a hole in it.
        clock, waiting = self._write(log, waiting, clock, state, frozen), None
      if saves:
        begun = time.perf_counter()
        with self._watchdog.pause("saving step"):
          # Whoever sends SIGTERM is in a hurry, and the curve stays that of an unbroken run.
          measured, regular = None, self._meanwhile.regular(step)
          if regular:
            measured = self._meanwhile.measure(log, state, frozen, termination.asked)
          with self._timers("save"):
            checkpoints.save(step, parts_of(state), self._facts(state, row), measured)
            log.reached(step)
            if self._meanwhile.waits_for_checkpoints:
              checkpoints.wait()
          gc.collect()
          if regular and not termination.came:
            self._meanwhile.look_at(log, state, frozen)
        clock += time.perf_counter() - begun
      if last or termination.came or (saves and self._meanwhile.out_of_patience):
        profile.close()
        return state
    raise ConfigError(f"the batches ended after {step} of {config.steps} steps")

  @functools.cached_property
  def _key(self) -> jax.Array:
    """Of the steps. Made once: to make it anew would wait for the step that runs."""
    return _keys(self.config.seed)[1]

  def _begin(self, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    """The state to go on from, and the first row not consumed."""
    if not checkpoints.steps():
      return self._fresh(), 0
    wanted = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      self._shapes,
      self._shardings,
    )
    saved, meta = checkpoints.restore(parts_of(wanted))
    self._check_fingerprints(meta, checkpoints.directory)
    self._bad_steps.go_on_from(meta.get("bad_steps", {}))
    self._meanwhile.go_on_from(meta)
    state = dataclasses.replace(state_of(saved), recent=self._recent(meta.get("recent_losses", ())))
    self._say(f"going on from step {meta['step']} (row {meta['row']}) in {checkpoints.directory}")
    return state, int(meta["row"])

  def _recent(self, losses: Sequence[float]) -> jax.Array | None:
    """The window with the last of some losses in it."""
    window = self.config.spike_window
    if window is None:
      return None
    kept = np.full(window, np.nan, np.float32)
    last = losses[-window:]
    kept[window - len(last) :] = last
    return jax.device_put(kept, self._shardings.recent)

  def _check_fingerprints(self, meta: Mapping[str, Any], directory: Path) -> None:
    theirs = meta["fingerprints"]
    for name, ours in self._fingerprints.items():
      if theirs.get(name) != ours:
        was, now = _where_they_part(str(theirs.get(name)), str(ours))
        raise CheckpointError(
          f"{directory} belongs to a run with another {name} ({was}, not {now}){_MADE_OF.get(name, '')}; "
          "go on with what it was begun with, or begin in another directory"
        )

  def _fresh(self) -> TrainState:
    key = _keys(self.config.seed)[0]
    if self._load is None:
      params = jax.jit(self._model.init, out_shardings=self._shardings.params)(key)
    else:
      params = self._load(self._layout, key)
    create = jax.jit(
      lambda params: dataclasses.replace(
        TrainState.create(params, self._tx, self.config.spike_window), params=None
      ),
      out_shardings=dataclasses.replace(self._shardings, params=None),
    )
    return dataclasses.replace(create(params), params=params)

  def _facts(self, state: TrainState, row: int) -> dict[str, Any]:
    counts = {"step": int(state.step), "updates": int(state.updates), "row": row}
    finished = counts["step"] == self.config.steps or self._meanwhile.out_of_patience
    facts = {**self._meta, **counts, "finished": finished, "bad_steps": self._bad_steps.facts()}
    facts |= self._meanwhile.facts()
    if state.recent is not None:
      losses = np.asarray(jax.device_get(state.recent))
      facts["recent_losses"] = losses[~np.isnan(losses)].tolist()
    return {**facts, "fingerprints": self._fingerprints}

  def _log(self, start: int) -> RunLog | NoLog:
    if jax.process_index() != 0:
      return NoLog()
    return RunLog(
      self.directory,
      start=start,
      total=self.config.steps,
      timers=self._timers,
      progress=self.config.progress,
      wandb=self.config.wandb,
    )

  def _write(
    self, log: RunLog | NoLog, made: "_Made", clock: float, state: TrainState, frozen: PyTree
  ) -> float:
    """Logs a step once its numbers are there, looks into it if it was skipped, and returns the time."""
    metrics = jax.device_get(made.metrics)
    now = time.perf_counter()
    skipped = self._bad_steps.count(metrics)
    record = step_record(metrics, made.rows, made.positions, now - clock, self._tasks)
    log.write(record | self._utilisation(made, now - clock) | skipped)
    taken = Taken(made.rows, made.batch, metrics)
    self._bad_steps.check(taken, state.params, self._key, frozen)
    return now

  def _utilisation(self, made: "_Made", seconds: float) -> dict[str, float]:
    """How much of the devices' peak the FLOPs that the model needs for the batch were; {} where not known."""
    peak = device_of(self._layout.mesh.devices.flat[0].device_kind).peak
    if self._flops is None or peak is None:
      return {}
    held = len(next(iter(made.batch.values())))  # this process's rows stand for all
    flops = self._flops(made.batch) * self.config.batch_size / held
    return {"model_flops_utilisation": flops / (seconds * peak * self._layout.mesh.size)}


class _Made(NamedTuple):
  """A step that was dispatched and is not logged yet."""

  rows: tuple[int, int]
  positions: int
  batch: Mapping[str, Any]
  metrics: Metrics


def _where_they_part(was: str, now: str) -> tuple[str, str]:
  """The two from shortly before they differ on, where they are long."""
  same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(was, now, strict=False))
  alike = max(len(list(same)) - 20, 0)
  dots = "..." if alike else ""
  return dots + was[alike : alike + 60], dots + now[alike : alike + 60]


def _positions(arrays: Mapping[str, jax.Array]) -> int:
  """Tokens of a batch, padding included."""
  return sum(x.size for name, x in arrays.items() if name.endswith("_segment_ids"))


def _keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """For the parameters, and for the steps."""
  first, second = jax.random.split(jax.random.key(seed))
  return first, second
