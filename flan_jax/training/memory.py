"""Bytes that a training step takes on each device, reckoned from shapes and shardings alone.

Parameters and optimizer state are exact, and there all the time: the shapes that `init` gives, each cut as its
sharding cuts it. What else there is depends on the moment, and the peak is an estimate: the largest of

  the logits         what all stacks keep, a block of logits (`cross_entropy.py`), the words' columns and gradient
  a stack's layers   in the backward pass: what this stack and those before it keep, the gradients of this stack and
                     those after it; what `activations.in_backward_pass` says; of T5 the gradient of the stack's
                     bias and a layer's part of it; over fsdp the kernels that are multiplied side by side,
                     gathered, and their float32 gradients before they are scattered
  the embedding      all gradients; on TPUs the table gathered over fsdp, its gradient, and what reduces that

Where parameters are wider than products are, compilers cast the kernels of a stack before the loop over its layers:
those casts are there as long as what the stack keeps.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.training.activations import (
  Stack,
  Workload,
  in_backward_pass,
  in_forward_pass_again,
  stacks,
)
from flan_jax.training.cross_entropy import logits_at_a_time
from flan_jax.training.partitioning import Layout, path_of

PyTree = Any
_BATCH_KEYS = (
  6  # int32 and float32 arrays [rows, length]: tokens, targets, weights, segments, positions, tasks
)


class Memory(NamedTuple):
  """Bytes on one device at the peak.

  Args:
    parameters: those that are trained, and those that are only read.
    gradients: those that are there by then.
    casts: of kernels to the dtype of products.
    activations: kept from the forward pass to the backward pass, of one microbatch.
    transient: what is only there at the moment, and `moment` its name.
  """

  parameters: int
  optimizer: int
  batch: int
  gradients: float
  casts: float
  activations: float
  transient: float
  moment: str

  @property
  def total(self) -> float:
    return sum(self[:-1])


class _Moment(NamedTuple):
  gradients: float
  casts: float
  activations: float
  transient: float
  name: str


class Placed(NamedTuple):
  """A parameter, or another array, as it is laid out."""

  path: tuple[str, ...]
  leaf: jax.ShapeDtypeStruct
  sharding: NamedSharding

  @property
  def numbers(self) -> int:
    """On one device."""
    return math.prod(self.sharding.shard_shape(self.leaf.shape))


def placed(shapes: PyTree, shardings: PyTree) -> list[Placed]:
  """Each shape with its sharding."""
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  return [
    Placed(path_of(path), leaf, sharding)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
  ]


def share(arrays: Iterable[Placed]) -> int:
  """Bytes of them on one device."""
  return sum(array.numbers * array.leaf.dtype.itemsize for array in arrays)


def step_memory(
  config: DecoderConfig | EncoderDecoderConfig,
  work: Workload,
  layout: Layout,
  *,
  optimizer: int,
  learnt: Sequence[Placed],
  kernels: Sequence[Placed],
  parameters: int,
  platform: str,
  accumulator_dtype: str = "float32",
) -> Memory:
  """All of it on one device.

  Args:
    optimizer, parameters: bytes on one device.
    learnt: what has gradients.
    kernels: all parameters of the model, frozen ones included.
    platform: of the device.
    accumulator_dtype: of the sums of gradients.
  """
  sums = jnp.dtype(accumulator_dtype).itemsize
  moments = _moments(config, work, layout, learnt, kernels, sums, platform)
  peak = max(moments, key=lambda moment: sum(moment[:-1]))
  return Memory(parameters, optimizer, batch_bytes(work, layout), *peak)


def _moments(
  config: DecoderConfig | EncoderDecoderConfig,
  work: Workload,
  layout: Layout,
  learnt: Sequence[Placed],
  kernels: Sequence[Placed],
  sums: int,
  platform: str,
) -> Iterator[_Moment]:
  """In the order of a step.

  Args:
    sums: bytes of a number of the sums of gradients.
  """
  there = stacks(config, work)
  casts = [_casts(kernels, stack, config) for stack in there]
  kept = [stack.kept(config.remat, layout) for stack in there]
  table = ("embed", "embedding")
  begun = [
    x for x in learnt if x.path[0] == "unembed" or (config.tied_embeddings and x.path == table)
  ]
  yield _Moment(
    _gradients(learnt, begun, work.accumulation, sums),
    sum(casts),
    sum(kept),
    _of_logits(config, work, layout, platform),
    "the logits",
  )
  for i in reversed(range(len(there))):
    begun += [x for x in learnt if there[i].holds(x.path)]
    yield _Moment(
      _gradients(learnt, begun, work.accumulation, sums),
      sum(casts[: i + 1]),
      sum(kept[: i + 1]),
      _of_layer(config, layout, there[i], kernels, platform),
      f"a layer's backward pass, {there[i].name}",
    )
  words, size = -(-config.vocab_size // layout.shards("vocab")), jnp.dtype(config.dtype).itemsize
  gathers = platform == "tpu" and layout.mesh.shape["fsdp"] > 1
  gathered = 3 * words * config.emb_dim * size if gathers else 0
  yield _Moment(
    _gradients(learnt, learnt, work.accumulation, sums), 0, 0, gathered, "the embedding"
  )


def _gradients(
  learnt: Iterable[Placed], begun: Iterable[Placed], accumulation: int, sums: int
) -> int:
  """Of a microbatch, as far as the backward pass has begun them. With accumulation they have the parameters'
  dtype, and the sums that they are added to are there from the beginning."""
  if accumulation == 1:
    return sum(sums * array.numbers for array in begun)
  return sum(sums * array.numbers for array in learnt) + share(begun)


def _casts(
  kernels: Iterable[Placed], stack: Stack, config: DecoderConfig | EncoderDecoderConfig
) -> int:
  size = jnp.dtype(config.dtype).itemsize
  return sum(
    size * array.numbers
    for array in kernels
    if stack.holds(array.path) and array.leaf.ndim == 3 and array.leaf.dtype.itemsize > size
  )


def _of_layer(
  config: DecoderConfig | EncoderDecoderConfig,
  layout: Layout,
  stack: Stack,
  kernels: Iterable[Placed],
  platform: str,
) -> float:
  size, fsdp = jnp.dtype(config.dtype).itemsize, layout.mesh.shape["fsdp"]
  widest = max(
    array.numbers / array.leaf.shape[0] * fsdp
    for array in kernels
    if stack.holds(array.path) and array.leaf.ndim == 3
  )
  gathered = widest * len(config.mlp_activations) if fsdp > 1 else 0
  bias = 0.0 if stack.bias is None else stack.bias.share(layout)
  return max(
    in_forward_pass_again(stack, config.remat, layout) + bias + gathered * size,
    in_backward_pass(stack, config.remat, size, layout, platform)
    + 2 * bias
    + gathered * (size + 4),
  )


def _of_logits(
  config: DecoderConfig | EncoderDecoderConfig, work: Workload, layout: Layout, platform: str
) -> float:
  size, d = jnp.dtype(config.dtype).itemsize, config.emb_dim
  tokens = work.microbatch * work.length / layout.shards("batch") / layout.shards("length")
  words = -(-config.vocab_size // layout.shards("vocab"))
  block, width = map(min, (tokens, words), logits_at_a_time(platform))
  return block * width * (8 + size) + d * width * (size + 8) + tokens * d * (3 * size + 4)


def batch_bytes(work: Workload, layout: Layout) -> int:
  """Of a whole batch, on one device."""
  rows = work.rows // layout.shards("batch")
  read = 3 * work.inputs + _BATCH_KEYS * work.length
  return math.ceil(4 * rows * read / layout.shards("length"))
