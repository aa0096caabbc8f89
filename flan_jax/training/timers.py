"""Where the time of a run goes, and what of it was of use."""

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flan_jax.data.atomic import write_whole
from flan_jax.training.json_lines import json_lines

ATTEMPTS = "attempts.jsonl"
STEP = "step"

Item = TypeVar("Item")
_NO_MORE: Any = object()


class Timers:
  """Seconds by kind. Of kinds within one another the inner one counts alone, so that they add up."""

  def __init__(self) -> None:
    self._seconds: defaultdict[str, float] = defaultdict(float)
    self._open: list[str] = []
    self._since = time.monotonic()

  @contextlib.contextmanager
  def __call__(self, kind: str) -> Iterator[None]:
    """Counts what runs within as this kind."""
    self._settle()
    self._open.append(kind)
    try:
      yield
    finally:
      self._settle()
      self._open.pop()

  def each(self, kind: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items, with the time that they let wait for them counted as this kind."""
    waiting = iter(items)
    while True:
      with self(kind):
        item = next(waiting, _NO_MORE)
      if item is _NO_MORE:
        return
      yield item

  @property
  def seconds(self) -> dict[str, float]:
    """So far, in the order in which the kinds first came."""
    self._settle()
    return {kind: round(seconds, 3) for kind, seconds in self._seconds.items()}

  def _settle(self) -> None:
    now = time.monotonic()
    if self._open:
      self._seconds[self._open[-1]] += now - self._since
    self._since = now


class Attempts:
  """`attempts.jsonl`: a line for each time that a run was begun or gone on with.

  A line has the time at which the attempt began and was last seen (seconds since 1970), the step that it began
  after and the last one that it told of, and the seconds of each kind. "again" are steps and seconds that it
  made and that the next attempt had to make again.

  Args:
    directory: of the run.
    timers: of this attempt.
    start: the step that it begins after.
    again: the log of the steps that are made again.
  """

  def __init__(
    self, directory: Path, timers: Timers, start: int, again: Sequence[Mapping[str, Any]]
  ):
    self._path, self._timers = directory / ATTEMPTS, timers
    self._before = read_attempts(directory)
    self._this = {"begun": time.time(), "from": start}
    if self._before and again:
      before = self._before[-1]
      lost = sum(record["seconds"] for record in again)
      before["again"] = {"steps": len(again), "seconds": round(lost, 3)}
      # It was killed after it had last told of its time.
      untold = sum(record["seconds"] for record in again if record["step"] > before["step"])
      before["seconds"][STEP] = round(before["seconds"].get(STEP, 0.0) + untold, 3)

  def write(self, step: int) -> None:
    """Notes that this attempt has come so far."""
    seen = {"seen": time.time(), "step": step, "seconds": self._timers.seconds}
    lines = [*self._before, {**self._this, **seen}]
    write_whole(self._path, (json.dumps(line) + "\n" for line in lines))


def read_attempts(directory: str | Path) -> list[dict[str, Any]]:
  """The lines of a run's attempts.jsonl."""
  path = Path(directory) / ATTEMPTS
  return list(json_lines(path)) if path.is_file() else []


def goodput(directory: str | Path) -> dict[str, Any] | None:
  """What share of the time of all attempts went into steps that counted; None where no attempt is told of.

  Returns:
    {"attempts", "goodput": the share, "seconds": by kind; steps that were made again are a kind of their own}.
  """
  attempts = read_attempts(directory)
  if not attempts:
    return None
  seconds: defaultdict[str, float] = defaultdict(float)
  for attempt in attempts:
    for kind, taken in attempt["seconds"].items():
      seconds[kind] += taken
  again = sum(attempt["again"]["seconds"] for attempt in attempts if "again" in attempt)
  seconds[STEP] -= again
  seconds["lost"] = again
  whole = sum(seconds.values())
  return {
    "attempts": len(attempts),
    "goodput": round(seconds[STEP] / whole, 4) if whole else 0.0,
    "seconds": {kind: round(taken, 1) for kind, taken in seconds.items() if taken},
  }
