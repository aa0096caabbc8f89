"""Decoding token by token: a state that is a pytree, and pure functions that advance it.

`run` is one compiled loop. Who wants to look between two tokens, from Python, calls `start` and
`advance` instead; both take the same `Choose`, which sees the logits and may force any token or
stop any row.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flan_jax.models import Cache, LanguageModel, Params


class DecodingState(NamedTuple):
  """Rows of a batch on their way.

  Attributes:
    cache: keys and values so far.
    last: [B], the token chosen last, not yet in the cache.
    positions: [B], the position of `last`.
    tokens: [B, N], the tokens chosen so far; zeros beyond.
    lengths: [B], how many of them belong to the answer.
    done: [B], rows that have stopped.
    step: tokens chosen so far in the longest row.
  """

  cache: Cache
  last: Int[Array, "B"]
  positions: Int[Array, "B"]
  tokens: Int[Array, "B N"]
  lengths: Int[Array, "B"]
  done: Bool[Array, "B"]
  step: Int[Array, ""]


Choose = Callable[[Float[Array, "B V"], DecodingState], tuple[Int[Array, "B"], Bool[Array, "B"]]]
"""From the next token's logits (float32) and the state before it to each row's token, and whether
the row stops there; the token that stops a row is not part of the answer."""


@lru_cache
def greedy(eos_ids: tuple[int, ...]) -> Choose:
  """The most probable token (the first of several); a row stops at any of `eos_ids`."""

  def choose(logits, state):
    del state
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, jnp.isin(token, jnp.array(eos_ids, jnp.int32))

  return choose


@partial(jax.jit, static_argnames=("model", "max_new_tokens", "choose", "start_id"))
def run(
  model: LanguageModel,
  params: Params,
  prompts: Int[Array, "B P"],
  prompt_lengths: Int[Array, "B"],
  max_new_tokens: int,
  choose: Choose,
  start_id: int = 0,
) -> DecodingState:
  """Decodes until every row has stopped or has `max_new_tokens`: see `start`."""
  state = start(model, params, prompts, prompt_lengths, max_new_tokens, choose, start_id)
  return jax.lax.while_loop(
    lambda state: (state.step < max_new_tokens) & ~jnp.all(state.done),
    lambda state: advance(model, params, state, choose),
    state,
  )


def start(
  model: LanguageModel,
  params: Params,
  prompts: Int[Array, "B P"],
  prompt_lengths: Int[Array, "B"],
  max_new_tokens: int,
  choose: Choose,
  start_id: int = 0,
) -> DecodingState:
  """Reads the prompts and chooses every row's first token.

  Args:
    prompts: begin at the left; what stands beyond a row's `prompt_lengths` is ignored. A row of
      length 0 is done from the start.
    start_id: an encoder-decoder's first decoder token.
  """
  rows = prompts.shape[0]
  cache, logits, positions = prefill(
    model, params, prompts, prompt_lengths, max_new_tokens, start_id
  )
  state = DecodingState(
    cache=cache,
    last=jnp.zeros(rows, jnp.int32),
    positions=positions,
    tokens=jnp.zeros((rows, max_new_tokens), jnp.int32),
    lengths=jnp.zeros(rows, jnp.int32),
    done=prompt_lengths == 0,
    step=jnp.zeros((), jnp.int32),
  )
  return _accept(state, logits, choose)


def prefill(
  model: LanguageModel,
  params: Params,
  prompts: Int[Array, "B P"],
  prompt_lengths: Int[Array, "B"],
  max_new_tokens: int,
  start_id: int = 0,
) -> tuple[Cache, Float[Array, "B V"], Int[Array, "B"]]:
  """Reads the prompts.

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
    places = jnp.where(real, index, length)
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


def advance(
  model: LanguageModel, params: Params, state: DecodingState, choose: Choose
) -> DecodingState:
  """Puts each row's last token into the cache and chooses the next."""
  logits, cache = model.decode(params, state.cache, state.last[:, None], state.positions[:, None])
  return _accept(state._replace(cache=cache), logits[:, 0], choose)


def _accept(state: DecodingState, logits: Float[Array, "B V"], choose: Choose) -> DecodingState:
  token, stop = choose(logits, state)
  goes_on = ~state.done & ~stop
  token = jnp.where(goes_on, token, 0)
  return state._replace(
    last=token,
    positions=state.positions + 1,
    tokens=state.tokens.at[:, state.step].set(token),
    lengths=state.lengths + goes_on.astype(jnp.int32),
    done=~goes_on,
    step=state.step + 1,
  )
