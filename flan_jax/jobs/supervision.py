"""A launch under a light parent, which says which process died, when and how, and leaves none behind.

The parent forks before anything heavy is imported, so it costs a few megabytes and no start-up. This module
imports nothing but the standard library.
"""

import collections
import contextlib
import ctypes
import mmap
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LOST = 3
"""Exit status of a process that ended because another one had, or hung: the same command goes on."""

GO_ON = "Started again, the same command goes on from what is saved."

_TOLD = (0, 2, LOST, 130)  # exit statuses whose reason the process itself has printed
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PATIENCE = 10.0  # seconds that the processes beside one that died get to end of themselves
_TICK = 0.1
_AWAITED = {signal.SIGCHLD, *_PASSED_ON}
_PR_SET_PDEATHSIG = 1


class Signs:
  """What a process leaves for its parent, in memory that outlives it: its place, its last step, the others."""

  _HEAD = struct.Struct("iiqi")  # index, count, step, bytes of the names

  def __init__(self) -> None:
    self._memory = mmap.mmap(-1, 1 << 20)
    self._HEAD.pack_into(self._memory, 0, 0, 0, -1, 0)

  def place(self, index: int, count: int, names: Sequence[str] = ()) -> None:
    """Tells which process of how many this is, and what all of them are called."""
    text = "\n".join(names).encode()[: len(self._memory) - self._HEAD.size]
    self._memory[self._HEAD.size : self._HEAD.size + len(text)] = text
    self._HEAD.pack_into(self._memory, 0, index, count, self.step, len(text))

  def begun(self, step: int) -> None:
    struct.pack_into("q", self._memory, 8, step)

  @property
  def index(self) -> int:
    return self._head()[0]

  @property
  def count(self) -> int:
    """Of the processes of the run; 0: it came to nothing yet."""
    return self._head()[1]

  @property
  def step(self) -> int:
    """The last that was begun; -1: none."""
    return self._head()[2]

  def name(self, index: int) -> str:
    names = bytes(self._memory[self._HEAD.size :][: self._head()[3]]).decode(errors="replace")
    known = names.splitlines()
    return known[index] if index < len(known) else f"process {index}"

  def _head(self) -> tuple[int, int, int, int]:
    return self._HEAD.unpack_from(self._memory)


signs = Signs()
"""Those of this process; its parent, where it has one, reads them."""

_errors_pipe: int | None = None


def named(index: int, host: str, pid: int) -> str:
  return f"process {index} (host {host}, pid {pid})"


def supervise(environments: Sequence[Mapping[str, str]], heartbeat_timeout: float) -> int | None:
  """Goes on in a child for each environment, and watches over them.

  Args:
    environments: variables to be added in each child.
    heartbeat_timeout: seconds after which a process of several that is stopped is ended.

  Returns:
    None in the children; in the parent, once they have ended, the exit status of the launch.
  """
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
  children: list[_Child] = []
  for environment in environments:
    child = _Child()
    if child.begin(environment):
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
      return None
    children.append(child)
  for child in children:
    child.listen()
  return _watch(children, heartbeat_timeout)


def local_processes(count: int | None) -> list[dict[str, str]]:
  """The variables by which so many processes of this machine find each other; None: nothing is added for one.

  Each has a GPU of its own, where there are any.
  """
  if count is None:
    return [{}]
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
  shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address}
  shared["JAX_NUM_PROCESSES"] = str(count)
  return [
    {**shared, "JAX_PROCESS_ID": str(index), "JAX_LOCAL_DEVICE_IDS": str(index)}
    for index in range(count)
  ]


def possible() -> bool:
  """Whether this system has what the parent needs; macOS has not."""
  return hasattr(signal, "sigtimedwait") and hasattr(os, "fork")


def supervised() -> bool:
  """Whether this is a child of `supervise`."""
  return _errors_pipe is not None


def end_with_parent(number: int = signal.SIGTERM) -> None:
  """Where Linux offers it: this process gets a signal when its parent is gone."""
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def native_errors_to_parent() -> None:
  """What C++ writes to stderr passes through the parent from now on, which reads in it who was lost.

  Python's own stderr stays what it was, a terminal to its progress bars where it is one.
  """
  if _errors_pipe is None:
    return
  sys.stderr.flush()
  own = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
  os.dup2(_errors_pipe, 2)
  sys.stderr = own


