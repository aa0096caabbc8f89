"""The next token from logits: the most probable one, or a draw, each row by settings of its own.

What a setting means, and the order in which they act, are those of transformers: first the penalties on
what stands in the text already, then temperature, top-k, top-p and min-p.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from flan_jax.errors import ConfigError

_NEVER = -1e30
_SEEDS = 2**32


_MOST = 2**31 - 1
_LEAST, _GREATEST = 1e-30, 1e30  # of what divides or multiplies logits in float32
_ALLOWED = (
  ("max_new_tokens", lambda x: 1 <= x <= _MOST and x == int(x), "1 or more"),
  (
    "temperature",
    lambda x: x == 0 or _LEAST <= x <= _GREATEST,
    "0 (the most probable token) or from 1e-30 to 1e30",
  ),
  ("top_k", lambda x: 0 <= x <= _MOST and x == int(x), "0 (all) or more, below 2147483648"),
  ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
  ("min_p", lambda x: 0 <= x <= 1, "from 0 to 1"),
  ("repetition_penalty", lambda x: _LEAST <= x <= _GREATEST, "from 1e-30 to 1e30"),
  (
    "no_repeat_ngram",
    lambda x: 0 <= x <= _MOST and x == int(x),
    "0 (none) or more, below 2147483648",
  ),
  ("seed", lambda x: 0 <= x < _SEEDS and x == int(x), "from 0 to 4294967295"),
)


@dataclass(frozen=True)
class Sampling:
  """How one text is gone on with.

  Args:
    max_new_tokens: it stops there.
    temperature: divides the logits; 0: the most probable token is taken, the first of several.
    top_k: only so many of the most probable tokens are drawn from; 0: all.
    top_p: only the fewest of the most probable tokens that have this probability together.
    min_p: only tokens that have this share of the most probable one's probability.
    repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens that stand in
      the text already (Keskar et al. 2019, arXiv 1909.05858); 1: none. The text is a decoder's prompt and answer, and
      of an encoder-decoder the answer.
    no_repeat_ngram: so many tokens in a row are not written twice; 0: they may be.
    seed: of the draws. A text is a function of prompt, settings and seed, whatever is written beside it.
    prefix: tokens that the answer begins with.
  """

  max_new_tokens: int = 64
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  no_repeat_ngram: int = 0
  seed: int = 0
  prefix: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    for name, allowed, range_of in _ALLOWED:
      value = getattr(self, name)
      finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
      if not (finite and allowed(value)):
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
        raise ConfigError(f"{name}={shown} must be {range_of}.")
    if isinstance(self.prefix, str) or not all(
      isinstance(each, SupportsIndex) for each in self.prefix
    ):
      raise ConfigError(f"prefix={self.prefix!r} must be a tuple of ids.")


GREEDY = Sampling()
"""64 tokens, always the most probable one."""


class SamplingRows(NamedTuple):
  """The settings of `Sampling`, one of each for every row."""

  temperature: Float[Array, "B"]
  top_k: Int[Array, "B"]
  top_p: Float[Array, "B"]
  min_p: Float[Array, "B"]
  repetition_penalty: Float[Array, "B"]
  no_repeat_ngram: Int[Array, "B"]
  seed: UInt32[Array, "B"]

  @staticmethod
  def of(settings: Sequence[Sampling]) -> "SamplingRows":
    """On this host, for `choose`."""
    kinds = {"seed": np.uint32, "top_k": np.int32, "no_repeat_ngram": np.int32}
    columns: list[Any] = [
      np.array([getattr(each, name) for each in settings], kinds.get(name, np.float32))
      for name in SamplingRows._fields
    ]
    return SamplingRows(*columns)


class Text(NamedTuple):
  """What each row has read and written so far.

  Attributes:
    tokens: a decoder's prompt and answer, or an encoder-decoder's begin token and answer.
    ends: how many they are.
    seen: of each row the tokens that occur.
  """

  tokens: Int[Array, "B L"]
  ends: Int[Array, "B"]
  seen: Bool[Array, "B V"]


def choose(
  logits: Float[Array, "B V"], text: Text, rows: SamplingRows
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """Each row's next token, and its log-probability by the model alone, whatever the settings.

  What no row asks for is not computed.
  """
  changes = (rows.repetition_penalty != 1) | (rows.no_repeat_ngram > 0)
  # One question first: on GPUs the host waits for each answer.
  token = jax.lax.cond(
    jnp.any(changes | (rows.temperature > 0)),
    _chosen,
    lambda logits, *_: _best(logits),
    logits,
    text,
    rows,
  )
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  return token, jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]


def _chosen(logits: Float[Array, "B V"], text: Text, rows: SamplingRows) -> Int[Array, "B"]:
  scores = without_repeats(logits, text, rows)
  best, draws = _best(scores), rows.temperature > 0
  drawn = jax.lax.cond(jnp.any(draws), _drawn, lambda *_: best, scores, text.ends, rows)
  return jnp.where(draws, drawn, best)


def _best(scores: Float[Array, "B V"]) -> Int[Array, "B"]:
  return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def without_repeats(
  logits: Float[Array, "B V"], text: Text, rows: SamplingRows
) -> Float[Array, "B V"]:
  """Logits under `repetition_penalty` and `no_repeat_ngram`."""

  def where_any(asked: Bool[Array, "B"], change: Callable, scores: jax.Array) -> jax.Array:
    return jax.lax.cond(jnp.any(asked), change, lambda scores, *_: scores, scores, text, rows)

  scores = where_any(rows.repetition_penalty != 1, _penalised, logits)
  return where_any(rows.no_repeat_ngram > 0, _unrepeated, scores)


def most_probable(scores: Float[Array, "B V"], rows: SamplingRows) -> Float[Array, "B V"]:
  """Scores under `temperature`, `top_k`, `top_p` and `min_p`, of which softmax makes what is drawn from."""
  scores = scores / jnp.where(rows.temperature > 0, rows.temperature, 1)[:, None]
  sorts = jnp.any((rows.top_k > 0) | (rows.top_p < 1))
  scores = jax.lax.cond(sorts, _top, lambda scores, _: scores, scores, rows)
  least = jnp.max(scores, axis=-1) + jnp.log(rows.min_p)
  return jnp.where(scores < least[:, None], _NEVER, scores)


def _penalised(logits: Float[Array, "B V"], text: Text, rows: SamplingRows) -> Float[Array, "B V"]:
  penalty = rows.repetition_penalty[:, None]
  lower = jnp.where(logits > 0, logits / penalty, logits * penalty)
  return jnp.where(text.seen, lower, logits)


def _unrepeated(logits: Float[Array, "B V"], text: Text, rows: SamplingRows) -> Float[Array, "B V"]:
  """Without the tokens that would end a run of n tokens which the row has already."""
  tokens, ends = text.tokens, text.ends
  n = jnp.minimum(rows.no_repeat_ngram, tokens.shape[1] + 1)  # of which no text has any
  places = jnp.arange(tokens.shape[1])

  def agrees(j: Int[Array, ""], same: Bool[Array, "B L"]) -> Bool[Array, "B L"]:
    """Where token j of the run that begins at a place is token j of the row's last n - 1."""
    here = jnp.roll(tokens, -j, axis=1)
    last = jnp.take_along_axis(tokens, (ends - n + 1 + j)[:, None], axis=1)
    return same & ((here == last) | (j >= n - 1)[:, None])

  same = jax.lax.fori_loop(0, jnp.max(n) - 1, agrees, jnp.ones(tokens.shape, jnp.bool_))
  final = places[None, :] + (n - 1)[:, None]
  banned = same & (final < ends[:, None]) & (n > 0)[:, None]
  ending = jnp.take_along_axis(tokens, jnp.minimum(final, tokens.shape[1] - 1), axis=1)
  row = jnp.arange(tokens.shape[0])[:, None]
  never = jnp.zeros(logits.shape, jnp.bool_).at[row, ending].max(banned)
  return jnp.where(never, _NEVER, logits)


