"""When a run saves: every so many steps, and every so many minutes."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


class SavingTimes:
  """Asked after every step, in all processes alike, whether a checkpoint is due.

  Minutes are those of process 0. The processes do not ask it at every step: it says how many steps
  will take half of the time that is left, and is asked again after those, so that a handful of
  questions reach the minute and steps that become slow are noticed in time.

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
    self._asked = (step, self._saved_at)
    self._ask_at = step + 1

  def due(self, step: int) -> bool:
    due = step % self._every == 0
    if self._seconds is not None and not due and step >= self._ask_at:
      self._ask_at = step + _of_first_process(self._steps_to_wait(step))
      due = self._ask_at == step
    if due:
      self._saved_at, self._ask_at = self._clock(), step + 1
      self._asked = (step, self._saved_at)
    return due

  def _steps_to_wait(self, step: int) -> int:
    """Until the next question; 0: the time is up."""
    assert self._seconds is not None
    now = self._clock()
    left = self._saved_at + self._seconds - now
    if left <= 0:
      return 0
    (before, then), self._asked = self._asked, (step, now)
    pace = max((now - then) / max(step - before, 1), 1e-6)
    return max(int(left / pace / 2), 1)


def _of_first_process(number: int) -> int:
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(min(number, 2**31 - 1))))
