"""Bytes that a training step takes on each device, reckoned from shapes and shardings alone.

Parameters, optimizer state and gradients are exact: they are the shapes that `init` gives, each cut as its
sharding cuts it. What the step needs for a while is an estimate, the largest of three moments:

  a layer's backward pass   what remat computes again of it, its scores' gradients, its largest kernel gathered
                            over fsdp, and the gradient of that before it is scattered
  the logits                a block of them (`cross_entropy.py`), the words' columns and their gradient
  the embedding             its table gathered over fsdp, and the gradient of that
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.training.activations import Kept, Workload, kept_bytes, layers, outside_layers
from flan_jax.training.partitioning import Layout, path_of

PyTree = Any
_TOKEN_BLOCK, _VOCABULARY_BLOCK = 512, 8192
_BATCH_KEYS = (
  6  # int32 and float32 arrays [rows, length]: tokens, targets, weights, segments, positions, tasks
)


class Memory(NamedTuple):
  """Bytes on one device.

  Args:
    parameters: those that are trained, and those that are only read.
    activations: kept from the forward pass to the backward pass, of one microbatch.
    transient: the largest moment, and `moment` its name.
  """

  parameters: int
  optimizer: int
  gradients: int
  batch: int
  activations: float
  transient: float
  moment: str

  @property
  def total(self) -> float:
    return sum(self[:-1])


Placed = Iterable[tuple[jax.ShapeDtypeStruct, NamedSharding]]


def pairs(shapes: PyTree, shardings: PyTree) -> list[tuple[jax.ShapeDtypeStruct, NamedSharding]]:
  """Each shape with its sharding."""
  return list(zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True))


def share(arrays: Placed) -> int:
  """Bytes of them on one device."""
  return sum(_numbers(leaf, sharding) * leaf.dtype.itemsize for leaf, sharding in arrays)


def gradient_bytes(
  parameters: Placed, accumulation: int, accumulator_dtype: str = "float32"
) -> int:
  """The sums on one device, and with accumulation the microbatch's own, which is added to them."""
  size = jnp.dtype(accumulator_dtype).itemsize
  return sum(
    _numbers(leaf, sharding) * (size + (leaf.dtype.itemsize if accumulation > 1 else 0))
    for leaf, sharding in parameters
  )


def step_memory(
  config: DecoderConfig | EncoderDecoderConfig,
  work: Workload,
  layout: Layout,
  *,
  parameters: int,
  optimizer: int,
  gradients: int,
  kernels: tuple[PyTree, PyTree],
) -> Memory:
  """All of it on one device.

  Args:
    parameters, optimizer, gradients: bytes on one device.
    kernels: shapes and shardings of all parameters of the model, frozen ones included.
  """
  moment, transient = max(_moments(config, work, layout, *kernels).items(), key=lambda m: m[1])
  return Memory(
    parameters,
    optimizer,
    gradients,
    batch_bytes(work, layout),
    activation_bytes(config, work, layout),
    transient,
    moment,
  )


def activation_bytes(
  config: DecoderConfig | EncoderDecoderConfig, work: Workload, layout: Layout
) -> float:
  """What a microbatch keeps from the forward pass for the backward pass, on one device."""
  kept = kept_bytes(outside_layers(config, work), config.remat, layout)
  return kept + sum(
    count * kept_bytes(arrays, config.remat, layout) for count, arrays in layers(config, work)
  )


def _moments(
  config: DecoderConfig | EncoderDecoderConfig,
  work: Workload,
  layout: Layout,
  parameters: PyTree,
  shardings: PyTree,
) -> dict[str, float]:
  """What each of the moments that may be the peak takes on one device, beside what is kept.

  Args:
    parameters, shardings: of all parameters, frozen ones included.
  """
  fsdp = layout.mesh.shape["fsdp"]
  size = jnp.dtype(config.dtype).itemsize
  gathered = 0.0
  leaves = jax.tree_util.tree_leaves_with_path(parameters)
  for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
    if "layers" in path_of(path) and fsdp > 1:
      numbers = _numbers(leaf, sharding) / leaf.shape[0] * fsdp
      gathered = max(gathered, numbers * (size + leaf.dtype.itemsize))
  backward = 0.0
  for _, arrays in layers(config, work):
    again = kept_bytes(arrays, "none", layout) if config.remat != "none" else 0.0
    backward = max(backward, again + _cotangents(arrays, layout))
  tokens = work.microbatch * work.length / layout.shards("batch") / layout.shards("length")
  words = -(-config.vocab_size // layout.shards("vocab"))
  block, width = min(tokens, _TOKEN_BLOCK), min(words, _VOCABULARY_BLOCK)
  d = config.emb_dim
  logits = (
    block * width * (8 + size) + d * width * (size + 4) + d * words / layout.shards("embed") * 4
  )
  table = words * d * (size + 4) if fsdp > 1 else 0.0
  return {
    "a layer's backward pass": backward + gathered,
    "the logits": logits + 4 * tokens * d * size,
    "the embedding": table,
  }


def batch_bytes(work: Workload, layout: Layout) -> int:
  """Of a whole batch, on one device."""
  rows = work.rows // layout.shards("batch")
  read = 3 * work.inputs + _BATCH_KEYS * work.length
  return math.ceil(4 * rows * read / layout.shards("length"))


def _numbers(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
  return math.prod(sharding.shard_shape(leaf.shape))


def _cotangents(arrays: Iterable[Kept], layout: Layout) -> float:
  """Gradients that exist while a layer is gone back through: the scores' in float32, twice, or of its
  feed-forward width, whichever is more."""
  largest: Mapping[str, float] = {
    array.name: array.share(layout) for array in arrays if "none" in array.policies
  }
  return 2 * max(largest["attention weights"], largest["feed-forward"] / 2)
