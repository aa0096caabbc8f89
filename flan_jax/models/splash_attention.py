"""Causal attention by JAX's splash kernel for TPUs, which makes no array of all scores.

The kernel knows causal masks, windows, packed examples and grouped heads, and passes over the blocks of a
row that a mask hides whole. It knows no bias (T5's relative positions) and no mask that is only known as
an array. Off a TPU it is interpreted, which gives the same numbers, slowly.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from flan_jax.models.layers import attention_cuts, platform

_LANES = 128  # What a block's sides are multiples of.
_LARGEST_BLOCK = 512


class Causal(NamedTuple):
  """Each token sees itself and what stands before it in the row, within its segment.

  Args:
    segment_ids: None: a row is one segment.
  """

  segment_ids: Int[Array, "B T"] | None = None


def splash_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B T K H"],
  value: Float[Array, "B T K H"],
  causal: Causal,
  scale: float = 1.0,
  softcap: float | None = None,
  window: int | None = None,
) -> Float[Array, "B T N H"]:
  """softmax(scale * q k^T) v over what each token sees; on a mesh every device has its rows and heads.

  A row whose length blocks do not divide is padded on the way. Where the rules cut the length, queries
  are cut and keys gathered.

  Args:
    softcap: scores become cap * tanh(score / cap).
    window: a token sees at most so many, itself counted; None: all.
  """
  mesh = jax.sharding.get_abstract_mesh()
  (batch, length, heads), key, value = attention_cuts(query, key, value)
  pieces = math.prod(mesh.shape[axis] for axis in length)
  head_shards = math.prod(mesh.shape[axis] for axis in heads)
  tokens = query.shape[1]
  missing = -tokens % (_LANES * pieces)
  arrays = [_laid_out(x, missing) for x in (query * scale, key, value)]
  segments = causal.segment_ids
  if segments is not None:
    segments = jnp.pad(segments, ((0, 0), (0, missing)))
  kernel = _kernel(tokens + missing, query.shape[2], head_shards, pieces, softcap, window)
  if batch + length + heads:
    of_kernel = kernel.manual_sharding_spec(
      NamedSharding(mesh, PartitionSpec(heads or None, length or None))
    )
    of_queries, of_keys, of_ids, of_key_ids = (
      PartitionSpec(batch or None, *(axes or None for axes in rest))
      for rest in ((heads, length, ()), (heads, (), ()), (length,), ((),))
    )
    attend: Callable[..., jax.Array] = jax.shard_map(
      _attend,
      in_specs=(of_kernel, of_queries, of_keys, of_keys, of_ids, of_key_ids),
      out_specs=of_queries,
      check_vma=False,
    )
  else:
    attend = _attend
  out = attend(kernel, *arrays, segments, segments)
  return jnp.swapaxes(out, 1, 2)[:, :tokens]


def _laid_out(x: Float[Array, "B T N H"], missing: int) -> Float[Array, "B N P H"]:
  """Heads first, as the kernel reads them, and so many tokens of padding behind."""
  return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, missing), (0, 0)))


def _attend(
  kernel: Callable[..., jax.Array],
  query: Float[Array, "B N T H"],
  key: Float[Array, "B K S H"],
  value: Float[Array, "B K S H"],
  query_ids: Int[Array, "B T"] | None,
  key_ids: Int[Array, "B S"] | None,
) -> Float[Array, "B N T H"]:
  if query_ids is None or key_ids is None:
    return jax.vmap(kernel)(query, key, value)
  return jax.vmap(kernel)(query, key, value, _splash().SegmentIds(query_ids, key_ids))


def _kernel(
  length: int, heads: int, head_shards: int, pieces: int, softcap: float | None, window: int | None
) -> Any:
  splash = _splash()
  shape = (length, length)
  if window is None:
    mask = splash.CausalMask(shape, shard_count=pieces)
  else:
    mask = splash.LocalMask(shape, (window - 1, 0), 0, shard_count=pieces)
  of_queries, of_keys = _block(length // pieces), _block(length)
  return splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(
      block_q=of_queries,
      block_kv=of_keys,
      block_q_dkv=of_queries,
      block_kv_dkv=of_keys,
      block_q_dq=of_queries,
      block_kv_dq=of_keys,
    ),
    head_shards=head_shards,
    q_seq_shards=pieces,
    attn_logits_soft_cap=softcap,
    interpret=platform() != "tpu",
  )


def _splash() -> ModuleType:
  """Imported late, for few need it and it takes a while."""
  from jax.experimental.pallas.ops.tpu import splash_attention

  return splash_attention


def _block(length: int) -> int:
  """The largest block that divides so many tokens."""
  block = _LARGEST_BLOCK
  while length % block:
    block //= 2
  return block
