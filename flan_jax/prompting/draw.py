"""Random choices that depend on nothing but the names they were drawn for.

`random` and numpy change their streams between versions in ways that a prepared store cannot
follow, so the stream is written out here: BLAKE2b turns the names into a key, SplitMix64 (Steele,
Lea and Flood, 2014) turns the key into numbers.
"""

from hashlib import blake2b

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class Draw:
  """A stream of 64-bit numbers named by strings and integers, the same on every machine.

  ```python
  draw = Draw("boolq", 17, epoch)
  template = templates[draw.fork("template").below(len(templates))]
  ```

  Args:
    *parts: what the draw is for. `1` and `"1"` are different names.
  """

  __slots__ = ("_key", "_state")

  def __init__(self, *parts: str | int):
    self._key = _hashed(b"", parts)
    self._state = self._key

  @property
  def key(self) -> int:
    """The 64-bit number that the names hash to."""
    return self._key

  def fork(self, *parts: str | int) -> "Draw":
    """An independent stream named by this draw's names and `parts`, however far this stream has been read."""
    forked = object.__new__(Draw)
    forked._key = forked._state = _hashed(self._key.to_bytes(8, "little"), parts)
    return forked

  def bits(self) -> int:
    """The next number of the stream, 0 to 2**64 - 1."""
    self._state = (self._state + _GOLDEN_GAMMA) & _MASK
    mixed = self._state
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)

  def below(self, n: int) -> int:
    """An integer from 0 to n - 1; its bias, at most n / 2**64, cannot be seen."""
    if n < 1:
      raise ValueError(f"cannot draw a number below {n}")
    return (self.bits() * n) >> 64

  def shuffled(self, n: int) -> list[int]:
    """The integers 0 to n - 1 in a drawn order (Fisher-Yates)."""
    order = list(range(n))
    for last in range(n - 1, 0, -1):
      chosen = self.below(last + 1)
      order[last], order[chosen] = order[chosen], order[last]
    return order

  def __repr__(self) -> str:
    return f"Draw(key=0x{self._key:016x})"


def _hashed(prefix: bytes, parts: tuple[str | int, ...]) -> int:
  hasher = blake2b(prefix, digest_size=8)
  for part in parts:
    if isinstance(part, str):
      text = part.encode("utf-8", "surrogatepass")
      hasher.update(b"s%d:" % len(text) + text)
    elif isinstance(part, int):
      hasher.update(b"i%d;" % part)
    else:
      raise TypeError(f"a draw is named by strings and integers, not by {part!r}")
  return int.from_bytes(hasher.digest(), "little")