def _drawn(
  scores: Float[Array, "B V"], ends: Int[Array, "B"], rows: SamplingRows
) -> Int[Array, "B"]:
  def draw(seed: UInt32[Array, ""], place: Int[Array, ""], row: Float[Array, "V"]) -> jax.Array:
    return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), place), row)

  return jax.vmap(draw)(rows.seed, ends, most_probable(scores, rows)).astype(jnp.int32)


def _top(scores: Float[Array, "B V"], rows: SamplingRows) -> Float[Array, "B V"]:
  """Only the tokens that top-k and then top-p leave; those as probable as the last of them stay too."""
  words = scores.shape[1]
  ordered = -jnp.sort(-scores, axis=-1)
  k = jnp.where(rows.top_k > 0, jnp.minimum(rows.top_k, words), words)
  kept = jnp.arange(words)[None, :] < k[:, None]
  probabilities = jax.nn.softmax(jnp.where(kept, ordered, _NEVER), axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  # Sums may be rounded up to 1 before the last token.
  within = (before < rows.top_p[:, None]) | (rows.top_p[:, None] >= 1)
  kept &= within.at[:, 0].set(True)
  last = jnp.sum(kept, axis=-1) - 1
  least = jnp.take_along_axis(ordered, last[:, None], axis=1)
  return jnp.where(scores < least, _NEVER, scores)
