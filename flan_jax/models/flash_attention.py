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
from flan_jax.models.dot_product_attention import ATTENDED
from flan_jax.models.flash_kernels import (
  FORWARD,
  OF_BIAS,
  OF_KEYS,
  OF_QUERIES,
  TOKENS,
  Blocks,
  Rules,
  forward_kernel,
  of_bias_kernel,
  of_keys_kernel,
  of_queries_kernel,
)
from flan_jax.models.layers import attention_cuts, padded, platform
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
  (batch, length, heads), key, value = attention_cuts(query, key, value)
  pieces = math.prod(mesh.shape[axis] for axis in length)
  more_queries, more_keys = -tokens % (TOKENS * pieces), -key.shape[1] % TOKENS
  query = padded(query, 1, more_queries)
  key, value = (padded(x, 1, more_keys) for x in (key, value))
  if bias is not None:
    bias = padded(padded(bias, 2, more_queries), 3, more_keys)
  ids = padded(segments.queries, 1, more_queries)
  key_ids = padded(segments.keys, 1, more_keys)
  who = _Who(
    jnp.where(ids > 0, ids, -1),
    jnp.where(key_ids > 0, key_ids, -2),
    jnp.arange(tokens + more_queries, dtype=jnp.int32),
    None if dropout_key is None else jax.random.bits(dropout_key, (rows, count), jnp.uint32),
  )
  rules = Rules(scale, softcap, causal, window, dropout_rate)
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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  rules: Rules, query: Heads, key: Heads, value: Heads, bias: Bias | None, who: _Who
) -> Float[Array, "B T N*H"]:
  return _forward(rules, query, key, value, bias, who)[0]


def _forward(rules: Rules, query, key, value, bias, who):
  rows, tokens, heads, _ = query.shape
  inputs = _of_query_block(rules, query, key, value, bias, who, FORWARD)
  of_queries = inputs["query"]
  normaliser = jax.ShapeDtypeStruct((rows, heads, tokens), jnp.float32)
  outputs = {
    "out": of_queries,
    "normaliser": (normaliser, (None, None, FORWARD.queries), lambda b, n, i: (b, n, i)),
  }
  grid = (rows, heads, tokens // FORWARD.queries)
  found = _run(partial(forward_kernel, rules), grid, FORWARD, inputs, outputs)
  found["out"] = found["out"].reshape(rows, tokens, -1)
  out, normaliser = (checkpoint_name(found[name], ATTENDED) for name in outputs)
  return out, (query, key, value, bias, who, out, normaliser)


def _of_query_block(rules: Rules, query, key, value, bias, who: _Who, blocks: Blocks) -> _Placed:
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


def _backward(rules: Rules, saved, gradient: Float[Array, "B T N*H"]):
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


def _of_queries(rules: Rules, x: _Saved) -> Heads:
  rows, tokens, heads, _ = x.query.shape
  inputs = _of_query_block(rules, x.query, x.key, x.value, x.bias, x.who, OF_QUERIES)
  of_queries = inputs["query"]
  of_rows = (None, None, OF_QUERIES.queries), lambda b, n, i: (b, n, i)
  inputs = {
    **inputs,
    "gradient": (x.gradient, *of_queries[1:]),
    "normaliser": (x.normaliser, *of_rows),
    "mean": (x.mean, *of_rows),
  }
  grid = (rows, heads, tokens // OF_QUERIES.queries)
  kernel = partial(of_queries_kernel, rules)
  return _run(kernel, grid, OF_QUERIES, inputs, {"query": of_queries})["query"]


def _of_keys(rules: Rules, x: _Saved) -> tuple[jax.Array, jax.Array]:
  rows, tokens, heads, size = x.query.shape
  keys, kv_heads = x.key.shape[1:3]
  group = heads // kv_heads
  first, end = _range(_shared(rules, x.who, OF_KEYS), axis=1)
  of_queries = (None, tokens, group, size), lambda b, k, j: (b, 0, k, 0)
  of_keys = (None, OF_KEYS.keys, None, size), lambda b, k, j: (b, j, k, 0)
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
    "key_segments": (x.who.keys, (None, OF_KEYS.keys), lambda b, k, j: (b, j)),
    "first": (first, (None, None), lambda b, k, j: (b, j)),
    "end": (end, (None, None), lambda b, k, j: (b, j)),
    "bias": (x.bias, (None, group, tokens, OF_KEYS.keys), lambda b, k, j: (0, k, 0, j)),
    "stream": (x.who.streams, (None, group), lambda b, k, j: (b, k)),
  }
  outputs = {"key": (x.key, *of_keys), "value": (x.value, *of_keys)}
  grid = (rows, kv_heads, keys // OF_KEYS.keys)
  found = _run(partial(of_keys_kernel, rules, group), grid, OF_KEYS, inputs, outputs)
  return found["key"], found["value"]


def _of_bias(rules: Rules, x: _Saved) -> Bias:
  rows, tokens, heads, size = x.query.shape
  keys, group = x.key.shape[1], heads // x.key.shape[2]
  assert x.bias is not None
  of_queries = (rows, OF_BIAS.queries, None, size), lambda n, i, j: (0, i, n, 0)
  of_keys = (rows, OF_BIAS.keys, None, size), lambda n, i, j: (0, j, n // group, 0)
  of_rows = (rows, None, OF_BIAS.queries), lambda n, i, j: (0, n, i)
  of_tile = (None, None, OF_BIAS.queries, OF_BIAS.keys), lambda n, i, j: (0, n, i, j)
  shared = _shared(rules, x.who, OF_BIAS).astype(jnp.int32)
  inputs = {
    "query": (x.query, *of_queries),
    "gradient": (x.gradient, *of_queries),
    "key": (x.key, *of_keys),
    "value": (x.value, *of_keys),
    "normaliser": (x.normaliser, *of_rows),
    "mean": (x.mean, *of_rows),
    "segments": (x.who.queries, (rows, OF_BIAS.queries), lambda n, i, j: (0, i)),
    "places": (x.who.places, (OF_BIAS.queries,), lambda n, i, j: (i,)),
    "key_segments": (x.who.keys, (rows, OF_BIAS.keys), lambda n, i, j: (0, j)),
    "shared": (shared, (rows, None, None), lambda n, i, j: (0, i, j)),
    "bias": (x.bias, *of_tile),
    "stream": (x.who.streams, (rows, None), lambda n, i, j: (0, n)),
  }
  grid = (heads, tokens // OF_BIAS.queries, keys // OF_BIAS.keys)
  outputs = {"bias": (jax.ShapeDtypeStruct(x.bias.shape, jnp.float32), *of_tile)}
  found = _run(partial(of_bias_kernel, rules, rows), grid, OF_BIAS, inputs, outputs)
  return found["bias"].astype(x.bias.dtype)


_attend.defvjp(_forward, _backward)


def _shared(rules: Rules, who: _Who, blocks: Blocks) -> Bool[Array, "B I J"]:
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
