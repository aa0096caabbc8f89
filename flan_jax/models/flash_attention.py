"""Attention within packed examples by kernels of our own for GPUs, which make no array of scores.

A row of examples is mostly pairs that do not see each other. These kernels find, of each block of queries, the blocks
of keys that share an example with it, and pass over the others, forward and backward (arXiv 2205.14135; Dao,
arXiv 2307.08691, algorithms 1 and 2). T5's relative positions are added in float32; their gradient, which all rows
share, is summed over the rows within a kernel. Dropout is drawn within the kernels too, from a number for each row and
head and the places of query and key, so that every kernel and every mesh draws the same. Off a GPU the kernels are
interpreted: the same numbers, slowly.

What sees nothing, as padding does, gets zeros here. There are first derivatives only, and beyond scores of 1e4 float32
holds a row's normaliser less exactly than bfloat16 holds the scores themselves.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from flan_jax.errors import ConfigError
from flan_jax.models.dot_product_attention import ATTENDED, HIDDEN
from flan_jax.models.layers import mesh_axes, platform
from flan_jax.models.splash_attention import Causal

Heads = Float[Array, "B T N H"]
Bias = Float[Array, "1 N T S"]
OfRows = Float[Array, "B N T"]
_Placed = Mapping[str, tuple[Any, tuple[int | None, ...], Callable[..., tuple]]]
"""Arrays, each with the shape of a program's block and where that lies."""


class SameSegment(NamedTuple):
  """Queries see the keys of their own example; 0 is padding."""

  queries: Int[Array, "B T"]
  keys: Int[Array, "B S"]


class Blocks(NamedTuple):
  """Queries and keys of a tile, and Triton's warps and stages."""

  queries: int
  keys: int
  warps: int
  stages: int


# Fast on an H200 for T5 large and decoders of 1B and 3B, among six tiles, 4 and 8 warps, and 1 to 3 stages.
_FORWARD = Blocks(64, 32, 4, 3)
_OF_QUERIES = Blocks(64, 32, 4, 2)
_OF_KEYS = Blocks(64, 64, 4, 2)
_OF_BIAS = Blocks(64, 64, 4, 1)
_TOKENS = 64
"""What lengths are padded to multiples of."""


class _Rules(NamedTuple):
  """What is no array."""

  scale: float
  softcap: float | None
  causal: bool
  window: int | None
  dropout_rate: float


class _Who(NamedTuple):
  """Which example a token is of, and its place in the row. Padding among the queries is -1, among the keys -2.

  Attributes:
    streams: what dropout is drawn from.
  """

  queries: Int[Array, "B T"]
  keys: Int[Array, "B S"]
  places: Int[Array, "T"]
  streams: UInt32[Array, "B N"] | None


