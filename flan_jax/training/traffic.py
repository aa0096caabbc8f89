"""Bytes that each device receives from others in a step, as the layout implies.

A ring over n devices moves (n - 1) / n of the whole array to each of them for an all-gather or a
reduce-scatter, and twice that for an all-reduce. In every microbatch

  parameters   cut over fsdp: gathered in the dtype of the products for the forward and for the backward pass
  gradients    reduced over every axis that cuts tokens: scattered where the parameter is cut, in its own
               dtype, and summed on all where it is not
  activations  summed over tensor after each product that joins heads or feed-forward width, in both
               directions; keys and values gathered over sequence

The compiler may do better (one reduction for all microbatches) or worse; `flan-jax plan --compile` asks it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.training.activations import Workload
from flan_jax.training.memory import Placed
from flan_jax.training.partitioning import Layout


class Traffic(NamedTuple):
  """Bytes that one device receives in one step, by what is moved."""

  parameters: float
  gradients: float
  activations: float

  @property
  def total(self) -> float:
    return sum(self)


def step_traffic(
  config: DecoderConfig | EncoderDecoderConfig,
  work: Workload,
  layout: Layout,
  trained: Sequence[Placed],
  frozen: Sequence[Placed] = (),
) -> Traffic:
  gathered = sum(
    2 * _gathered(each.leaf, each.sharding, config.dtype) for each in (*trained, *frozen)
  )
  reduced = sum(_reduced(each.leaf, each.sharding, layout) for each in trained)
  return Traffic(
    work.accumulation * gathered,
    work.accumulation * reduced,
    work.accumulation * _activations(config, work, layout),
  )


def _gathered(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding, dtype: str) -> float:
  n = _cut(sharding, ("fsdp",))
  held = math.prod(sharding.shard_shape(leaf.shape)) * jnp.dtype(dtype).itemsize
  return held * (n - 1)


def _reduced(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding, layout: Layout) -> float:
  """Scattered over the axes that cut both tokens and the parameter, then summed over the others."""
  sizes: Mapping[str, int] = layout.mesh.shape
  axes = [axis for axis in ("data", "fsdp", "sequence") if sizes[axis] > 1]
  cut = [axis for axis in axes if _cut(sharding, (axis,)) > 1]
  held = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  scatter = math.prod(sizes[axis] for axis in cut)
  rest = math.prod(sizes[axis] for axis in axes if axis not in cut)
  return held * (scatter - 1) + 2 * held * (rest - 1) / rest


def _activations(
  config: DecoderConfig | EncoderDecoderConfig, work: Workload, layout: Layout
) -> float:
  """Of one microbatch."""
  size = jnp.dtype(config.dtype).itemsize
  tensor, sequence = layout.mesh.shape["tensor"], layout.shards("length")
  rows = work.microbatch // layout.shards("batch")
  # Of each stack: layers, tokens, products that are summed in a layer, tokens that become keys.
  if isinstance(config, DecoderConfig):
    stacks = [(config.num_layers, work.length, 2, work.length)]
  else:
    stacks = [
      (config.num_encoder_layers, work.inputs, 2, work.inputs),
      (config.num_decoder_layers, work.length, 3, work.length + work.inputs),
    ]
  kv_heads = config.num_kv_heads if isinstance(config, DecoderConfig) else config.num_heads
  again = 1 if config.remat == "full" else 0
  total = 0.0
  for layers, tokens, parts, keys in stacks:
    stream = rows * tokens / sequence * config.emb_dim * size
    total += layers * parts * (2 + again) * 2 * stream * (tensor - 1) / tensor
    pairs = 2 * rows * keys * kv_heads * config.head_dim / layout.shards("kv") * size
    # Gathered forward, again where the layer is computed again, and scattered backward.
    total += layers * (2 + again) * pairs * (sequence - 1) / sequence
  return total


def _cut(sharding: NamedSharding, axes: tuple[str, ...]) -> int:
  """Into how many pieces these mesh axes cut an array."""
  used = [
    name
    for entry in sharding.spec
    for name in ((entry,) if isinstance(entry, str) else entry or ())
    if name in axes
  ]
  return math.prod(sharding.mesh.shape[name] for name in used)
