"""Attention by cuDNN's fused kernel for NVIDIA GPUs, which makes no array of scores.

The kernel adds one array to its scores, in their dtype: a mask [B, 1, T, S] as large negative numbers, and with it a
bias, T5's relative positions, as [B, N, T, S]. Of a causal mask it passes over what stands behind a query. Off a
GPU, JAX's plain attention stands in for it, which gives the same numbers, slowly.
"""

import math
from functools import partial

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from flan_jax.models.dot_product_attention import LowerTriangular
from flan_jax.models.layers import attention_cuts, padded, platform

_BLOCK = 128
"""Of tokens: with a mask, gradients were wrong where a length was no multiple of it (pytorch#196678)."""


def cudnn_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K H"],
  mask: Bool[Array, "#B T S"] | LowerTriangular,
  bias: Float[Array, "#B N T S"] | None = None,
  scale: float = 1.0,
) -> Float[Array, "B T N*H"]:
  """softmax(scale * q k^T + bias) v, heads joined; G = N / K query heads share a key head.

  On a mesh every device has its rows and heads. Where the rules cut the length, queries are cut and keys gathered.

  Args:
    query, key, value: on a GPU bfloat16 or float16, heads of at most 256 numbers.
    mask: True where a query sees a key; batch 1 for all rows alike.
    bias: added to the scores in the dtype of `query`; batch 1 for all rows alike.
  """
  mesh = jax.sharding.get_abstract_mesh()
  rows, tokens = query.shape[:2]
  (batch, length, heads), key, value = attention_cuts(query, key, value)
  seen = mask.seen if isinstance(mask, LowerTriangular) else mask
  pieces = math.prod(mesh.shape[axis] for axis in length)
  of_queries, of_keys = -tokens % (_BLOCK * pieces), -key.shape[1] % _BLOCK
  pad_queries, pad_keys = (
    partial(padded, axis=1, by=of_queries),
    partial(padded, axis=1, by=of_keys),
  )
  added = [seen[:, None]] + ([] if bias is None else [bias.astype(query.dtype)])
  added = [padded(padded(x, axis=2, by=of_queries), axis=3, by=of_keys) for x in added]
  # A device that has a piece of the queries does not know which keys stand behind them.
  attend = partial(_attend, scale, isinstance(mask, LowerTriangular) and not length)
  if batch + length + heads:
    spec_of_rows, spec_of_keys = (
      PartitionSpec(batch or None, axes or None, heads or None) for axes in (length, ())
    )
    specs = [
      PartitionSpec(
        batch if len(x) > 1 else None, heads if x.shape[1] > 1 else None, length or None
      )
      for x in added
    ]
    attend = jax.shard_map(
      attend,
      in_specs=(spec_of_rows, spec_of_keys, spec_of_keys, *specs),
      out_specs=spec_of_rows,
      check_vma=False,
    )
  out = attend(pad_queries(query), pad_keys(key), pad_keys(value), *added)
  return out[:, :tokens].reshape(rows, tokens, -1)


def _attend(
  scale: float,
  causal: bool,
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K H"],
  seen: Bool[Array, "#B 1 T S"],
  bias: Float[Array, "#B N T S"] | None = None,
) -> Float[Array, "B T N H"]:
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    bias,
    seen,
    scale=scale,
    is_causal=causal,
    implementation="cudnn" if platform() == "gpu" else "xla",
  )