def flash_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K H"],
  segments: SameSegment | Causal,
  bias: Float[Array, "1 N T S"] | None = None,
  scale: float = 1.0,
  softcap: float | None = None,
  window: int | None = None,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
) -> Float[Array, "B T N*H"]:
  """softmax(scale * q k^T + bias) v over what each token sees, heads joined; G = N / K query heads share a key head.

  On a mesh every device has its rows and heads. Where the rules cut the length, queries are cut and keys gathered.

  Args:
    query, key, value: on a GPU bfloat16 or float16, heads of 16, 32, 64 or 128 numbers.
    softcap: scores become cap * tanh(score / cap) before the bias.
    window: under a causal mask a token sees at most so many, itself counted; None: all.
    dropout_rate: of the attention weights. Without a key nothing is dropped.
  """
  mesh = jax.sharding.get_abstract_mesh()
  rows, tokens, count, _ = query.shape
  assert bias is None or bias.shape == (1, count, tokens, key.shape[1])
  causal = isinstance(segments, Causal)
  if isinstance(segments, Causal):
    own = segments.segment_ids
    own = jnp.ones((rows, tokens), jnp.int32) if own is None else own
    segments = SameSegment(own, own)
  batch = mesh_axes("batch", mesh, rows)
  length = mesh_axes("length", mesh, tokens)
  heads = mesh_axes("heads", mesh, count)
  if heads != mesh_axes("kv", mesh, key.shape[2]):
    # A device's query heads would not find theirs among the key heads.
    groups = count // key.shape[2]
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
  pieces = math.prod(mesh.shape[axis] for axis in length)
  more_queries, more_keys = -tokens % (_TOKENS * pieces), -key.shape[1] % _TOKENS
  query = _padded(query, 1, more_queries)
  key, value = (_padded(x, 1, more_keys) for x in (key, value))
  if bias is not None:
    bias = _padded(_padded(bias, 2, more_queries), 3, more_keys)
  ids = _padded(segments.queries, 1, more_queries)
  key_ids = _padded(segments.keys, 1, more_keys)
  who = _Who(
    jnp.where(ids > 0, ids, -1),
    jnp.where(key_ids > 0, key_ids, -2),
    jnp.arange(tokens + more_queries, dtype=jnp.int32),
    None if dropout_key is None else jax.random.bits(dropout_key, (rows, count), jnp.uint32),
  )
  rules = _Rules(scale, softcap, causal, window, dropout_rate)
  attend: Callable[..., jax.Array] = partial(_attend, rules)
  if batch + length + heads:
    spec: Any = PartitionSpec
    of_queries, of_keys = (
      spec(batch or None, axes or None, heads or None) for axes in (length, ())
    )
    of_ids, of_heads = spec(batch or None, length or None), spec(batch or None, heads or None)
    of_who = _Who(of_ids, spec(batch or None), spec(length or None), of_heads)
    of_bias = spec(None, heads or None, length or None)
    attend = jax.shard_map(
      attend,
      in_specs=(of_queries, of_keys, of_keys, of_bias, of_who),
      out_specs=of_queries,
      check_vma=False,
    )
  return attend(query, key, value, bias, who)[:, :tokens]


def _padded(x: jax.Array, axis: int, by: int) -> jax.Array:
  return jnp.pad(x, [(0, by if axis == i else 0) for i in range(x.ndim)]) if by else x


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  rules: _Rules, query: Heads, key: Heads, value: Heads, bias: Bias | None, who: _Who
) -> Float[Array, "B T N*H"]:
  return _forward(rules, query, key, value, bias, who)[0]


