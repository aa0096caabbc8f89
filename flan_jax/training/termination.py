"""SIGTERM: training saves and ends at the next step, and everything around it ends at once."""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_SAID = "stopped by SIGTERM; what is finished is kept, and the same command goes on"

_noted: list["Termination"] = []  # those within which this process is

# JAX finds the place where all processes stop by a number that grows from question to question.
_questions = itertools.count(1)


class Termination:
  """Whether SIGTERM has come; on several processes, whether all agreed to stop here."""

  def __init__(self) -> None:
    self.came = False
    # JAX itself listens on several processes, and a handler of ours would take the signal from it.
    self._listens = jax.process_count() == 1 and _may_listen()

  def __enter__(self) -> "Termination":
    _noted.append(self)
    if self._listens:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *error: object) -> None:
    _noted.remove(self)
    if self._listens:
      signal.signal(signal.SIGTERM, self._before)

  def asked(self) -> bool:
    """Asked in all processes at the same places of their work."""
    self.came = self.came or _agreed()
    return self.came

  def _note(self, *_: object) -> None:
    self.came = True


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
  """Within it SIGTERM ends this process at once, with a word and status 0: what is on disk is whole.

  Processes of a run hear of it through `end_if_asked` instead.
  """
  if not _may_listen():
    yield
    return

  def end(*_: object) -> None:
    # Nothing is unwound: a computation, or the process that prepares the data, would be waited for.
    sys.stdout.flush()
    os.write(2, f"\nflan-jax: {_SAID}\n".encode())
    os._exit(0)

  before = signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def end_if_asked() -> None:
  """Ends the processes of a run where SIGTERM came to any; called by all at the same places of their work,
  where nothing is lost that is not on disk or on its way to it.

  Raises:
    SystemExit: with status 0.
  """
  if any(each.came for each in _noted) or _agreed():
    if jax.process_index() == 0:
      print(f"\nflan-jax: {_SAID}", file=sys.stderr)
    raise SystemExit(0)


def _agreed() -> bool:
  return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_questions))


def _may_listen() -> bool:
  return threading.current_thread() is threading.main_thread()
