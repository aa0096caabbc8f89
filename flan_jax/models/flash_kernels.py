"""What each program of flash attention computes: of a block of queries, of keys, or of positions, tile after tile.

`refs` are the arrays that `flash_attention` lays out for it, by name, and `outs` what it writes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, UInt32

from flan_jax.models.blockwise_attention import HIDDEN


class Blocks(NamedTuple):
  """Queries and keys of a tile, and Triton's warps and stages."""

  queries: int
  keys: int
  warps: int
  stages: int


# Fast on an H200 for T5 large and decoders of 1B and 3B, among six tiles, 4 and 8 warps, and 1 to 3 stages.
FORWARD = Blocks(64, 32, 4, 3)
OF_QUERIES = Blocks(64, 32, 4, 2)
OF_KEYS = Blocks(64, 64, 4, 2)
OF_BIAS = Blocks(64, 64, 4, 1)
TOKENS = 64
"""What lengths are padded to multiples of."""


class Rules(NamedTuple):
  """What is no array."""

  scale: float
  softcap: float | None
  causal: bool
  window: int | None
  dropout_rate: float


def forward_kernel(rules: Rules, refs, outs) -> None:
  """Of a block of queries: a running maximum, sum and weighted sum of values over the blocks of keys."""
  query, segments, places = refs["query"][...], refs["segments"][...], refs["places"][...]

  def add(j, carry):
    top, total, out = carry
    at = pl.ds(j * FORWARD.keys, FORWARD.keys)
    seen = _seen(rules, segments, places, refs["key_segments"][at], _places(j, FORWARD.keys))
    scores, _ = _scores(rules, query, refs["key"][at, :], _bias(refs, slice(None), at), seen)
    new_top = jnp.maximum(top, jnp.max(scores, axis=1))
    weights = jnp.where(seen, jnp.exp(scores - new_top[:, None]), 0.0)
    shrunk = jnp.exp(top - new_top)
    total = total * shrunk + jnp.sum(weights, axis=1)
    kept = kept_of(rules, _stream(refs, ...), places, _places(j, FORWARD.keys))
    weights = _dropped(rules, kept, weights)
    value = refs["value"][at, :]
    return new_top, total, out * shrunk[:, None] + _dot(weights.astype(value.dtype), value)

  start = (
    jnp.full(segments.shape, HIDDEN, jnp.float32),
    jnp.zeros(segments.shape, jnp.float32),
    jnp.zeros(query.shape, jnp.float32),
  )
  top, total, out = jax.lax.fori_loop(refs["first"][...], refs["end"][...], add, start)
  total = jnp.where(total > 0, total, 1.0)  # Padding sees nothing.
  outs["out"][...] = (out / total[:, None]).astype(outs["out"].dtype)
  outs["normaliser"][...] = top + jnp.log(total)


def of_queries_kernel(rules: Rules, refs, outs) -> None:
  query, gradient = refs["query"][...], refs["gradient"][...]
  normaliser, mean = refs["normaliser"][...], refs["mean"][...]
  segments, places = refs["segments"][...], refs["places"][...]

  def add(j, total):
    at = pl.ds(j * OF_QUERIES.keys, OF_QUERIES.keys)
    key = refs["key"][at, :]
    key_places = _places(j, OF_QUERIES.keys)
    seen = _seen(rules, segments, places, refs["key_segments"][at], key_places)
    kept = kept_of(rules, _stream(refs, ...), places, key_places)
    tile = _Tile(query, key, refs["value"][at, :], gradient, normaliser, mean, seen, kept)
    pulled = _pulled(rules, tile, _bias(refs, slice(None), at))
    return total + _dot(pulled.of_products.astype(key.dtype), key)

  zero = jnp.zeros(query.shape, jnp.float32)
  total = jax.lax.fori_loop(refs["first"][...], refs["end"][...], add, zero)
  outs["query"][...] = (total * rules.scale).astype(outs["query"].dtype)


def of_keys_kernel(rules: Rules, group: int, refs, outs) -> None:
  """Of a block of keys: over the queries of all heads that share them."""
  key, value, key_segments = refs["key"][...], refs["value"][...], refs["key_segments"][...]
  key_places = _places(pl.program_id(2), OF_KEYS.keys)
  first, end = refs["first"][...], refs["end"][...]

  def add_head(head, sums):
    def add(i, sums):
      of_key, of_value = sums
      at = pl.ds(i * OF_KEYS.queries, OF_KEYS.queries)
      query, gradient = refs["query"][at, head, :], refs["gradient"][at, head, :]
      normaliser, mean = refs["normaliser"][head, at], refs["mean"][head, at]
      places = refs["places"][at]
      seen = _seen(rules, refs["segments"][at], places, key_segments, key_places)
      kept = kept_of(rules, _stream(refs, head), places, key_places)
      tile = _Tile(query, key, value, gradient, normaliser, mean, seen, kept)
      pulled = _pulled(rules, tile, _bias(refs, head, at, slice(None)))
      of_value += _dot(pulled.weights.astype(gradient.dtype).T, gradient)
      of_key += _dot(pulled.of_products.astype(query.dtype).T, query)
      return of_key, of_value

    return jax.lax.fori_loop(first, end, add, sums)

  zeros = jnp.zeros(key.shape, jnp.float32)
  of_key, of_value = jax.lax.fori_loop(0, group, add_head, (zeros, zeros))
  outs["key"][...] = (of_key * rules.scale).astype(outs["key"].dtype)
  outs["value"][...] = of_value.astype(outs["value"].dtype)


