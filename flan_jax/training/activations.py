"""What a training step keeps of its activations, array by array, as shares of a device.

Per layer and token, with D = emb_dim, F = mlp_dim, N heads and K key heads of H numbers, b bytes of a
number of `dtype`, S keys that a query is compared with, the backward pass finds

  remat      decoder                          and of a layer of T5
  full       b D                              b D
  dots       b (2D + NH + 2KH + gF)           the same with K = N; in the decoder also cross attention's
                                              b (D + NH), and its 2 b NH for each token of the encoder
  none       (12 + b) D for each norm         a gelu's cF = 6F, a silu's 4F, a relu's 1F (and a byte);
             b (2NH + 2KH) for attention      a gate adds 2F
             (4 + b) N S for its weights
             b cF for the feed-forward layer

with g = 2 where the layer is gated, else 1. Dropout adds a byte a number that it may drop. These are what
JAX's partial evaluation saves of `flan_jax.models`, and a test holds them against it. While the backward
pass is in a layer, what "none" would have kept of it exists once, and the gradients of its scores beside it.

Under rules, "batch" and "length" cut the tokens, "heads", "kv" and "mlp" the widths; D and S are whole.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp

from flan_jax.models import DecoderConfig, EncoderDecoderConfig
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
    policies: of remat, those under which it is kept.
  """

  name: str
  axes: tuple[str | None, ...]
  shape: tuple[int, ...]
  bytes: float
  policies: frozenset[str]

  def share(self, layout: Layout) -> float:
    """Bytes of it on one device."""
    cut = [
      -(-size // _shards(layout, axis)) for axis, size in zip(self.axes, self.shape, strict=True)
    ]
    return math.prod(cut) * self.bytes


def kept_bytes(arrays: Iterable[Kept], remat: str, layout: Layout) -> float:
  """Bytes on one device of what a policy keeps."""
  return sum(array.share(layout) for array in arrays if remat in array.policies)


def layers(
  config: DecoderConfig | EncoderDecoderConfig, work: Workload
) -> list[tuple[int, list[Kept]]]:
  """How many layers there are of each kind, and the arrays of one of them for a microbatch."""
  rows, length, inputs = work.microbatch, work.length, work.inputs
  if isinstance(config, DecoderConfig):
    return [(config.num_layers, _decoder_layer(config, rows, length, work.dropout))]
  encoder = _t5_layer(config, rows, inputs, None, work.dropout)
  decoder = _t5_layer(config, rows, length, inputs, work.dropout)
  return [(config.num_encoder_layers, encoder), (config.num_decoder_layers, decoder)]


def outside_layers(config: DecoderConfig | EncoderDecoderConfig, work: Workload) -> list[Kept]:
  """What is kept of embeddings, masks, and the norm after each stack."""
  size, rows = jnp.dtype(config.dtype).itemsize, work.microbatch
  found = []
  for tokens in (work.inputs, work.length):
    if tokens:
      found.append(
        _kept("last norm", ("batch", "length", None), (rows, tokens, config.emb_dim), 12 + size)
      )
      found.append(_kept("mask", ("batch", "length", None), (rows, tokens, tokens), 1))
      if work.dropout:
        found.append(_kept("dropout", ("batch", "length", None), (rows, tokens, config.emb_dim), 2))
  if work.inputs:
    found.append(_kept("mask", ("batch", "length", None), (rows, work.length, work.inputs), 1))
    for tokens in (work.inputs, work.length):
      shape = (config.num_heads, tokens, tokens)
      found.append(_kept("relative bias", (None, None, None), shape, 4))
  return found


def _decoder_layer(c: DecoderConfig, rows: int, length: int, dropout: bool) -> list[Kept]:
  size, make = jnp.dtype(c.dtype).itemsize, functools.partial(_of_tokens, rows, length)
  norms = 1 if c.block == "parallel_shared_norm" else 2
  # The second norm needs what attention gave, and a norm after each part what that gave.
  normed = 2 if c.post_norms else (1 if c.block == "sequential" else 0)
  dropped = 2 if dropout else 0
  found = [
    make("layer input", None, c.emb_dim, size, _ONLY_REMAT),
    make("norms", None, c.emb_dim, norms * (12 + size) + (24 if c.post_norms else 0), _NONE),
    make("products that norms read", None, c.emb_dim, size * normed, _DOTS),
    make("added", None, c.emb_dim, dropped, _NONE),
    *_attention(c, rows, length, length, c.num_kv_heads, False),
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
    make("norms", None, c.emb_dim, parts * (12 + size), _NONE),
    make("products that norms read", None, c.emb_dim, (parts - 1) * size, _DOTS),
    make("added", None, c.emb_dim, parts if dropout else 0, _NONE),
    *_attention(c, rows, length, length, c.num_heads, dropout),
    *_feed_forward(c, rows, length, dropout),
  ]
  if source is not None:
    found += _attention(c, rows, length, source, c.num_heads, dropout)
  return found


def _attention(
  c: DecoderConfig | EncoderDecoderConfig,
  rows: int,
  length: int,
  keys: int,
  kv_heads: int,
  dropout: bool,
) -> list[Kept]:
  size = jnp.dtype(c.dtype).itemsize
  wide, narrow = c.num_heads * c.head_dim, kv_heads * c.head_dim
  scores = 4 + size + (1 if dropout else 0)
  if isinstance(c, DecoderConfig) and c.attention_softcap is not None:
    scores += 8
  return [
    _of_tokens(rows, length, "query", "heads", wide, size, _NONE | _DOTS),
    _of_tokens(rows, keys, "key and value", "kv", narrow, 2 * size, _NONE | _DOTS),
    _of_tokens(rows, length, "attended", "heads", wide, size, _NONE),
    Kept(
      "attention weights",
      ("batch", "heads", "length", None),
      (rows, c.num_heads, length, keys),
      scores,
      _NONE,
    ),
  ]


def _feed_forward(
  c: DecoderConfig | EncoderDecoderConfig, rows: int, length: int, dropout: bool
) -> list[Kept]:
  size, first = jnp.dtype(c.dtype).itemsize, c.mlp_activations[0]
  gated = len(c.mlp_activations) == 2
  numbers = _OF_ACTIVATION[first] + (2 if gated else 0)
  flags = (1 if first == "relu" else 0) + (1 if dropout else 0)
  return [
    _of_tokens(rows, length, "feed-forward", "mlp", c.mlp_dim, numbers * size + flags, _NONE),
    _of_tokens(rows, length, "widened", "mlp", c.mlp_dim, (2 if gated else 1) * size, _DOTS),
  ]


_NONE = frozenset({"none"})
_DOTS = frozenset({"dots"})
_ONLY_REMAT = frozenset({"dots", "full"})


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


def _kept(name: str, axes: tuple[str | None, ...], shape: tuple[int, ...], size: float) -> Kept:
  return Kept(name, axes, shape, size, frozenset({"none", "dots", "full"}))


def _shards(layout: Layout, axis: str | None) -> int:
  return 1 if axis is None else layout.shards(axis)
