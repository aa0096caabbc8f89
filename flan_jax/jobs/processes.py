"""Several processes as one run: they meet, work together, and end together."""

import contextlib
import faulthandler
import functools
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from jax._src import distributed

from flan_jax.errors import ConfigError, MeshError
from flan_jax.jobs import supervision
from flan_jax.jobs.clusters import Place
from flan_jax.training import peers
from flan_jax.training.watchdog import Watchdog, WatchdogConfig

Made = TypeVar("Made")


class AgreedError(ConfigError):
  """A mistake that all processes of the run find together: each of them raises it at the same place."""


class Timeouts(NamedTuple):
  """In seconds.

  Attributes:
    initialization: until every process has arrived.
    heartbeat: without a sign of life, until a process counts as lost.
    shutdown: that a process which is done waits for the others.
  """

  initialization: int = 300
  heartbeat: int = 100
  shutdown: int = 300


@contextlib.contextmanager
def joined(place: Place | None, timeouts: Timeouts = Timeouts()) -> Iterator[None]:
  """Within it this process is one of a run's, with its devices; if it fails, the others are told.

  Args:
    place: None: alone.

  Raises:
    ConfigError: process 0 cannot listen where the others look for it.
    MeshError: JAX finds no devices.
  """
  supervision.signs.place(0, 1)
  if place is None or jax.distributed.is_initialized():
    _look_for_devices()
    yield
    return
  supervision.signs.place(place.index, place.count)
  supervision.native_errors_to_parent()
  _join(place, timeouts)
  failing = threading.Event()
  listener = threading.Thread(target=_end_with_others, args=(failing,), daemon=True)
  listener.start()
  try:
    _look_for_devices()
    yield
  except (SystemExit, AgreedError):  # all of them do, at the same place
    jax.distributed.shutdown()
    raise
  except BaseException as error:
    if _may_be_of_another(error):
      # The coordination service ends this process as soon as it knows who was lost.
      print(f"flan-jax: {_first_line(error)}: waiting for who was lost", file=sys.stderr)
      time.sleep(1.5 * timeouts.heartbeat)
    failing.set()
    _tell_the_others(f"{NAMES[place.index]} failed: {_first_line(error)}", stacks=False)
    raise
  jax.distributed.shutdown()
  listener.join(5.0)


def end_all(reason: str) -> None:
  """Ends this process and all others of the run; each leaves the stacks of its threads on stderr."""
  if NAMES:
    _tell_the_others(reason, stacks=True)
  _end(reason, stacks=True)


def watchdog_of(config: WatchdogConfig) -> Watchdog:
  """One that knows the processes of this run, and whose steps this process's parent learns."""
  return Watchdog(config, NAMES, begun=supervision.signs.begun, end=end_all)


def _join(place: Place, timeouts: Timeouts) -> None:
  try:
    with _missing_ones_named(timeouts.initialization):
      jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        place.devices,
        cluster_detection_method="deactivate",
        # Process 0 says who is missing after the time that was asked for, and the others hear it.
        initialization_timeout=timeouts.initialization + 10,
        heartbeat_timeout_seconds=timeouts.heartbeat,
        shutdown_timeout_seconds=timeouts.shutdown,
      )
  except RuntimeError as error:
    raise ConfigError(
      f"process {place.index} of {place.count} cannot join at {place.address}: {error}. Is the port taken, or the "
      "host another one?"
    ) from error
  own = supervision.named(place.index, socket.gethostname(), os.getpid())
  peers.tell("name", place.index, own)
  peers.meet("names", timeouts.initialization)
  told = peers.told("name")
  NAMES[:] = [told[index] for index in range(place.count)]
  supervision.signs.place(place.index, place.count, NAMES)


NAMES: list[str] = []
"""What the processes of the run are called; empty where this one is alone."""

_END = "end"
_GRACE = 2.0  # seconds


def _tell_the_others(reason: str, stacks: bool) -> None:
  with contextlib.suppress(RuntimeError):
    if peers.tell_all(_END, json.dumps([reason, stacks])) and is_first():
      time.sleep(2 * _GRACE)  # they hear it through this process


def _end_with_others(failing: threading.Event) -> None:
  """Ends this process when another says so."""
  try:
    reason, stacks = json.loads(peers.heard(_END, _PATIENCE * 365))
  except RuntimeError:  # the run is over
    return
  # A mistake is mostly made by all, and each tells its own.
  if not failing.wait(_GRACE):
    _end(reason, stacks)


def _end(reason: str, stacks: bool) -> None:
  said = f"flan-jax: {reason}. {supervision.GO_ON}\n"
  if stacks:
    with tempfile.TemporaryFile() as file:
      faulthandler.dump_traceback(file)
      file.seek(0)
      said += file.read().decode(errors="replace")
  sys.stderr.write(said)  # at once: processes may share it
  sys.stderr.flush()
  os._exit(supervision.LOST)


def _may_be_of_another(error: BaseException | None) -> bool:
  """Whether it comes from the runtime, which says the same of its own faults and of a peer that is gone."""
  while error is not None:
    if _OF_RUNTIME.match(str(error)):
      return True
    error = error.__cause__ or error.__context__
  return False


_OF_RUNTIME = re.compile(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b")


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def _missing_ones_named(seconds: int) -> Iterator[None]:
  """Lets the coordination service give up after so long, with the processes that it misses.

  JAX does not ask it to, and its clients would end first, without knowing of each other.
  """
  runtime = distributed._jax
  make = runtime.get_distributed_runtime_service
  runtime.get_distributed_runtime_service = functools.partial(
    make, cluster_register_timeout=seconds
  )
  try:
    yield
  finally:
    runtime.get_distributed_runtime_service = make


def _look_for_devices() -> None:
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    raise MeshError(
      f"JAX finds no devices of the kind that JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r} "
      "asks for: unset it, or install JAX for them."
    ) from error


def is_first() -> bool:
  """Whether this is the process that writes what is written once: reports, logs, bars."""
  return jax.process_index() == 0


def first_alone(make: Callable[[], Made], name: str) -> Made:
  """`make()` in process 0 while the others wait, then in them: they find what the first one left.

  Processes that share no disk with it make their own.

  Args:
    name: of this meeting of the processes; not used for another one.
  """
  if jax.process_count() == 1:
    return make()
  made = make() if is_first() else None
  ocp.multihost.sync_global_processes(name, timeout=_PATIENCE)
  return make() if made is None else made


_PATIENCE = 24 * 60 * 60  # seconds: preparing a large mixture takes hours
