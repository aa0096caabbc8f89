"""When a run saves: every so many steps, and every so many minutes."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


class SavingTimes:
  """Asked after every step, in all processes alike, whether a checkpoint is due.

  Minutes are those of process 0. The processes do not ask it at every step: it says how many steps
  will take half of the time that is left, though no more than it has seen since the last
  checkpoint, and is asked again after those. So a handful of questions reach the minute, and steps
  that become slow are noticed.

  Args:
    step: the last one that is saved.
    every: steps between checkpoints, counted from 0.
    minutes: since the last checkpoint; None: only steps count.
  """

  def __init__(
    self,
    step: int,
    every: int,
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._every, self._seconds = every, None if minutes is None else 60 * minutes
    self._clock, self._saved_at = clock, clock()
    self._saved = step
    self._ask_at = step + 1

  def due(self, step: int) -> bool:
    due = step % self._every == 0
    if self._seconds is not None and not due and step >= self._ask_at:
      self._ask_at = step + _of_first_process(self._steps_to_wait(step))
      due = self._ask_at == step
    if due:
      self._saved, self._saved_at, self._ask_at = step, self._clock(), step + 1
    return due

  def _steps_to_wait(self, step: int) -> int:
    """Until the next question; 0: the time is up."""
    assert self._seconds is not None
    passed, seen = self._clock() - self._saved_at, step - self._saved
    if passed >= self._seconds:
      return 0
    half = (self._seconds - passed) * seen / max(passed, 1e-6) / 2
    return max(min(int(half), seen), 1)


def _of_first_process(number: int) -> int:
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(min(number, 2**31 - 1))))
