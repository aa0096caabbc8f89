"""Says while a run goes on how far each process is, and ends one whose steps have stopped."""

import contextlib
import dataclasses
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from tqdm import tqdm

from flan_jax.errors import ConfigError
from flan_jax.training import peers

_LONGEST = 1800.0  # seconds: a step on several processes, where nothing is set
_TICK = 5.0  # seconds, at most, between two looks


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
  """How often to speak, and how long to wait.

  Attributes:
    heartbeat: seconds between two lines in which process 0 says how far each process is. One that is alone says so
      where a step takes longer than that. None: nothing is said.
    step_timeout: seconds after which a step ends the run, with the stacks of all threads and the name of the process
      that is late; None: 1800 on several processes, no limit on one. The first step, which is compiled, saving and
      held-out losses do not count.
  """

  heartbeat: float | None = 60.0
  step_timeout: float | None = None

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      if value is not None and not value > 0:
        raise ConfigError(f"watchdog.{name}={value} must be above 0, or None")


@dataclasses.dataclass(frozen=True)
class Pulse:
  """What a process last did.

  Attributes:
    step: the last that it began, with its batch at hand; 0: none yet.
    doing: what it does instead of going on to the next one, such as "saving".
    at: since when, in seconds since 1970; clocks of hosts are taken to agree.
  """

  step: int = 0
  doing: str = "before step"
  at: float = dataclasses.field(default_factory=time.time)

  def age(self) -> float:
    return max(time.time() - self.at, 0.0)

  def __str__(self) -> str:
    return f"{self.doing or 'in step'} {self.step} for {self.age():.0f} s"


class Watchdog:
  """Watches over the loop of a run, as a context around it.

  Processes tell each other beside the devices, so that a hung collective does not keep them from it.

  Args:
    names: of the processes; none where there is one alone.
    begun: told each step.
    end: ends all processes of the run, with a reason.
  """

  def __init__(
    self,
    config: WatchdogConfig = WatchdogConfig(),
    names: Sequence[str] = (),
    *,
    begun: Callable[[int], None] = lambda step: None,
    end: Callable[[str], None] = lambda reason: None,
  ):
    self._names, self._begun, self._end = names, begun, end
    self._limit = config.step_timeout or (_LONGEST if names else math.inf)
    self._heartbeat = config.heartbeat or math.inf
    self._tick = min(_TICK, self._heartbeat / 4, self._limit / 4)
    self._pulse, self._over = Pulse(), threading.Event()

  def __enter__(self) -> "Watchdog":
    self._pulse = Pulse()
    self._over.clear()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._over.set()
    self._thread.join(self._tick + 1)

  def beat(self, step: int) -> None:
    """A step begins: its batch is at hand, and the devices get it now."""
    self._pulse = Pulse(step, "" if self._pulse.step else "compiling step")
    self._begun(step)

  @contextlib.contextmanager
  def pause(self, doing: str) -> Iterator[None]:
    """What is done within takes as long as it takes."""
    step = self._pulse.step
    self._pulse = Pulse(step, doing)
    yield
    self._pulse = Pulse(step, "" if step else "before step")

  def _watch(self) -> None:
    spoken = time.monotonic()
    while not self._over.wait(self._tick):
      try:
        pulses = self._exchange()
      except RuntimeError:  # the coordination service is gone, and ends this process
        return
      own = self._pulse
      # Process 0 knows who is late, and is given the time to say it.
      limit = self._limit if pulses else 1.5 * self._limit + 2 * self._tick
      if not own.doing and own.age() > limit:
        self._end(
          f"no step for {own.age():.0f} s, and watchdog.step_timeout is {self._limit:g} s: "
          f"{self._who_is_late(pulses) or own}"
        )
      if pulses and time.monotonic() - spoken > self._heartbeat:
        spoken = time.monotonic()
        if self._names or own.age() > self._heartbeat:
          tqdm.write(f"heartbeat: {self._summary(pulses)}", file=sys.stderr)

  def _exchange(self) -> Mapping[int, Pulse]:
    """Tells this process's pulse; those of all in process 0, none in others."""
    if not self._names:
      return {0: self._pulse}
    index = jax.process_index()
    peers.tell("pulse", index, json.dumps(dataclasses.asdict(self._pulse)))
    told = peers.told("pulse") if index == 0 else {}
    return {i: Pulse(**json.loads(text)) for i, text in sorted(told.items())}

  def _summary(self, pulses: Mapping[int, Pulse]) -> str:
    ages = [pulse.age() for pulse in pulses.values()]
    # What was told is old by up to a tick: only where all stand still does a lower step mean anything.
    late = self._who_is_late(pulses) if min(ages) > 2 * self._tick else ""
    step = max(pulse.step for pulse in pulses.values())
    if not self._names:
      return str(pulses[0])
    return (
      f"step {step}; {len(ages)} processes, last heard of {min(ages):.0f} to {max(ages):.0f} s ago"
      + (f"; {late}" if late else "")
    )

  def _who_is_late(self, pulses: Mapping[int, Pulse]) -> str:
    if not self._names or not pulses:
      return ""
    busy = {i for i, pulse in pulses.items() if pulse.doing}
    last = min(pulse.step for pulse in pulses.values())
    behind = busy or {i for i, pulse in pulses.items() if pulse.step == last}
    if len(busy) == len(pulses):
      return f"all are {pulses[0].doing} {last}"
    if len(behind) == len(pulses):
      return f"all are in step {last}: a device hangs, or what they say to each other"
    return "late: " + "; ".join(f"{self._names[i]}, {pulses[i]}" for i in sorted(behind))
