"""What an `Engine` has on the devices, and the compiled functions that change it.

A slot is a row of every array. Rows that a function is given but does not want lie behind the last slot, each at a
place of its own: what is gathered for them is anything, and nothing is scattered back. So no place is written twice,
which XLA is told; else GPUs write what is narrower than 32 bits by comparing and swapping.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flan_jax.inference.sampling import SamplingRows, Text, choose
from flan_jax.models import Cache, LanguageModel, Params
from flan_jax.models.layers import constrain

T = TypeVar("T")

MAX_STOPS = 8
"""Stop tokens that a text may have."""

Hook = Callable[[Float[Array, "B V"], Text], Float[Array, "B V"]]
"""From logits (float32) and the texts so far to other logits, traced once: it may force a token, forbid one, or end
a text by its stop token."""


class Slots(NamedTuple):
  """Texts on their way. The last token of a row that runs is not in the cache yet.

  Attributes:
    cache: of separate layers, see `LanguageModel.separated`.
    limits: where each text ends at the latest.
    stops: tokens at which it ends; -1 where there are fewer.
  """

  cache: Cache
  text: Text
  limits: Int[Array, "B"]
  running: Bool[Array, "B"]
  stops: Int[Array, "B E"]
  sampling: SamplingRows


class Block(NamedTuple):
  """What some steps wrote; on the host as numpy's arrays.

  Attributes:
    tokens, logprobs: of each row the first `counts` are new.
    stopped: by a stop token, which is not among them.
    broken: by logits that are not finite.
  """

  tokens: Int[Array, "B N"]
  logprobs: Float[Array, "B N"]
  counts: Int[Array, "B"]
  stopped: Bool[Array, "B"]
  broken: Bool[Array, "B"]
  running: Bool[Array, "B"]


@partial(jax.jit, static_argnames=("model", "count", "length", "source_length"))
def empty(
  model: LanguageModel, params: Params, count: int, length: int, source_length: int
) -> Slots:
  """So many slots for texts of `length` tokens, none of which runs."""
  batch = {"decoder_input_tokens": jnp.zeros((count, 1), jnp.int32)}
  if model.layout == "encoder_decoder":
    tokens = jnp.zeros((count, source_length), jnp.int32)
    batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": tokens}
  shapes = jax.eval_shape(lambda params: model.init_cache(params, batch, length), params)
  nothing = jnp.zeros(count, jnp.int32)
  words = model.config.vocab_size
  text = Text(
    jnp.zeros((count, length), jnp.int32), nothing + 1, jnp.zeros((count, words), jnp.bool_)
  )
  ones = jnp.ones(count, jnp.float32)
  sampling = SamplingRows(
    0 * ones, nothing, ones, 0 * ones, ones, nothing, nothing.astype(jnp.uint32)
  )
  return _settled(
    Slots(
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
      text,
      nothing,
      jnp.zeros(count, jnp.bool_),
      jnp.full((count, MAX_STOPS), -1, jnp.int32),
      sampling,
    )
  )


@partial(jax.jit, static_argnames="model", donate_argnames="slots")
def encode(
  model: LanguageModel,
  params: Params,
  slots: Slots,
  rows: Int[Array, "R"],
  tokens: Int[Array, "R W"],
  counts: Int[Array, "R"],
) -> Slots:
  """Puts prompts, `counts` tokens each, through the encoder, and their keys and values into rows."""
  real = jnp.arange(tokens.shape[1])[None, :] < counts[:, None]
  batch = {"encoder_input_tokens": tokens, "encoder_segment_ids": real.astype(jnp.int32)}
  new, held_mask = model.init_cache(params, batch, 1), slots.cache.cross_mask
  assert new.cross_mask is not None and held_mask is not None

  def write(held: Float[Array, "B N S H"], fresh: Float[Array, "R N W H"]) -> jax.Array:
    return held.at[rows, :, : tokens.shape[1]].set(fresh, mode="drop", unique_indices=True)

  padding = held_mask.shape[2] - tokens.shape[1]
  whole = jnp.pad(new.cross_mask, ((0, 0), (0, 0), (0, padding)))
  mask = held_mask.at[rows].set(whole, mode="drop", unique_indices=True)
  cross = jax.tree.map(write, slots.cache.cross, new.cross)
  return _settled(slots._replace(cache=slots.cache._replace(cross=cross, cross_mask=mask)))


@partial(jax.jit, static_argnames="model", donate_argnames="slots")
def read(
  model: LanguageModel,
  params: Params,
  slots: Slots,
  rows: Int[Array, "R"],
  tokens: Int[Array, "R W"],
  counts: Int[Array, "R"],
  starts: Int[Array, "R"],
  prefixes: Int[Array, "R"] | None,
) -> Slots:
  """Reads texts on into the cache: `counts` tokens each, the first at position `starts`.

  Args:
    prefixes: how much of each text is read in both directions; None: nothing.
  """
  index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
  length = slots.text.tokens.shape[1]
  # Positions past the cache are not written.
  places = jnp.where(index < counts[:, None], starts[:, None] + index, length + index)
  _, mine = model.decode_hidden(params, _taken(slots.cache, rows), tokens, places, prefixes)
  own = _put(slots.cache.own, rows, mine.own)
  return _settled(slots._replace(cache=slots.cache._replace(own=own)))


@partial(jax.jit, donate_argnames="slots")
def begin(
  slots: Slots,
  row: Int[Array, ""],
  tokens: Int[Array, "L"],
  end: Int[Array, ""],
  limit: Int[Array, ""],
  stops: Int[Array, "E"],
  sampling: SamplingRows,
) -> Slots:
  """Lets a row run: its text is `end` tokens long, and all but the last are in the cache."""
  words = slots.text.seen.shape[1]
  known = jnp.where(jnp.arange(tokens.shape[0]) < end, tokens, words)
  seen = jnp.zeros(words, jnp.bool_).at[known].set(True, mode="drop")
  text = Text(tokens, end, seen)
  new = (text, limit, jnp.bool_(True), stops, sampling)
  held = (slots.text, slots.limits, slots.running, slots.stops, slots.sampling)
  return _settled(Slots(slots.cache, *jax.tree.map(lambda x, y: x.at[row].set(y), held, new)))


@partial(jax.jit, donate_argnames="slots")
def stop(slots: Slots, row: Int[Array, ""]) -> Slots:
  """Lets a row run no longer."""
  return _settled(slots._replace(running=slots.running.at[row].set(False)))


@partial(jax.jit, static_argnames=("model", "steps", "hook"), donate_argnames="slots")
def write(
  model: LanguageModel,
  params: Params,
  slots: Slots,
  rows: Int[Array, "R"] | None,
  hurry: Bool[Array, ""],
  steps: int,
  hook: Hook | None = None,
) -> tuple[Slots, Block]:
  """So many steps of the rows that run; fewer where none is left, or, in a hurry, once one has ended.

  Args:
    rows: all that run are among them, and news are told of them only; None: of all.
  """
  whole = slots
  if rows is not None:
    slots = _taken(whole, rows)
    slots = slots._replace(running=slots.running & (rows < whole.running.shape[0]))
  count, before, begin = slots.running.shape[0], slots.running, slots.text.ends
  block = Block(
    jnp.zeros((count, steps), jnp.int32),
    jnp.zeros((count, steps), jnp.float32),
    jnp.zeros(count, jnp.int32),
    jnp.zeros(count, jnp.bool_),
    jnp.zeros(count, jnp.bool_),
    before,
  )

  def goes_on(state: tuple[Slots, Block, Int[Array, ""]]) -> Bool[Array, ""]:
    slots, _, step = state
    ended = jnp.any(before & ~slots.running)
    return (step < steps) & jnp.any(slots.running) & ~(hurry & ended)

  def advance(
    state: tuple[Slots, Block, Int[Array, ""]],
  ) -> tuple[Slots, Block, Int[Array, ""]]:
    slots, block, step = state
    slots, token, logprob, stopped, broken = _advanced(model, params, slots, hook)
    block = Block(
      block.tokens.at[:, step].set(token),
      block.logprobs.at[:, step].set(logprob),
      slots.text.ends - begin,
      block.stopped | stopped,
      block.broken | broken,
      slots.running,
    )
    return slots, block, step + 1

  slots, block, _ = jax.lax.while_loop(goes_on, advance, (slots, block, jnp.int32(0)))
  if rows is not None:
    own = _put(whole.cache.own, rows, slots.cache.own)
    text, running = _put((whole.text, whole.running), rows, (slots.text, slots.running))
    slots = whole._replace(cache=whole.cache._replace(own=own), text=text, running=running)
  return _settled(slots), jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), block)


def _advanced(
  model: LanguageModel, params: Params, slots: Slots, hook: Hook | None
) -> tuple[Slots, Int[Array, "B"], Float[Array, "B"], Bool[Array, "B"], Bool[Array, "B"]]:
  """One step, the token that each row got, and which rows it stopped and which it found broken."""
  text, running = slots.text, slots.running
  length = text.tokens.shape[1]
  last = jnp.take_along_axis(text.tokens, text.ends[:, None] - 1, axis=1)
  places = jnp.where(running, text.ends - 1, length)[:, None]
  logits, cache = model.decode(params, slots.cache, last, places)
  logits = logits[:, 0] if hook is None else hook(logits[:, 0], text)
  token, logprob = choose(logits, text, slots.sampling)
  broken = running & ~jnp.isfinite(logprob)
  stopped = running & ~broken & jnp.any(token[:, None] == slots.stops, axis=1)
  goes_on = running & ~broken & ~stopped
  row = jnp.arange(token.shape[0])
  place = jnp.where(goes_on, text.ends, length)
  ends = text.ends + goes_on.astype(jnp.int32)
  text = Text(
    text.tokens.at[row, place].set(token, mode="drop"),
    ends,
    text.seen.at[row, token].max(goes_on, unique_indices=True),
  )
  slots = slots._replace(cache=cache, text=text, running=goes_on & (ends < slots.limits))
  return slots, token, logprob, stopped, broken


def _taken(arrays: T, rows: Int[Array, "R"]) -> T:
  return jax.tree.map(lambda x: x[rows], arrays)


def _put(arrays: T, rows: Int[Array, "R"], fresh: T) -> T:
  def put(held: Array, new: Array) -> Array:
    return held.at[rows].set(new, mode="drop", unique_indices=True)

  return jax.tree.map(put, arrays, fresh)


def _settled(slots: Slots) -> Slots:
  """Where its arrays live on a mesh: rows over the batch's axes, keys and values by heads; else one would drift."""

  def settle(x: Array) -> Array:
    if x.ndim == 4:
      return constrain(x, "batch", "kv", None, None)
    return constrain(x, *[None] * x.ndim)

  return jax.tree.map(settle, slots)
