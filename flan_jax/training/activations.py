"""What a training step keeps of its activations, array by array, as shares of a device.

Per layer and token, with D = emb_dim, F = mlp_dim, N heads and K key heads of H numbers, b bytes of a
number of `dtype`, S keys that a query is compared with, the backward pass finds

  remat      decoder                          and of a layer of T5
  full       b D                              b D
  dots       b (2D + 2NH + 2KH + gF) + 8N     the same with K = N; in the decoder also cross attention's
                                              b (D + 2NH) + 8N, and its 2 b NH for each token of the encoder
  none       (12 + b) D for each norm         a gelu's cF = 6F, a silu's 4F, a relu's 1F (and a byte);
             b (2NH + 2KH) for attention      a gate adds 2F
             8N for the rows of its scores
             b cF for the feed-forward layer

with g = 2 where the layer is gated, else 1. With "none" dropout adds a byte a number that it may drop, N S of them
in attention. These are what JAX's partial evaluation saves of `flan_jax.models`, and a test holds them against it.

While the backward pass is in a layer, there is beside it what its products read and give; what stands between
products is fused into them (`in_backward_pass`; read off the schedules of the TPU and the GPU compiler):

  full        b (2P + 2) D: the stream before and behind each of P norms, and its gradient
              b (2NH + 2KH), and 4 N S of scores, for each attention, and b N S for the gradient of one's scores,
              on GPUs 8 N S more, and that of all blocks
              b (g + 2) F for the feed-forward layer
  dots        as much without what it keeps
  none        the scores and their gradient alone

and before that, while "full" computes the attention again, its scores twice (`in_forward_pass_again`).
Of causal scores one block exists at a time. A kernel has none: with "splash" they are 128 numbers a query, with
"flash" and "cudnn" 1, and of T5 cuDNN is given the bias of every row, b N S. T5's bias, 4 N S S, is kept for all
layers of a stack.

Under rules, "batch" and "length" cut the tokens, "heads", "kv" and "mlp" the widths; D and S are whole.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp

from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.models.dot_product_attention import causal_blocks
from flan_jax.training.partitioning import Layout

_OF_ACTIVATION = {"silu": 4, "gelu": 6, "gelu_exact": 4, "relu": 1}


@dataclasses.dataclass(frozen=True)
class Workload:
  """What one step is given.

  Args:
    rows: of the batch, over all devices.
    accumulation: microbatches that it is cut into.
    inputs: tokens of a row that an encoder reads; 0 for a decoder.
    length: tokens of a row that the decoder reads.
    scored: those of them that carry loss, on average.
    example: tokens of a packed example, on average; None: a row holds one.
    dropout: whether anything is dropped.
  """

  rows: int
  accumulation: int
  inputs: int
  length: int
  scored: float
  example: float | None = None
  dropout: bool = False

  @property
  def microbatch(self) -> int:
    """Rows of one."""
    return self.rows // self.accumulation


class Kept(NamedTuple):
  """An array that the backward pass needs.

  Args:
    axes: logical axis of each dimension, as rules know them.
    bytes: of one number; several arrays of the same shape count together.
    policies: of remat, those under which it is kept; "again dots" and "again full": those under which it
      exists while the backward pass is in its layer; "again forward": while its attention is computed again.
  """

  name: str
  axes: tuple[str | None, ...]
  shape: tuple[int, ...]
  bytes: float
  policies: frozenset[str]

  def share(self, layout: Layout) -> float:
    """Bytes of it on one device."""
    cut = [
      -(-size // _pieces(layout, axis, size))
      for axis, size in zip(self.axes, self.shape, strict=True)
    ]
    return math.prod(cut) * self.bytes


def kept_bytes(arrays: Iterable[Kept], remat: str, layout: Layout) -> float:
  """Bytes on one device of what a policy keeps."""
  return sum(array.share(layout) for array in arrays if remat in array.policies)


class Stack(NamedTuple):
  """Layers that run one after the other, on one microbatch.

  Args:
    name: "encoder" or "decoder".
    root: what their parameters' paths begin with.
    arrays: of one layer.
    outside: what is kept of embeddings, masks, and the norm after the layers.
    bias: T5's, of the scores of all layers.
  """

  name: str
  root: str
  layers: int
  arrays: list[Kept]
  outside: list[Kept]
  bias: Kept | None = None

  def holds(self, path: tuple[str, ...]) -> bool:
    """Whether a parameter is one of its layers'."""
    return path[0] == self.root and "layers" in path

  def kept(self, remat: str, layout: Layout) -> float:
    """Bytes on one device from its forward pass to its backward pass."""
    bias = 0.0 if self.bias is None else self.bias.share(layout)
    outside = sum(array.share(layout) for array in self.outside)
    return self.layers * kept_bytes(self.arrays, remat, layout) + outside + bias