class _Child:
  """A process, what it leaves, and the end of what C++ wrote in it."""

  def __init__(self) -> None:
    self.pid, self.peak, self.status = 0, 0, 0
    self.told = False  # how it ends
    self.signs, self.last_words = Signs(), collections.deque[bytes](maxlen=64)
    self._began, self._stopped = time.monotonic(), 0.0
    self._oom_kills = _oom_kills()

  def begin(self, environment: Mapping[str, str]) -> bool:
    """Forks; whether this is the child."""
    global signs, _errors_pipe
    self._pipe, its = os.pipe()
    parent = os.getpid()
    self.pid = os.fork()
    if self.pid:
      os.close(its)
      return False
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was asked for
      os._exit(LOST)
    os.close(self._pipe)
    signs, _errors_pipe = self.signs, its
    os.environ.update(environment)
    return True

  def listen(self) -> None:
    self._pump = threading.Thread(target=self._pass_on, daemon=True)
    self._pump.start()

  def _pass_on(self) -> None:
    while chunk := os.read(self._pipe, 1 << 16):
      self.last_words.append(chunk)
      _write(chunk)

  def ended(self) -> bool:
    """Whether it has, just now."""
    pid, status, used = os.wait4(self.pid, os.WNOHANG)
    if not pid:
      return False
    self.status, self.peak = os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024
    self._pump.join(1.0)  # what it wrote last; a process that it left behind may hold the pipe
    return True

  def kill(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)

  def stopped_for(self) -> float:
    """Seconds that this process has watched it being stopped, by SIGSTOP or a debugger."""
    with contextlib.suppress(OSError):
      state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
      self._stopped = self._stopped + _TICK if state in "Tt" else 0.0
    return self._stopped

  @property
  def name(self) -> str:
    if not self.signs.count:
      return f"the process (host {socket.gethostname()}, pid {self.pid})"
    return named(self.signs.index, socket.gethostname(), self.pid)

  def when(self) -> str:
    """At what time, how long after the start, and in which step."""
    now, step = time.strftime("%Y-%m-%d %H:%M:%S"), self.signs.step
    where = "before its first step" if step < 0 else f"in step {step}"
    return f"at {now}, {time.monotonic() - self._began:.0f} s after the start, {where}"

  def lost(self) -> str:
    """Who was lost that it could not go on without, as JAX's coordination service wrote; "" for nobody."""
    if self.status != -signal.SIGABRT:
      return ""
    text = b"".join(self.last_words).decode(errors="replace")
    for pattern, what in _MISSING:
      if found := re.search(pattern, text):
        indices = found["who"].split() if "who" in found.groupdict() else ["0"]
        who = ", ".join(self.signs.name(int(index)) for index in indices)
        return f"{who} {what}"
    return ""

  def how(self) -> str:
    """How it died, and what is to be done."""
    status = self.status
    if status > 0:
      return f"exit status {status}. Its own message stands above. {GO_ON}"
    name = signal.Signals(-status).name
    if status != -signal.SIGKILL:
      return f"{name}. What native code wrote stands above. {GO_ON}"
    peak = f"{self.peak / 1e9:.1f} GB"
    if _oom_kills() > self._oom_kills:
      return (
        f"{name}, and the system has killed for lack of memory meanwhile; it held {peak}. Take smaller batches, "
        f"a larger accumulation, more devices, or a larger machine. {GO_ON}"
      )
    return f"{name}, by a person or a scheduler; it held {peak} at most. {GO_ON}"


_MISSING = (
  (
    r"stopped sending heartbeats\):\s*(?P<who>\d+(\s+\d+)*)",
    "was lost: it gave no sign of life within the heartbeat time-out",
  ),
  (
    r"timed out task names:\s*(?P<who>\d+(\s+\d+)*)",
    "never arrived: see whether it was started, and what its own launch says",
  ),
  (
    r"(?s)Terminating process.*RPC: \S*/RegisterTask",
    "never answered: see whether it was started, and whether its address can be reached from here",
  ),
  (
    r"(?s)Terminating process.*(Failed to send RPC|RPC: \S*/(Heartbeat|PollForError))",
    "was lost: it answers no more",
  ),
)


def _watch(children: Sequence[_Child], heartbeat_timeout: float) -> int:
  asked, result, patience = set[int](), 0, float("inf")
  running = list(children)
  while running:
    # Not in one call: where this process is suspended beyond the time-out, Python's returns signals that never came.
    time.sleep(_TICK)
    while (came := signal.sigtimedwait(_AWAITED, 0)) is not None:
      if came.si_signo == signal.SIGCHLD:
        continue
      asked.add(came.si_signo)
      for child in running if came.si_code <= 0 else ():  # what a terminal sends reaches all
        child.kill(came.si_signo)
    for child in [child for child in running if child.ended()]:
      running.remove(child)
      if not result:
        result = _judge(child, asked)
    if result and patience == float("inf"):
      patience = time.monotonic() + _PATIENCE
    for child in running:
      if time.monotonic() > patience:
        child.kill(signal.SIGKILL)
      elif child.signs.count > 1 and child.stopped_for() > heartbeat_timeout:
        _say(f"{child.name} is stopped for longer than the heartbeat time-out, and ended. {GO_ON}")
        child.told = True
        child.kill(signal.SIGKILL)
  return result


def _judge(child: _Child, asked: set[int]) -> int:
  """The exit status of the launch whose first process to end, or to fail, this is; says what is to be said."""
  status = child.status
  if lost := child.lost():
    _say(f"{lost}. With it {child.name} ended {child.when()}. {GO_ON}")
    return LOST
  if -status in asked:
    _say(f"{child.name} was stopped by {signal.Signals(-status).name} {child.when()}.")
  elif status not in _TOLD and not child.told:
    _say(f"{child.name} died {child.when()}: {child.how()}")
  return status if status >= 0 else 128 - status


def _say(text: str) -> None:
  _write(f"\nflan-jax: {text}\n".encode())  # a progress bar may have been drawn in this line


def _write(text: bytes) -> None:
  with contextlib.suppress(OSError):
    os.write(2, text)


_VMSTAT = Path("/proc/vmstat")


def _oom_kills() -> int:
  """How many processes this system has killed for lack of memory so far."""
  with contextlib.suppress(OSError):
    found = re.search(r"^oom_kill (\d+)", _VMSTAT.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
  return 0
