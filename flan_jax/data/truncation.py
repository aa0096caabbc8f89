"""Making a prompt fit: exemplars first, then the long field, and nothing else.

The contract of truncation: few-shot exemplars go one by one; then the field marked `long` is
shortened until everything fits; instruction, question and options are never cut. What still does
not fit is dropped, with its reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flan_jax.errors import RecordError
from flan_jax.prompting import Rendering, fewer_shots

Render = Callable[[int | None], Rendering]
"""Renders one draw with at most so many characters of its long field (None: all of them)."""

_TRIES = 4
_SPARE = 0.03
# Characters a token: more than text has in any language, so that what is longer need not be tokenised
# to know that it is too long. Only long runs of blanks are denser.
_MOST_CHARACTERS = 8
# The estimate of how many exemplars fit may be a little too high: another one is then dropped.
_OPTIMISM = 1.1


class Tokenised(Protocol):
  """What a rendering was turned into."""

  @property
  def used(self) -> tuple[int, ...]:
    """The tokens that it takes in each dimension of a row."""


Ids = TypeVar("Ids", bound=Tokenised)


@dataclass(frozen=True)
class Dropped:
  """An example that cannot be used, and why: "too_long" or "empty"."""

  reason: str


@dataclass
class Fitted(Generic[Ids]):
  """What fits, and what it took."""

  ids: Ids
  rendering: Rendering
  shortened: bool
  shots_dropped: int


def fit(
  render: Render, tokenise: Callable[[Rendering], Ids], capacities: tuple[int, ...]
) -> "Fitted[Ids] | Dropped":
  """The rendering with as many exemplars, then as much of its long field, as the row can hold.

  Args:
    render: see `Render`.
    tokenise: turns a rendering into ids; called a handful of times for one that has to be cut.
    capacities: the tokens of a row in each dimension.
  """
  whole = render(None)
  most = _MOST_CHARACTERS * sum(capacities)
  rendering = _with_at_most(whole, most)
  limited = not rendering.shots and _characters(rendering) > most

  def shorter(limit: int) -> Rendering:
    return _with_at_most(render(limit), 0)

  if limited:
    rendering = shorter(most)
  ids = tokenise(rendering)
  while rendering.shots and not _fits(ids.used, capacities):
    # How many must go is told from how long the tokens of this text are.
    excess = max(n / room for n, room in zip(ids.used, capacities, strict=True))
    fewer = int(_characters(rendering) / excess * _OPTIMISM)
    rendering = _with_at_most(fewer_shots(rendering), fewer)
    ids = tokenise(rendering)
  dropped = len(whole.shots) - len(rendering.shots)
  if _fits(ids.used, capacities):
    return Fitted(ids, rendering, limited, dropped)
  return _shorten(shorter, tokenise, capacities, rendering, ids.used, dropped)


def _with_at_most(rendering: Rendering, characters: int) -> Rendering:
  """The rendering without as many of its exemplars as it takes to have so few characters."""
  while rendering.shots and _characters(rendering) > characters:
    rendering = fewer_shots(rendering)
  return rendering


def _shorten(
  render: Callable[[int], Rendering],
  tokenise: Callable[[Rendering], Ids],
  capacities: tuple[int, ...],
  rendering: Rendering,
  used: tuple[int, ...],
  shots_dropped: int,
) -> "Fitted[Ids] | Dropped":
  """The largest limit on the long field that fits, by interpolation between one that does and one
  that does not: a handful of tokenisations, and within a few per cent of the best."""
  try:
    bare = render(1)
  except RecordError:  # nothing but the long field stands in the input or the target
    low, low_used = 0, (0,) * len(capacities)
  else:
    low, low_used = 1, tokenise(bare).used
    if not _fits(low_used, capacities):
      return Dropped("too_long")
  # Only where the template shows the long field once is this its length; the search mends the rest.
  high, high_used = _characters(rendering), used
  if low:
    high = max(high - _characters(bare), 2)
  best: Fitted[Ids] | None = None
  for attempt in range(_TRIES):
    limit = _between(low, low_used, high, high_used, capacities, margin=0.01 * attempt)
    if not low < limit < high:
      break
    try:
      shown = render(limit)
    except RecordError:  # so short that nothing is left of it
      low = limit
      continue
    ids = tokenise(shown)
    if _fits(ids.used, capacities):
      best = Fitted(ids, shown, True, shots_dropped)
      low, low_used = limit, ids.used
      if _nearly_full(ids.used, capacities):
        break
    else:
      high, high_used = limit, ids.used
  return best or Dropped("too_long")


def _between(
  low: int,
  low_used: tuple[int, ...],
  high: int,
  high_used: tuple[int, ...],
  capacities: tuple[int, ...],
  margin: float,
) -> int:
  """Where the line through both points reaches the capacity that is exceeded the most."""
  limits = []
  for start, end, capacity in zip(low_used, high_used, capacities, strict=True):
    if end > capacity:
      part = (capacity * (1 - margin) - start) / (end - start)
      limits.append(low + int(part * (high - low)))
  return min(limits)


def _fits(used: tuple[int, ...], capacities: tuple[int, ...]) -> bool:
  return all(n <= capacity for n, capacity in zip(used, capacities, strict=True))


def _nearly_full(used: tuple[int, ...], capacities: tuple[int, ...]) -> bool:
  return any(
    n >= capacity - max(4, _SPARE * capacity) for n, capacity in zip(used, capacities, strict=True)
  )


def _characters(rendering: Rendering) -> int:
  return sum(len(turn.input) + len(turn.target) for turn in rendering.turns)