def in_backward_pass(stack: Stack, remat: str, size: int, layout: Layout, platform: str) -> float:
  """Bytes on one device of what exists of a layer while its backward pass runs, beside what is kept.

  Args:
    size: bytes of a number of `dtype`.
  """
  # The gradient of the attention weights has their dtype.
  found = kept_bytes(stack.arrays, f"again {remat}", layout) + _scores(stack, layout) * size / 4
  if platform == "gpu":  # Both are in float32 before, and XLA has all blocks of them at once.
    found += 2 * max(_all_blocks(array, layout) for array in stack.arrays if array.name == "scores")
  return found


def in_forward_pass_again(stack: Stack, remat: str, layout: Layout) -> float:
  """The same while remat computes its attention again: the scores, and what they are without their maximum."""
  if remat != "full":
    return 0.0
  return kept_bytes(stack.arrays, "again forward", layout) + _scores(stack, layout)


def _scores(stack: Stack, layout: Layout) -> float:
  return max(array.share(layout) for array in stack.arrays if array.name == "scores")


def _all_blocks(scores: Kept, layout: Layout) -> float:
  """Bytes of the scores of all blocks of queries, each of which is compared with the keys before its end."""
  blocks = 1
  if _BLOCKS in scores.axes and layout.shards("length") == 1:
    blocks = causal_blocks(scores.shape[scores.axes.index(_BLOCKS)])
  return scores.share(layout) * (blocks + 1) / 2


def stacks(config: DecoderConfig | EncoderDecoderConfig, work: Workload) -> list[Stack]:
  """In the order of the forward pass."""
  rows, length, inputs, dropout = work.microbatch, work.length, work.inputs, work.dropout
  if isinstance(config, DecoderConfig):
    arrays = _decoder_layer(config, rows, length, dropout)
    outside = _outside(config, rows, length, [length], dropout)
    return [Stack("decoder", "layers", config.num_layers, arrays, outside)]

  def bias(tokens: int) -> Kept:
    shape = (config.num_heads, tokens, tokens)
    return Kept("relative bias", ("heads", "length", None), shape, 4, _NONE)

  return [
    Stack(
      "encoder",
      "encoder",
      config.num_encoder_layers,
      _t5_layer(config, rows, inputs, None, dropout),
      _outside(config, rows, inputs, [inputs], dropout),
      bias(inputs),
    ),
    Stack(
      "decoder",
      "decoder",
      config.num_decoder_layers,
      _t5_layer(config, rows, length, inputs, dropout),
      _outside(config, rows, length, [length, inputs], dropout),
      bias(length),
    ),
  ]


def _outside(
  c: DecoderConfig | EncoderDecoderConfig, rows: int, tokens: int, keys: list[int], dropout: bool
) -> list[Kept]:
  size, make = jnp.dtype(c.dtype).itemsize, functools.partial(_of_tokens, rows, tokens)
  found = [make("last norm", None, c.emb_dim, size, _NONE)]
  if dropout:
    found.append(make("dropout", None, c.emb_dim, 2, _NONE))
  if c.attention in ("xla", "cudnn"):
    found += [make("mask", None, each, 1, _NONE) for each in keys]
  return found


def _decoder_layer(c: DecoderConfig, rows: int, length: int, dropout: bool) -> list[Kept]:
  size, make = jnp.dtype(c.dtype).itemsize, functools.partial(_of_tokens, rows, length)
  norms = 1 if c.block == "parallel_shared_norm" else 2
  # The second norm needs what attention gave, and a norm after each part what that gave.
  normed = 2 if c.post_norms else (1 if c.block == "sequential" else 0)
  dropped = 2 if dropout else 0
  found = [
    make("layer input", None, c.emb_dim, size, _ONLY_REMAT),
    make("stream", None, c.emb_dim, (2 * norms + 2) * size, _AGAIN | _FORWARD),
    make("norms", None, c.emb_dim, norms * (12 + size) + (24 if c.post_norms else 0), _NONE),
    make("products that norms read", None, c.emb_dim, size * normed, _DOTS),
    make("added", None, c.emb_dim, dropped, _NONE),
    *_attention(c, rows, length, length, c.num_kv_heads, False, causal=True),
    *_feed_forward(c, rows, length, False),
  ]
  if c.qk_norm:
    found.append(make("query norm", "heads", c.num_heads * c.head_dim, 12, _NONE))
    found.append(make("key norm", "kv", c.num_kv_heads * c.head_dim, 12, _NONE))
  return found