def _forward(rules: _Rules, query, key, value, bias, who):
  rows, tokens, heads, _ = query.shape
  inputs = _of_query_block(rules, query, key, value, bias, who, _FORWARD)
  of_queries = inputs["query"]
  normaliser = jax.ShapeDtypeStruct((rows, heads, tokens), jnp.float32)
  outputs = {
    "out": of_queries,
    "normaliser": (normaliser, (None, None, _FORWARD.queries), lambda b, n, i: (b, n, i)),
  }
  grid = (rows, heads, tokens // _FORWARD.queries)
  found = _run(partial(_forward_kernel, rules), grid, _FORWARD, inputs, outputs)
  found["out"] = found["out"].reshape(rows, tokens, -1)
  out, normaliser = (checkpoint_name(found[name], ATTENDED) for name in outputs)
  return out, (query, key, value, bias, who, out, normaliser)


def _of_query_block(rules: _Rules, query, key, value, bias, who: _Who, blocks: Blocks) -> _Placed:
  """What a program reads that has a block of queries of one head, and passes over the keys."""
  (_, _, heads, size), (_, keys, kv_heads, _) = query.shape, key.shape
  group = heads // kv_heads
  first, end = _range(_shared(rules, who, blocks), axis=2)
  of_keys = (None, keys, None, size), lambda b, n, i: (b, 0, n // group, 0)
  return {
    "query": (query, (None, blocks.queries, None, size), lambda b, n, i: (b, i, n, 0)),
    "key": (key, *of_keys),
    "value": (value, *of_keys),
    "segments": (who.queries, (None, blocks.queries), lambda b, n, i: (b, i)),
    "places": (who.places, (blocks.queries,), lambda b, n, i: (i,)),
    "key_segments": (who.keys, (None, keys), lambda b, n, i: (b, 0)),
    "first": (first, (None, None), lambda b, n, i: (b, i)),
    "end": (end, (None, None), lambda b, n, i: (b, i)),
    "bias": (bias, (None, None, blocks.queries, keys), lambda b, n, i: (0, n, i, 0)),
    "stream": (who.streams, (None, None), lambda b, n, i: (b, n)),
  }


def _forward_kernel(rules: _Rules, refs, outs) -> None:
  """Of a block of queries: a running maximum, sum and weighted sum of values over the blocks of keys."""
  query, segments, places = refs["query"][...], refs["segments"][...], refs["places"][...]

  def add(j, carry):
    top, total, out = carry
    at = pl.ds(j * _FORWARD.keys, _FORWARD.keys)
    seen = _seen(rules, segments, places, refs["key_segments"][at], _places(j, _FORWARD.keys))
    scores, _ = _scores(rules, query, refs["key"][at, :], _bias(refs, slice(None), at), seen)
    new_top = jnp.maximum(top, jnp.max(scores, axis=1))
    weights = jnp.where(seen, jnp.exp(scores - new_top[:, None]), 0.0)
    shrunk = jnp.exp(top - new_top)
    total = total * shrunk + jnp.sum(weights, axis=1)
    kept = _kept(rules, _stream(refs, ...), places, _places(j, _FORWARD.keys))
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


def _backward(rules: _Rules, saved, gradient: Float[Array, "B T N*H"]):
  query, key, value, bias, who, out, normaliser = saved
  out, gradient = out.reshape(query.shape), gradient.reshape(query.shape)
  # Of a query: the gradient of its weights, averaged with them.
  mean = jnp.einsum("btnh,btnh->bnt", out, gradient, preferred_element_type=jnp.float32)
  arrays = _Saved(query, key, value, bias, who, gradient, normaliser, mean)
  of_query = _of_queries(rules, arrays)
  of_key, of_value = _of_keys(rules, arrays)
  of_bias = None if bias is None else _of_bias(rules, arrays)
  return of_query, of_key, of_value, of_bias, None


class _Saved(NamedTuple):
  """What the backward pass reads."""

  query: Heads
  key: Float[Array, "B S K H"]
  value: Float[Array, "B S K H"]
  bias: Bias | None
  who: _Who
  gradient: Heads
  normaliser: OfRows
  mean: OfRows


def _of_queries(rules: _Rules, x: _Saved) -> Heads:
  rows, tokens, heads, _ = x.query.shape
  inputs = _of_query_block(rules, x.query, x.key, x.value, x.bias, x.who, _OF_QUERIES)
  of_queries = inputs["query"]
  of_rows = (None, None, _OF_QUERIES.queries), lambda b, n, i: (b, n, i)
  inputs = {
    **inputs,
    "gradient": (x.gradient, *of_queries[1:]),
    "normaliser": (x.normaliser, *of_rows),
    "mean": (x.mean, *of_rows),
  }
  grid = (rows, heads, tokens // _OF_QUERIES.queries)
  kernel = partial(_of_queries_kernel, rules)
  return _run(kernel, grid, _OF_QUERIES, inputs, {"query": of_queries})["query"]


def _of_queries_kernel(rules: _Rules, refs, outs) -> None:
  query, gradient = refs["query"][...], refs["gradient"][...]
  normaliser, mean = refs["normaliser"][...], refs["mean"][...]
  segments, places = refs["segments"][...], refs["places"][...]

  def add(j, total):
    at = pl.ds(j * _OF_QUERIES.keys, _OF_QUERIES.keys)
    key = refs["key"][at, :]
    key_places = _places(j, _OF_QUERIES.keys)
    seen = _seen(rules, segments, places, refs["key_segments"][at], key_places)
    kept = _kept(rules, _stream(refs, ...), places, key_places)
    tile = _Tile(query, key, refs["value"][at, :], gradient, normaliser, mean, seen, kept)
    pulled = _pulled(rules, tile, _bias(refs, slice(None), at))
    return total + _dot(pulled.of_products.astype(key.dtype), key)

  zero = jnp.zeros(query.shape, jnp.float32)
  total = jax.lax.fori_loop(refs["first"][...], refs["end"][...], add, zero)
  outs["query"][...] = (total * rules.scale).astype(outs["query"].dtype)


def _of_keys(rules: _Rules, x: _Saved) -> tuple[jax.Array, jax.Array]:
  rows, tokens, heads, size = x.query.shape
  keys, kv_heads = x.key.shape[1:3]
  group = heads // kv_heads
  first, end = _range(_shared(rules, x.who, _OF_KEYS), axis=1)
  of_queries = (None, tokens, group, size), lambda b, k, j: (b, 0, k, 0)
  of_keys = (None, _OF_KEYS.keys, None, size), lambda b, k, j: (b, j, k, 0)
  of_rows = (None, group, tokens), lambda b, k, j: (b, k, 0)
  inputs = {
    "query": (x.query, *of_queries),
    "gradient": (x.gradient, *of_queries),
    "key": (x.key, *of_keys),
    "value": (x.value, *of_keys),
    "normaliser": (x.normaliser, *of_rows),
    "mean": (x.mean, *of_rows),
    "segments": (x.who.queries, (None, tokens), lambda b, k, j: (b, 0)),
    "places": (x.who.places, (tokens,), lambda b, k, j: (0,)),
    "key_segments": (x.who.keys, (None, _OF_KEYS.keys), lambda b, k, j: (b, j)),
    "first": (first, (None, None), lambda b, k, j: (b, j)),
    "end": (end, (None, None), lambda b, k, j: (b, j)),
    "bias": (x.bias, (None, group, tokens, _OF_KEYS.keys), lambda b, k, j: (0, k, 0, j)),
    "stream": (x.who.streams, (None, group), lambda b, k, j: (b, k)),
  }
  outputs = {"key": (x.key, *of_keys), "value": (x.value, *of_keys)}
  grid = (rows, kv_heads, keys // _OF_KEYS.keys)
  found = _run(partial(_of_keys_kernel, rules, group), grid, _OF_KEYS, inputs, outputs)
  return found["key"], found["value"]


def _of_keys_kernel(rules: _Rules, group: int, refs, outs) -> None:
  """Of a block of keys: over the queries of all heads that share them."""
  key, value, key_segments = refs["key"][...], refs["value"][...], refs["key_segments"][...]
  key_places = _places(pl.program_id(2), _OF_KEYS.keys)
  first, end = refs["first"][...], refs["end"][...]

  def add_head(head, sums):
    def add(i, sums):
      of_key, of_value = sums
      at = pl.ds(i * _OF_KEYS.queries, _OF_KEYS.queries)
      query, gradient = refs["query"][at, head, :], refs["gradient"][at, head, :]
      normaliser, mean = refs["normaliser"][head, at], refs["mean"][head, at]
      places = refs["places"][at]
      seen = _seen(rules, refs["segments"][at], places, key_segments, key_places)
      kept = _kept(rules, _stream(refs, head), places, key_places)
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


def _of_bias(rules: _Rules, x: _Saved) -> Bias:
  rows, tokens, heads, size = x.query.shape
  keys, group = x.key.shape[1], heads // x.key.shape[2]
  assert x.bias is not None
  of_queries = (rows, _OF_BIAS.queries, None, size), lambda n, i, j: (0, i, n, 0)
  of_keys = (rows, _OF_BIAS.keys, None, size), lambda n, i, j: (0, j, n // group, 0)
  of_rows = (rows, None, _OF_BIAS.queries), lambda n, i, j: (0, n, i)
  of_tile = (None, None, _OF_BIAS.queries, _OF_BIAS.keys), lambda n, i, j: (0, n, i, j)
  shared = _shared(rules, x.who, _OF_BIAS).astype(jnp.int32)
  inputs = {
    "query": (x.query, *of_queries),
    "gradient": (x.gradient, *of_queries),
    "key": (x.key, *of_keys),
    "value": (x.value, *of_keys),
    "normaliser": (x.normaliser, *of_rows),
    "mean": (x.mean, *of_rows),
    "segments": (x.who.queries, (rows, _OF_BIAS.queries), lambda n, i, j: (0, i)),
    "places": (x.who.places, (_OF_BIAS.queries,), lambda n, i, j: (i,)),
    "key_segments": (x.who.keys, (rows, _OF_BIAS.keys), lambda n, i, j: (0, j)),
    "shared": (shared, (rows, None, None), lambda n, i, j: (0, i, j)),
    "bias": (x.bias, *of_tile),
    "stream": (x.who.streams, (rows, None), lambda n, i, j: (0, n)),
  }
  grid = (heads, tokens // _OF_BIAS.queries, keys // _OF_BIAS.keys)
  outputs = {"bias": (jax.ShapeDtypeStruct(x.bias.shape, jnp.float32), *of_tile)}
  found = _run(partial(_of_bias_kernel, rules, rows), grid, _OF_BIAS, inputs, outputs)
  return found["bias"].astype(x.bias.dtype)


def _of_bias_kernel(rules: _Rules, rows: int, refs, outs) -> None:
  """Of a tile of the bias: over all rows."""
  bias, places = refs["bias"][...], refs["places"][...]
  key_places = _places(pl.program_id(2), _OF_BIAS.keys)

  def add(row, total):
    def of_row() -> jax.Array:
      seen = _seen(
        rules, refs["segments"][row, :], places, refs["key_segments"][row, :], key_places
      )
      query, key, value, gradient = (
        refs[name][row, :, :] for name in ("query", "key", "value", "gradient")
      )
      normaliser, mean = refs["normaliser"][row, :], refs["mean"][row, :]
      kept = _kept(rules, _stream(refs, row), places, key_places)
      tile = _Tile(query, key, value, gradient, normaliser, mean, seen, kept)
      return total + _pulled(rules, tile, bias).of_scores

    return jax.lax.cond(refs["shared"][row] > 0, of_row, lambda: total)

  zero = jnp.zeros((_OF_BIAS.queries, _OF_BIAS.keys), jnp.float32)
  outs["bias"][...] = jax.lax.fori_loop(0, rows, add, zero)


_attend.defvjp(_forward, _backward)


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


def _pulled(rules: _Rules, x: _Tile, bias: Float[Array, "Q S"] | None) -> _Pulled:
  scores, slope = _scores(rules, x.query, x.key, bias, x.seen)
  weights = jnp.where(x.seen, jnp.exp(scores - x.normaliser[:, None]), 0.0)
  of_weights = _dropped(rules, x.kept, _dot(x.gradient, x.value.T))
  of_scores = weights * (of_weights - x.mean[:, None])
  of_products = of_scores if slope is None else of_scores * slope
  return _Pulled(_dropped(rules, x.kept, weights), of_scores, of_products)


def _scores(rules: _Rules, query, key, bias, seen) -> tuple[jax.Array, jax.Array | None]:
  """Scores of a tile, and the slope of their cap."""
  scores, slope = _dot(query, key.T) * rules.scale, None
  if rules.softcap is not None:
    turned = jnp.tanh(scores / rules.softcap)
    scores, slope = turned * rules.softcap, 1.0 - turned * turned
  if bias is not None:
    scores += bias.astype(jnp.float32)
  return jnp.where(seen, scores, HIDDEN), slope


def _seen(rules: _Rules, segments, places, key_segments, key_places) -> Bool[Array, "Q S"]:
  seen = segments[:, None] == key_segments[None, :]
  if rules.causal:
    apart = places[:, None] - key_places[None, :]
    seen &= apart >= 0
    if rules.window is not None:
      seen &= apart < rules.window
  return seen


def _shared(rules: _Rules, who: _Who, blocks: Blocks) -> Bool[Array, "B I J"]:
  """Whether any query of a block may see any key of another: their examples' numbers overlap."""
  queries = who.queries.reshape(len(who.queries), -1, blocks.queries)[:, :, None]
  keys = who.keys.reshape(len(who.keys), -1, blocks.keys)[:, None]
  most = jnp.iinfo(jnp.int32).max

  def ends(segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    lowest = jnp.min(jnp.where(segments > 0, segments, most), axis=-1)
    return lowest, jnp.max(segments, axis=-1)

  (low, high), (key_low, key_high) = ends(queries), ends(keys)
  shared = (key_low <= high) & (low <= key_high)
  if rules.causal:
    places = who.places.reshape(-1, blocks.queries)[:, None]
    key_places = jnp.arange(keys.shape[2], dtype=jnp.int32) * blocks.keys
    shared &= key_places <= jnp.max(places, axis=-1)
    if rules.window is not None:
      shared &= jnp.min(places, axis=-1) - (key_places + blocks.keys - 1) < rules.window
  return shared


def _range(shared: Bool[Array, "B I J"], axis: int) -> tuple[jax.Array, jax.Array]:
  """The first block and that behind the last; examples are contiguous, so that few between them share nothing."""
  count = shared.shape[axis]
  first = jnp.argmax(shared, axis=axis)
  end = count - jnp.argmax(jnp.flip(shared, axis), axis=axis)
  end = jnp.where(jnp.any(shared, axis=axis), end, first)
  return first.astype(jnp.int32), end.astype(jnp.int32)


def _kept(rules: _Rules, stream, places, key_places) -> Bool[Array, "Q S"] | None:
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


def _dropped(rules: _Rules, kept: Bool[Array, "Q S"] | None, x: jax.Array) -> jax.Array:
  return x if kept is None else jnp.where(kept, x / (1.0 - rules.dropout_rate), 0.0)


def _stream(refs, index) -> jax.Array | None:
  return refs["stream"][index] if "stream" in refs else None


def _places(block: Any, size: int) -> jax.Array:
  return block * size + jnp.arange(size, dtype=jnp.int32)


def _bias(refs, *index) -> jax.Array | None:
  return refs["bias"][index] if "bias" in refs else None


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _triton() -> ModuleType:
  """Imported late: JAX means to remove it."""
  try:
    from jax.experimental.pallas import triton
  except ImportError:
    raise ConfigError(
      "attention='flash' is written for Pallas' Triton backend, which this release of JAX has no more: set "
      "attention='cudnn' or 'xla'."
    ) from None
  return triton


def _run(
  kernel, grid: tuple[int, ...], blocks: Blocks, inputs: _Placed, outputs: _Placed
) -> dict[str, jax.Array]:
  inputs = {name: given for name, given in inputs.items() if given[0] is not None}

  def specs(of: _Placed) -> dict[str, pl.BlockSpec]:
    return {name: pl.BlockSpec(shape, index) for name, (_, shape, index) in of.items()}

  run = pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=(specs(inputs),),
    out_specs=specs(outputs),
    out_shape={name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, (x, _, _) in outputs.items()},
    compiler_params=_triton().CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
    interpret=platform() != "gpu",
  )
  return run({name: x for name, (x, _, _) in inputs.items()})
