"""Multi-head attention with grouped keys, caller's masks, and an explicit key-value cache."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flan_jax.models.blockwise_attention import HIDDEN
from flan_jax.models.cudnn_attention import cudnn_attention
from flan_jax.models.dot_product_attention import (
  LowerTriangular,
  Mask,
  dot_product_attention,
)
from flan_jax.models.flash_attention import SameSegment, flash_attention
from flan_jax.models.layers import Dense, Initializer, constrain, dropout_mask, platform
from flan_jax.models.positions import Angles, rotate
from flan_jax.models.splash_attention import Causal, splash_attention

SelfMask = Bool[Array, "#B T T"] | Float[Array, "#B T T"]
EncoderMask = Bool[Array, "#B S S"] | Float[Array, "#B S S"]


class KeyValues(NamedTuple):
  """Keys and values of one layer, or of all layers with a leading axis L.

  A head's positions stand together, as products with them read them.
  """

  key: Float[Array, "*L B K S H"]
  value: Float[Array, "*L B K S H"]


LayersKeyValues = KeyValues | list[KeyValues]
"""Of all layers: stacked, or of each."""


class Attention(nn.Module):
  """Projections around `dot_product_attention`.

  Args:
    scale: of the scores: head_dim ** -0.5, or 1 for T5.
    dropout_rate: on the attention weights.
    biases: of "query_key_value" and "attention_out", where products have one.
    head_norm: makes the norm of queries and keys by its name; None: there is none.
    softcap: of the scores.
    window: of a `Causal` mask, what a token sees at most; other masks have it in them.
    kernel: as `attention` of the model's config. Masks of "splash" and "flash" are `Causal` and `SameSegment`;
      "cudnn" computes all but a float mask and what goes through a cache.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  scale: float
  query_init: Initializer
  kernel_init: Initializer
  dtype: str
  param_dtype: str
  dropout_rate: float = 0.0
  biases: tuple[str, ...] = ()
  head_norm: Callable[..., nn.Module] | None = None
  softcap: float | None = None
  window: int | None = None
  kernel: str = "xla"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    mask: Mask | LowerTriangular | Causal | SameSegment,
    bias: Float[Array, "#B N T S"] | None = None,
    rotary: Angles | None = None,
    source: Float[Array, "B S D"] | None = None,
    cache: KeyValues | None = None,
    slots: Int[Array, "B T"] | None = None,
  ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
    """Attend from `x` to itself, to `source`, or to a cache.

    Args:
      mask: True where a query may see a key; a float mask is added to the scores instead, so that
        one can differentiate with respect to it. `Causal`: of `x` to itself, by the splash or flash kernel.
      cache: earlier keys and values. With `slots` the new ones are written there first (a slot
        outside the cache is dropped); without, the cache is all there is (cross attention).

    Returns:
      The output, and the cache with what was written (None: nothing was).
    """
    project = partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)
    widen = partial(project, bias="query_key_value" in self.biases)
    heads, kv_heads, size = self.num_heads, self.num_kv_heads, self.head_dim
    query = widen(heads * size, ("embed", "heads"), self.query_init, name="query")(x)
    query = _split_heads(query, heads, "heads")
    if self.head_norm is not None:
      query = self.head_norm(name="query_norm")(query)
    if rotary is not None:
      query = rotate(query, rotary)
    held = None
    if cache is not None and slots is None:
      key, value = map(_turned, cache)
    else:
      narrow = partial(widen, kv_heads * size, ("embed", "kv"), self.kernel_init)
      source = x if source is None else source
      key = _split_heads(narrow(name="key")(source), kv_heads, "kv")
      value = _split_heads(narrow(name="value")(source), kv_heads, "kv")
      if self.head_norm is not None:
        key = self.head_norm(name="key_norm")(key)
      if rotary is not None:
        key = rotate(key, rotary)
      if cache is not None and slots is not None:
        held = _written(cache, (key, value), slots)
        key, value = map(_turned, held)
    if isinstance(mask, SameSegment) or (self.kernel == "flash" and isinstance(mask, Causal)):
      drops = self.dropout_rate > 0 and self.has_rng("dropout")
      attended = flash_attention(
        query,
        key,
        value,
        mask,
        bias,
        self.scale,
        self.softcap,
        self.window,
        self.dropout_rate,
        self.make_rng("dropout") if drops else None,
      )
    elif isinstance(mask, Causal):
      attended = splash_attention(query, key, value, mask, self.scale, self.softcap, self.window)
      attended = attended.reshape(*x.shape[:-1], heads * size)
    elif self.kernel == "cudnn" and cache is None and not _adds(mask):
      attended = cudnn_attention(query, key, value, mask, bias, self.scale)
    else:
      pairs = (x.shape[0], kv_heads, x.shape[1], heads // kv_heads, key.shape[1])
      kept = dropout_mask(self, self.dropout_rate, pairs)
      attended = dot_product_attention(
        query, key, value, mask, bias, self.scale, kept, self.dropout_rate, self.softcap
      )
    join = partial(project, bias="attention_out" in self.biases)
    out = join(x.shape[-1], ("heads", "embed"), self.kernel_init, name="out")(attended)
    return out, held


def causal_mask(
  batch: int,
  length: int,
  segment_ids: Int[Array, "B T"] | None = None,
  prefix: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B T T"]:
  """Each token sees itself and what stands before it in the row, within its segment.

  Args:
    prefix: not 0 on tokens that also see those after them, as far as these are not 0 either: the
      prefix LM of Raffel et al. (arXiv 1910.10683, section 3.2.1).
  """
  index = jnp.arange(length)
  mask = jnp.broadcast_to(index[None, :, None] >= index[None, None, :], (batch, length, length))
  if prefix is not None:
    inside = prefix > 0
    mask = mask | (inside[:, :, None] & inside[:, None, :])
  return mask if segment_ids is None else mask & same_segment(segment_ids, segment_ids)


def within_window(
  mask: Mask | LowerTriangular,
  query_positions: Int[Array, "#B T"],
  key_positions: Int[Array, "#B S"],
  window: int,
) -> Mask | LowerTriangular:
  """The mask where query and key lie less than `window` apart, and nothing elsewhere."""
  apart = jnp.abs(query_positions[:, :, None] - key_positions[:, None, :])
  near = apart < window
  if isinstance(mask, LowerTriangular):
    return LowerTriangular(mask.seen & near)
  return mask & near if mask.dtype == jnp.bool_ else jnp.where(near, mask, HIDDEN)


def same_segment(
  query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]
) -> Bool[Array, "B T S"]:
  """True where query and key belong to the same packed example."""
  return query_segments[:, :, None] == key_segments[:, None, :]


def _written(cache: KeyValues, new: Sequence[jax.Array], slots: Int[Array, "B T"]) -> KeyValues:
  """The cache with new keys and values [B, T, K, H]; a slot outside it is dropped, one inside is given once a row."""
  rows = jnp.arange(slots.shape[0])[:, None]
  doubled = slots.size == 1 and platform() == "cpu"
  if doubled:
    # Twice, for XLA on CPU makes a slice of a scatter to one place, and four copies of the cache around it.
    slots, *new = (jnp.repeat(x, 2, axis=1) for x in (slots, *new))

  def write(held: Float[Array, "B K S H"], fresh: Float[Array, "B T K H"]) -> jax.Array:
    # Where two could meet, GPUs write bfloat16 by comparing and swapping.
    place = held.at[rows, :, slots]
    return place.set(fresh.astype(held.dtype), mode="drop", unique_indices=not doubled)

  return KeyValues(*map(write, cache, new))


def _adds(mask: Mask | LowerTriangular) -> TypeGuard[Float[Array, "#B #T S"]]:
  return not isinstance(mask, LowerTriangular) and mask.dtype != jnp.bool_


def _split_heads(x: Float[Array, "B T F"], heads: int, axis: str) -> Float[Array, "B T N H"]:
  return constrain(x.reshape(*x.shape[:-1], heads, -1), "batch", "length", axis, None)


def _turned(x: Float[Array, "B T K H"]) -> Float[Array, "B K T H"]:
  """Heads before positions, or back."""
  return jnp.swapaxes(x, 1, 2)
