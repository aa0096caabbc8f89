"""SIGTERM: a run saves, and ends at the next step."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Termination:
  """Whether SIGTERM has come; on several processes, whether all agreed to stop at this step."""

  def __init__(self) -> None:
    self.came = False
    # JAX itself listens on several processes, and a handler of ours would take the signal from it.
    self._listens = (
      jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    )

  def __enter__(self) -> "Termination":
    if self._listens:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *error: object) -> None:
    if self._listens:
      signal.signal(signal.SIGTERM, self._before)

  def asked(self, step: int) -> bool:
    if jax.process_count() > 1:
      self.came = multihost_utils.reached_preemption_sync_point(step)
    return self.came

  def _note(self, *_: object) -> None:
    self.came = True
