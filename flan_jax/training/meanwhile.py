"""What is done while a run goes on: held-out losses, which may end it, and evaluations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flan_jax.checkpoints import Checkpoints
from flan_jax.errors import ConfigError
from flan_jax.training.averages import averaged_params
from flan_jax.training.config import TrainerConfig
from flan_jax.training.logging import NoLog, RunLog
from flan_jax.training.step import TrainState
from flan_jax.training.timers import Timers
from flan_jax.training.validation import HeldOutLoss

PyTree = Any


class Meanwhile:
  """All of it falls on the regular checkpoints of a run, those of `checkpoint_every` and the last.

  Args:
    held_out: the loss of parameters on batches that are not trained on.
    judge: from parameters and frozen ones to a line of evaluation.jsonl, every `evaluate_every` steps.
    saved: called with step, parameters and frozen ones of each checkpoint.
    timers: of the launch.
  """

  def __init__(
    self,
    config: TrainerConfig,
    *,
    held_out: HeldOutLoss | None,
    judge: Callable[[PyTree, PyTree], Mapping[str, Any]] | None,
    saved: Callable[[int, PyTree, PyTree], None] | None,
    timers: Timers,
  ):
    for name in ("keep_best", "patience"):
      value = getattr(config, name)
      if value is not None and held_out is None:
        raise ConfigError(
          f"{name}={value} is by a held-out loss, and none is taken: set validation_batches, or leave it out"
        )
    self._config, self._timers = config, timers
    self._held_out, self._judge, self._saved = held_out, judge, saved
    self.losses: list[float] = []
    self._owes_loss = held_out is not None

  @property
  def out_of_patience(self) -> bool:
    return out_of_patience(self.losses, self._config.patience)

  def regular(self, step: int) -> bool:
    """Whether it falls on this step."""
    return step == self._config.steps or step % self._config.checkpoint_every == 0

  def go_on_from(self, meta: Mapping[str, Any]) -> None:
    """Goes on with the losses that stand beside a checkpoint."""
    self.losses = list(meta.get("held_out_losses", ()))
    cut_short = "measured" not in meta and self.regular(int(meta["step"]))  # by SIGTERM
    self._owes_loss = self._held_out is not None and (cut_short or not self.losses)

  def facts(self) -> dict[str, Any]:
    """What a checkpoint keeps of it, as JSON."""
    return {"held_out_losses": self.losses} if self.losses else {}

  def catch_up(
    self,
    log: RunLog | NoLog,
    state: TrainState,
    frozen: PyTree,
    checkpoints: Checkpoints,
    stop: Callable[[], bool],
  ) -> None:
    """What an earlier attempt did not come to, before the first step of this one."""
    if self._owes_loss and (measured := self.measure(log, state, frozen, stop)):
      checkpoints.measured(int(state.step), measured)
    if int(state.step) and not stop():
      self.look_at(log, state, frozen)

  def measure(
    self, log: RunLog | NoLog, state: TrainState, frozen: PyTree, stop: Callable[[], bool]
  ) -> Mapping[str, Any] | None:
    """Takes the held-out loss, and logs it; None: there is none, or it was told to stop."""
    if self._held_out is None:
      return None
    with self._timers("evaluate"):
      params = averaged_params(state.opt_state, state.params)
      record = self._held_out(params, frozen, stop)
    if record is None:
      return None
    if self._config.keep_best:
      self._config.kept.value(record)  # refuses a name that nothing has
    self.losses.append(record["loss"])
    log.validated(int(state.step), record)
    return record

  def look_at(self, log: RunLog | NoLog, state: TrainState, frozen: PyTree) -> None:
    """Judges the parameters of a checkpoint, and hands them on."""
    step, every = int(state.step), self._config.evaluate_every
    params = averaged_params(state.opt_state, state.params)
    if self._judge is not None and every and step % every == 0:
      known = np.bool_(jax.process_index() == 0 and log.judged_already(step))
      if not multihost_utils.broadcast_one_to_all(known):
        with self._timers("evaluate"):
          log.judged(step, self._judge(params, frozen))
    if self._saved is not None and self.regular(step):
      with self._timers("save"):
        self._saved(step, params, frozen)

  @property
  def waits_for_checkpoints(self) -> bool:
    """Whether somebody is handed parameters only once they are on disk."""
    return self._saved is not None


def out_of_patience(losses: Sequence[float], patience: int | None) -> bool:
  """Whether the last losses, `patience` of them, were no lower than the lowest before them."""
  if patience is None or len(losses) <= patience:
    return False
  return not min(losses[-patience:]) < min(losses[:-patience])
