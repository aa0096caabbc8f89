"""Beam search, as transformers has it: the candidates that it keeps, when it stops, how it weighs lengths.

Each row of a batch keeps `beams` continuations that go on and the best `beams` that have ended. Of all
continuations by one token the best are looked at, enough of them that as many go on even if the others
end; one that ends counts if it is among the best `beams` of all.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flan_jax.models import Cache, LanguageModel, Params

_WORST = np.float32(-1e9)


class Beams(NamedTuple):
  """Rows of a batch on their way, K beams each.

  Attributes:
    cache: of the beams that go on, a row's beams next to each other.
    positions: [B], of the tokens chosen last.
    tokens, scores: of those that go on, the best first; a score is a sum of log-probabilities.
    ended_tokens, ended_lengths, ended_scores: of those that have ended, the end token not among the tokens
      but counted in the length by which the score is divided.
    ended: which of these places are taken.
    open: whether a row may still improve.
    alive: whether any beam may go on.
    step: tokens chosen so far.
  """

  cache: Cache
  positions: Int[Array, "B"]
  tokens: Int[Array, "B K N"]
  scores: Float[Array, "B K"]
  ended_tokens: Int[Array, "B K N"]
  ended_lengths: Int[Array, "B K"]
  ended_scores: Float[Array, "B K"]
  ended: Bool[Array, "B K"]
  open: Bool[Array, "B"]
  alive: Bool[Array, ""]
  step: Int[Array, ""]


@partial(
  jax.jit,
  static_argnames=(
    "model",
    "max_new_tokens",
    "beams",
    "eos_ids",
    "length_penalty",
    "early_stopping",
    "start_id",
  ),
)
def beam_search(
  model: LanguageModel,
  params: Params,
  prompts: Int[Array, "B P"],
  prompt_lengths: Int[Array, "B"],
  max_new_tokens: int,
  beams: int,
  eos_ids: tuple[int, ...],
  length_penalty: float = 1.0,
  early_stopping: bool = False,
  start_id: int = 0,
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
  """The best continuation of each prompt, and how many of its tokens belong to it.

  Args:
    prompts: begin at the left; what stands beyond a row's `prompt_lengths` is ignored. A row of length 0 has no
      answer.
    start_id: an encoder-decoder's first decoder token.
    length_penalty: continuations are compared by score / length ** length_penalty.
    early_stopping: a row stops as soon as `beams` continuations have ended; else when the best that goes
      on, at the length it has, is worse than the worst that ended.
  """

  def goes_on(state: Beams) -> Bool[Array, ""]:
    full = jnp.all(state.ended) & early_stopping
    return (state.step < max_new_tokens) & jnp.any(state.open) & state.alive & ~full

  def choose(state: Beams, logits: Float[Array, "B K V"]) -> Beams:
    return _extended(state, logits, eos_ids, length_penalty, early_stopping)

  def advance(state: Beams) -> Beams:
    last = jnp.take_along_axis(state.tokens, (state.step - 1)[None, None, None], axis=2)
    places = jnp.repeat(state.positions, beams)[:, None]
    logits, cache = model.decode(params, state.cache, last.reshape(-1, 1), places)
    return choose(state._replace(cache=cache), logits[:, 0].reshape(*last.shape[:2], -1))

  cache, logits, positions = _prefill(
    model, params, prompts, prompt_lengths, max_new_tokens, start_id
  )
  # Every array of the cache has the rows at axis 1, but for the mask over what an encoder reads.
  spread = jax.tree.map(lambda x: jnp.repeat(x, beams, 1 if x.ndim == 5 else 0), cache)
  state = _begun(spread, positions, prompt_lengths > 0, beams, max_new_tokens)
  same = jnp.broadcast_to(logits[:, None], (logits.shape[0], beams, logits.shape[1]))
  state = jax.lax.while_loop(goes_on, advance, choose(state, same))
  return state.ended_tokens[:, 0], state.ended_lengths[:, 0]


def _prefill(
  model: LanguageModel,
  params: Params,
  prompts: Int[Array, "B P"],
  prompt_lengths: Int[Array, "B"],
  max_new_tokens: int,
  start_id: int = 0,
) -> tuple[Cache, Float[Array, "B V"], Int[Array, "B"]]:
  """Reads the prompts, at once.

  Returns:
    A cache with room for the answers, logits of each row's first token, and the position before it.
  """
  rows, width = prompts.shape
  index = jnp.arange(width, dtype=jnp.int32)[None, :]
  real = index < prompt_lengths[:, None]
  if model.layout == "decoder":
    length = width + max_new_tokens
    cache = model.init_cache(params, {"decoder_input_tokens": prompts}, length)
    # Positions past the cache are not written.
    places = jnp.where(real, index, length + index)
    prefix = prompt_lengths if model.bidirectional_inputs else None
    hidden, cache = model.decode_hidden(params, cache, prompts, places, prefix)
    positions = jnp.maximum(prompt_lengths - 1, 0)
    hidden = jnp.take_along_axis(hidden, positions[:, None, None], axis=1)
  else:
    batch = {"encoder_input_tokens": prompts, "encoder_segment_ids": real.astype(jnp.int32)}
    cache = model.init_cache(params, batch, max_new_tokens)
    positions = jnp.zeros(rows, jnp.int32)
    first = jnp.full((rows, 1), start_id, jnp.int32)
    hidden, cache = model.decode_hidden(params, cache, first, positions[:, None])
  return cache, model.project(params, hidden)[:, 0], positions


def _begun(
  cache: Cache, positions: Int[Array, "B"], real: Bool[Array, "B"], beams: int, length: int
) -> Beams:
  rows = positions.shape[0]
  tokens = jnp.zeros((rows, beams, length), jnp.int32)
  worst = jnp.full((rows, beams), _WORST)
  return Beams(
    cache,
    positions,
    tokens,
    worst.at[:, 0].set(0.0),  # the beams are alike at first: one of them counts
    tokens,
    jnp.zeros((rows, beams), jnp.int32),
    worst,
    jnp.zeros((rows, beams), jnp.bool_),
    real,
    jnp.bool_(True),
    jnp.int32(0),
  )


def _extended(
  state: Beams,
  logits: Float[Array, "B K V"],
  eos_ids: tuple[int, ...],
  length_penalty: float,
  early_stopping: bool,
) -> Beams:
  """Each row's beams with one more token, and those that ended with it."""
  rows, beams, words = logits.shape
  length = state.tokens.shape[2]
  totals = jax.nn.log_softmax(logits, axis=-1) + state.scores[:, :, None]
  looked_at = min(max(2, 1 + len(eos_ids)) * beams, beams * words)
  found, place = jax.lax.top_k(totals.reshape(rows, beams * words), looked_at)
  parent, token = place // words, (place % words).astype(jnp.int32)
  tokens = _take(state.tokens, parent)
  ends_here = jnp.isin(token, jnp.array(eos_ids, jnp.int32))
  stops = ends_here | (state.step + 1 == length)
  longer = tokens.at[:, :, state.step].set(jnp.where(ends_here, 0, token))

  kept_scores, kept = jax.lax.top_k(found + jnp.where(stops, _WORST, 0), beams)
  from_row = jnp.arange(rows)[:, None] * beams + _take(parent, kept)
  cache = jax.tree.map(
    lambda x: jnp.take(x, from_row.reshape(-1), axis=1 if x.ndim == 5 else 0), state.cache
  )

  counts = stops & (jnp.arange(looked_at)[None, :] < beams)
  full = jnp.all(state.ended, axis=1, keepdims=True) & early_stopping
  weighed = found / jnp.float32(state.step + 1) ** length_penalty
  weighed = weighed + jnp.where(counts & ~full & state.open[:, None], 0, _WORST)
  lengths = jnp.broadcast_to(state.step, (rows, looked_at)) + (~ends_here).astype(jnp.int32)
  ended_scores, best = jax.lax.top_k(jnp.concatenate([state.ended_scores, weighed], 1), beams)
  ended = _take(jnp.concatenate([state.ended, counts], 1), best)

  reach = kept_scores[:, :1] / jnp.float32(state.step + 1) ** length_penalty
  worst = jnp.where(ended, jnp.min(ended_scores, axis=1, keepdims=True), _WORST)
  return Beams(
    cache,
    state.positions + 1,
    _take(longer, kept),
    kept_scores,
    _take(jnp.concatenate([state.ended_tokens, longer], 1), best),
    _take(jnp.concatenate([state.ended_lengths, lengths], 1), best),
    ended_scores,
    ended,
    state.open & jnp.any(reach > worst, axis=1),
    ~jnp.all(stops),
    state.step + 1,
  )


def _take(x: jax.Array, index: Int[Array, "B J"]) -> jax.Array:
  """x[b, index[b, j], ...]."""
  return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