def _t5_layer(
  c: EncoderDecoderConfig, rows: int, length: int, source: int | None, dropout: bool
) -> list[Kept]:
  """Args:
  source: tokens that cross attention reads; None: an encoder's layer.
  """
  size, make = jnp.dtype(c.dtype).itemsize, functools.partial(_of_tokens, rows, length)
  parts = 2 if source is None else 3
  found = [
    make("layer input", None, c.emb_dim, size, _ONLY_REMAT),
    make("stream", None, c.emb_dim, (2 * parts + 2) * size, _AGAIN | _FORWARD),
    make("norms", None, c.emb_dim, parts * (12 + size), _NONE),
    make("products that norms read", None, c.emb_dim, (parts - 1) * size, _DOTS),
    make("added", None, c.emb_dim, parts if dropout else 0, _NONE),
    *_attention(c, rows, length, length, c.num_heads, dropout, causal=source is not None),
    *_feed_forward(c, rows, length, dropout),
  ]
  if source is not None:
    found += _attention(c, rows, length, source, c.num_heads, dropout, causal=False)
  return found


def _attention(
  c: DecoderConfig | EncoderDecoderConfig,
  rows: int,
  length: int,
  keys: int,
  kv_heads: int,
  dropout: bool,
  causal: bool,
) -> list[Kept]:
  size = jnp.dtype(c.dtype).itemsize
  wide, narrow = c.num_heads * c.head_dim, kv_heads * c.head_dim
  found = [
    _of_tokens(rows, length, "query", "heads", wide, size, _NONE | _DOTS | _AGAIN_FULL | _FORWARD),
    _of_tokens(
      rows, keys, "key and value", "kv", narrow, 2 * size, _NONE | _DOTS | _AGAIN_FULL | _FORWARD
    ),
    # Of the splash kernel's result "dots" keeps nothing, of the others' all that their backward pass reads.
    _of_tokens(
      rows,
      length,
      "attended",
      "heads",
      wide,
      size,
      _NONE | _FORWARD | (_AGAIN if c.attention == "splash" else _DOTS | _AGAIN_FULL),
    ),
  ]
  axes = ("batch", "heads", "length", None)
  if c.attention != "xla":
    kept = _NONE if c.attention == "splash" else _NONE | _DOTS
    found.append(Kept("normalisers", axes, (rows, c.num_heads, length, 1), 4, kept))
    if c.attention == "cudnn" and isinstance(c, EncoderDecoderConfig):
      shape, each = (rows, c.num_heads, length, keys), float(size)
    else:
      shape, each = (rows, c.num_heads, length, _LANES if c.attention == "splash" else 1), 4.0
    return [*found, Kept("scores", axes, shape, each, _AGAIN | _FORWARD)]
  found.append(
    Kept("highest score and sum", axes, (rows, c.num_heads, length, 2), 4, _NONE | _DOTS)
  )
  shape = (rows, c.num_heads, length, keys)
  if dropout:
    found.append(Kept("weights that dropout leaves", axes, shape, 1, _NONE))
  if causal:
    axes = ("batch", "heads", _BLOCKS, None)
  return [*found, Kept("scores", axes, shape, 4, _AGAIN | _AGAIN_NONE | _FORWARD)]


def _feed_forward(
  c: DecoderConfig | EncoderDecoderConfig, rows: int, length: int, dropout: bool
) -> list[Kept]:
  size, first = jnp.dtype(c.dtype).itemsize, c.mlp_activations[0]
  gated = len(c.mlp_activations) == 2
  numbers = _OF_ACTIVATION[first] + (2 if gated else 0)
  flags = (1 if first == "relu" else 0) + (1 if dropout else 0)
  return [
    _of_tokens(rows, length, "feed-forward", "mlp", c.mlp_dim, numbers * size + flags, _NONE),
    _of_tokens(
      rows, length, "widened", "mlp", c.mlp_dim, (2 if gated else 1) * size, _DOTS | _AGAIN_FULL
    ),
    _of_tokens(rows, length, "activated", "mlp", c.mlp_dim, 2 * size, _AGAIN),
  ]


_NONE = frozenset({"none"})
_DOTS = frozenset({"dots"})
_ONLY_REMAT = frozenset({"dots", "full"})
_AGAIN = frozenset({"again dots", "again full"})
_AGAIN_FULL = frozenset({"again full"})
_AGAIN_NONE = frozenset({"again none"})
_FORWARD = frozenset({"again forward"})
_LANES = 128
_BLOCKS = "blocks of causal queries"


def _of_tokens(
  rows: int,
  tokens: int,
  name: str,
  axis: str | None,
  width: int,
  size: float,
  policies: frozenset[str],
) -> Kept:
  return Kept(name, ("batch", "length", axis), (rows, tokens, width), size, policies)


def _pieces(layout: Layout, axis: str | None, size: int) -> int:
  """Of which one exists at a time on a device."""
  if axis == _BLOCKS:
    return layout.shards("length") if layout.shards("length") > 1 else causal_blocks(size)
  return 1 if axis is None else layout.shards(axis)
