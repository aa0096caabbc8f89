"""An `Engine` whose news are text: words that are safe to show, ended by stop strings as well as by tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flan_jax.errors import ConfigError
from flan_jax.inference.engine import Engine
from flan_jax.inference.sampling import GREEDY, Sampling
from flan_jax.vocabularies import Vocabulary

_HALF = "\ufffd"  # what a vocabulary decodes bytes to that are no whole character yet


@dataclass(frozen=True)
class News:
  """What is new of a text.

  Attributes:
    text: that comes behind what was told before.
    tokens, logprobs: of all that was written so far, up to what a stop string begins in.
    finish: one of `flan_jax.inference.FINISHES`; None: it goes on.
  """

  number: int
  text: str
  tokens: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: str | None = None


@dataclass
class _Growing:
  """A text on its way; `told` characters of it are told."""

  vocabulary: Vocabulary
  prefix: tuple[int, ...]
  stops: tuple[str, ...]
  tokens: list[int] = field(default_factory=list)
  logprobs: list[float] = field(default_factory=list)
  told: int = 0

  def grow(
    self, number: int, tokens: Sequence[int], logprobs: Sequence[float], finish: str | None
  ) -> News:
    before = len(self.tokens)
    self.tokens += tokens
    self.logprobs += logprobs
    text = self._decoded(len(self.tokens))
    given = len(self._decoded(0))
    if (end := _first(text, self.stops, given)) is not None:
      while before < len(self.tokens) and _first(self._decoded(before), self.stops, given) is None:
        before += 1
      text, finish = text[:end], "stop"
      del self.tokens[before:], self.logprobs[before:]
    elif finish is None:
      text = text.rstrip(_HALF)
      text = text[: len(text) - _begun(text, self.stops)]
    new, self.told = text[self.told :], max(self.told, len(text))
    return News(number, new, tuple(self.tokens), tuple(self.logprobs), finish)

  def _decoded(self, count: int) -> str:
    return self.vocabulary.decode([*self.prefix, *self.tokens[:count]])


class Texts:
  """Writes texts for many requests at once.

  Args:
    engine: nobody else's, as long as it writes here.
  """

  def __init__(self, engine: Engine, vocabulary: Vocabulary):
    self.engine, self._vocabulary = engine, vocabulary
    self._growing: dict[int, _Growing] = {}

  def add(
    self,
    prompt: Sequence[int],
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    *,
    stop_ids: Sequence[int] | None = None,
  ) -> int:
    """Takes a request, and gives its number.

    Args:
      stop: texts before which the answer ends.
      stop_ids: tokens that end it; None: the engine's.

    Raises:
      ConfigError: what `Engine.add` refuses, or an empty stop string.
    """
    if isinstance(stop, str) or not all(stop):
      raise ConfigError(f"stop={stop!r} must be a list of texts, none of them empty.")
    number = self.engine.add(prompt, sampling, stop_ids=stop_ids)
    self._growing[number] = _Growing(self._vocabulary, sampling.prefix, tuple(stop))
    return number

  def cancel(self, number: int) -> None:
    """Forgets a request."""
    self.engine.cancel(number)
    self._growing.pop(number, None)

  def reset(self) -> None:
    """Forgets all requests; see `Engine.reset`."""
    self.engine.reset()
    self._growing.clear()

  @property
  def busy(self) -> bool:
    return bool(self._growing)

  def step(self) -> list[News]:
    """What one step of the engine made new."""
    found = []
    for written in self.engine.step():
      growing = self._growing[written.number]
      news = growing.grow(written.number, written.tokens, written.logprobs, written.finish)
      if news.finish:
        self.cancel(written.number)
      if news.text or news.finish:
        found.append(news)
    return found


def _first(text: str, stops: Sequence[str], given: int) -> int | None:
  """Where the first of the stop strings begins; those that end within the `given` characters do not count."""
  places = [text.find(stop, max(0, given - len(stop) + 1)) for stop in stops]
  return min((place for place in places if place >= 0), default=None)


def _begun(text: str, stops: Sequence[str]) -> int:
  """How many of the last characters may be the beginning of a stop string."""
  longest = max(map(len, stops), default=1) - 1
  for count in range(min(longest, len(text)), 0, -1):
    if any(stop.startswith(text[-count:]) for stop in stops):
      return count
  return 0
