"""Which checkpoints of a run stay once the next one is whole."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flan_jax.errors import ConfigError, UnknownName


@dataclass(frozen=True)
class Keep:
  """A checkpoint stays that any of these wants; the latest always does.

  Args:
    latest: so many of the latest; None: all.
    every: those of the steps that it divides, for ever; None: none.
    best: so many of the best; None: none.
    by: what is best, "lowest" or "highest" and the name of a number in what was measured with the
      checkpoint, such as "lowest loss" or "highest tasks/boolq".
  """

  latest: int | None = 2
  every: int | None = None
  best: int | None = None
  by: str = "lowest loss"

  def __post_init__(self) -> None:
    for name, value in (
      ("keep", self.latest),
      ("keep_every", self.every),
      ("keep_best", self.best),
    ):
      if value is not None and value < 1:
        raise ConfigError(f"{name}={value} must be 1 or more, or None")
    sense, _, metric = self.by.partition(" ")
    if sense not in ("lowest", "highest") or not metric:
      raise ConfigError(
        f"best={self.by!r}: say which is better and of what, such as 'lowest loss' or 'highest tasks/boolq'"
      )

  def value(self, measured: Mapping[str, Any] | None) -> float | None:
    """What a checkpoint is judged by; None: it was not measured, or is no finite number.

    Raises:
      UnknownName: nothing of that name was measured.
    """
    if measured is None:
      return None
    numbers, metric = dict(_numbers(measured)), self.by.partition(" ")[2]
    if metric not in numbers:
      raise UnknownName("measurement", metric, numbers, "Name one of them in best.")
    return numbers[metric] if math.isfinite(numbers[metric]) else None

  def steps(self, values: Mapping[int, float | None]) -> set[int]:
    """Those of the steps that stay, given what each is judged by."""
    steps = sorted(values)
    latest = steps if self.latest is None else steps[-self.latest :]
    every = [step for step in steps if self.every and step % self.every == 0]
    return {*latest, *every, *self.ranked(values)[: self.best or 0]}

  def ranked(self, values: Mapping[int, float | None]) -> list[int]:
    """Those of the steps that were measured, the best first, and of equal ones the later."""
    sign = 1 if self.by.startswith("lowest") else -1
    ranks = sorted((sign * v, -step) for step, v in values.items() if v is not None)
    return [-step for _, step in ranks]


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
  for name, value in record.items():
    if isinstance(value, Mapping):
      yield from _numbers(value, f"{prefix}{name}/")
    elif isinstance(value, int | float):
      yield prefix + name, value