def of_bias_kernel(rules: Rules, rows: int, refs, outs) -> None:
  """Of a tile of the bias: over all rows."""
  bias, places = refs["bias"][...], refs["places"][...]
  key_places = _places(pl.program_id(2), OF_BIAS.keys)

  def add(row, total):
    def of_row() -> jax.Array:
      seen = _seen(
        rules, refs["segments"][row, :], places, refs["key_segments"][row, :], key_places
      )
      query, key, value, gradient = (
        refs[name][row, :, :] for name in ("query", "key", "value", "gradient")
      )
      normaliser, mean = refs["normaliser"][row, :], refs["mean"][row, :]
      kept = kept_of(rules, _stream(refs, row), places, key_places)
      tile = _Tile(query, key, value, gradient, normaliser, mean, seen, kept)
      return total + _pulled(rules, tile, bias).of_scores

    return jax.lax.cond(refs["shared"][row] > 0, of_row, lambda: total)

  zero = jnp.zeros((OF_BIAS.queries, OF_BIAS.keys), jnp.float32)
  outs["bias"][...] = jax.lax.fori_loop(0, rows, add, zero)


class _Tile(NamedTuple):
  """Queries by keys of one head and row."""

  query: Float[Array, "Q H"]
  key: Float[Array, "S H"]
  value: Float[Array, "S H"]
  gradient: Float[Array, "Q H"]
  normaliser: Float[Array, "Q"]
  mean: Float[Array, "Q"]
  seen: Bool[Array, "Q S"]
  kept: Bool[Array, "Q S"] | None


class _Pulled(NamedTuple):
  """A tile's attention weights after dropout, and the gradients of its scores and of its products q k^T."""

  weights: Float[Array, "Q S"]
  of_scores: Float[Array, "Q S"]
  of_products: Float[Array, "Q S"]


def _pulled(rules: Rules, x: _Tile, bias: Float[Array, "Q S"] | None) -> _Pulled:
  scores, slope = _scores(rules, x.query, x.key, bias, x.seen)
  weights = jnp.where(x.seen, jnp.exp(scores - x.normaliser[:, None]), 0.0)
  of_weights = _dropped(rules, x.kept, _dot(x.gradient, x.value.T))
  of_scores = weights * (of_weights - x.mean[:, None])
  of_products = of_scores if slope is None else of_scores * slope
  return _Pulled(_dropped(rules, x.kept, weights), of_scores, of_products)


def _scores(rules: Rules, query, key, bias, seen) -> tuple[jax.Array, jax.Array | None]:
  """Scores of a tile, and the slope of their cap."""
  scores, slope = _dot(query, key.T) * rules.scale, None
  if rules.softcap is not None:
    turned = jnp.tanh(scores / rules.softcap)
    scores, slope = turned * rules.softcap, 1.0 - turned * turned
  if bias is not None:
    scores += bias.astype(jnp.float32)
  return jnp.where(seen, scores, HIDDEN), slope


def _seen(rules: Rules, segments, places, key_segments, key_places) -> Bool[Array, "Q S"]:
  seen = segments[:, None] == key_segments[None, :]
  if rules.causal:
    apart = places[:, None] - key_places[None, :]
    seen &= apart >= 0
    if rules.window is not None:
      seen &= apart < rules.window
  return seen


def kept_of(rules: Rules, stream, places, key_places) -> Bool[Array, "Q S"] | None:
  """What dropout leaves of a tile, whichever kernel asks; None: all."""
  if stream is None:
    return None
  of_queries = _mixed(stream ^ (places.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)))
  of_keys = key_places.astype(jnp.uint32) * jnp.uint32(0x85EBCA77)
  drawn = _mixed(of_queries[:, None] ^ of_keys[None, :])
  return drawn >= jnp.uint32(rules.dropout_rate * 2**32)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """Every bit of it depends on all bits of `x`: the last step of MurmurHash3 (Appleby, 2011)."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
  return x ^ (x >> jnp.uint32(16))


def _dropped(rules: Rules, kept: Bool[Array, "Q S"] | None, x: jax.Array) -> jax.Array:
  return x if kept is None else jnp.where(kept, x / (1.0 - rules.dropout_rate), 0.0)


def _stream(refs, index) -> jax.Array | None:
  return refs["stream"][index] if "stream" in refs else None


def _places(block: Any, size: int) -> jax.Array:
  return block * size + jnp.arange(size, dtype=jnp.int32)


def _bias(refs, *index) -> jax.Array | None:
  return refs["bias"][index] if "bias" in refs else None


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.dot(x, y, preferred_element_type=jnp.float32)
