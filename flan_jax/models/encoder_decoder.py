"""The encoder-decoder family: T5 1.0 and 1.1 (arXiv:1910.10683, 2002.05202).

As the published models: no biases, RMSNorm before each sub-layer, attention scores without
1/sqrt(head_dim) (the query's initial scale carries it), one table of relative positions a stack.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flan_jax.models.attention import (
  Attention,
  EncoderMask,
  KeyValues,
  LayersKeyValues,
  SelfMask,
  causal_mask,
  same_segment,
)
from flan_jax.models.config import EncoderDecoderConfig
from flan_jax.models.dot_product_attention import LowerTriangular, Mask
from flan_jax.models.flash_attention import SameSegment
from flan_jax.models.layers import (
  FAN_IN_NORMAL,
  FAN_IN_TRUNCATED,
  MLP,
  Embedding,
  RMSNorm,
  Unembedding,
  constrain,
  dropout,
)
from flan_jax.models.positions import RelativeBias
from flan_jax.models.splash_attention import Causal
from flan_jax.models.stack import SeparateLayers, stacked


class EncoderContext(NamedTuple):
  """What every encoder layer is given alike."""

  mask: EncoderMask | SameSegment
  bias: Float[Array, "#B N S S"]


class DecoderContext(NamedTuple):
  """What every decoder layer is given alike: `encoded` without a cache, `slots` with one."""

  mask: Mask | LowerTriangular | Causal
  bias: Float[Array, "#B N T S"]
  cross_mask: Mask | SameSegment
  encoded: Float[Array, "B S D"] | None = None
  slots: Int[Array, "B T"] | None = None


class LayerCache(NamedTuple):
  """Keys and values of a decoder layer's own tokens, and of the encoder's output."""

  own: KeyValues
  cross: KeyValues


class EncoderLayer(nn.Module):
  """Self attention in both directions, then the feed-forward layer."""

  config: EncoderDecoderConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "B S D"], cache: None, context: EncoderContext
  ) -> tuple[Float[Array, "B S D"], None]:
    c = self.config
    x = constrain(x, "batch", "length", None)
    attended, _ = _attention(c, "attention")(
      _norm(c, "attention_norm")(x), context.mask, context.bias
    )
    return _feed_forward(self, x + dropout(self, attended, c.dropout_rate)), None


class DecoderLayer(nn.Module):
  """Causal self attention, attention to the encoder's output, then the feed-forward layer."""

  config: EncoderDecoderConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], cache: LayerCache | None, context: DecoderContext
  ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
    c = self.config
    x = constrain(x, "batch", "length", None)
    attended, own = _attention(c, "self_attention")(
      _norm(c, "self_attention_norm")(x),
      context.mask,
      context.bias,
      cache=None if cache is None else cache.own,
      slots=context.slots,
    )
    x = x + dropout(self, attended, c.dropout_rate)
    attended, _ = _attention(c, "cross_attention")(
      _norm(c, "cross_attention_norm")(x),
      context.cross_mask,
      source=context.encoded,
      cache=None if cache is None else cache.cross,
    )
    x = x + dropout(self, attended, c.dropout_rate)
    return _feed_forward(self, x), own


class Stack(nn.Module):
  """Layers, their table of relative positions, and the norm after the last."""

  config: EncoderDecoderConfig
  layer: type[nn.Module]
  num_layers: int
  bidirectional: bool
  separate_layers: bool = False

  def setup(self) -> None:
    c = self.config
    self.relative_bias = RelativeBias(
      c.num_heads, c.relative_buckets, c.relative_max_distance, self.bidirectional, c.param_dtype
    )
    stack = SeparateLayers if self.separate_layers else stacked
    self.layers = stack(self.layer, c, self.num_layers)
    self.norm = RMSNorm(c.norm_eps, c.dtype, c.param_dtype)

  def bias(
    self, query_positions: Int[Array, "#B T"], key_positions: Int[Array, "#B S"]
  ) -> Float[Array, "#B N T S"]:
    return self.relative_bias(query_positions, key_positions)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    cache: LayerCache | Sequence[LayerCache | None] | None,
    context: EncoderContext | DecoderContext,
  ) -> tuple[Float[Array, "B T D"], LayersKeyValues | None]:
    x = dropout(self, x.astype(self.config.dtype), self.config.dropout_rate)
    if cache is None and self.separate_layers:
      cache = (None,) * self.num_layers
    x, own = self.layers(x, cache, context)
    return dropout(self, self.norm(x), self.config.dropout_rate), own


class EncoderDecoder(nn.Module):
  """Both stacks over one embedding. Logits are made outside from the decoder's hidden states.

  Args:
    separate_layers: of the decoder, which runs once a token; see `flan_jax.models.stack.SeparateLayers`.
  """

  config: EncoderDecoderConfig
  separate_layers: bool = False

  def setup(self) -> None:
    c = self.config
    self.embed = Embedding(
      c.vocab_size, c.emb_dim, nn.initializers.normal(1.0), c.dtype, c.param_dtype
    )
    self.encoder = Stack(c, EncoderLayer, c.num_encoder_layers, bidirectional=True)
    self.decoder = Stack(c, DecoderLayer, c.num_decoder_layers, False, self.separate_layers)
    if not c.tied_embeddings:
      self.unembed = Unembedding(c.vocab_size, c.emb_dim, FAN_IN_TRUNCATED, c.param_dtype)

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Touches every parameter: for initialisation."""
    if not self.config.tied_embeddings:
      self.unembed()
    return self.hidden(self.embed(tokens), self.encode(self.embed(tokens)))

  def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return self.embed(tokens)

  def encode(
    self,
    x: Float[Array, "B S D"],
    segment_ids: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    attention_mask: EncoderMask | None = None,
  ) -> Float[Array, "B S D"]:
    """The encoder's output for embedded tokens."""
    positions = _bias_positions(x, positions, attention_mask)
    mask: EncoderMask | SameSegment | None = attention_mask
    if mask is None:
      mask = self._same_segment(x, x, segment_ids, segment_ids)
    context = EncoderContext(mask, self.encoder.bias(positions, positions))
    return self.encoder(x, None, context)[0]

  def hidden(
    self,
    x: Float[Array, "B T D"],
    encoded: Float[Array, "B S D"],
    segment_ids: Int[Array, "B T"] | None = None,
    encoder_segment_ids: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B T"] | None = None,
    attention_mask: SelfMask | None = None,
    cross_mask: Mask | None = None,
  ) -> Float[Array, "B T D"]:
    """Final-normed decoder states of embedded tokens, scaled so that logits are their product with
    the unembedding."""
    positions = _bias_positions(x, positions, attention_mask)
    mask: SelfMask | LowerTriangular | Causal | None = attention_mask
    if mask is None and self.config.attention == "flash":
      mask = Causal(segment_ids)
    if mask is None:
      rows = x.shape[0] if segment_ids is not None else 1
      mask = LowerTriangular(causal_mask(rows, x.shape[1], segment_ids))
    seen: Mask | SameSegment | None = cross_mask
    if seen is None:
      seen = self._same_segment(x, encoded, segment_ids, encoder_segment_ids)
    bias = self.decoder.bias(positions, positions)
    context = DecoderContext(mask, bias, seen, encoded)
    return self._scaled(self.decoder(x, None, context)[0])

  def decode(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    own: LayersKeyValues,
    cross: LayersKeyValues,
    cross_mask: Mask,
  ) -> tuple[Float[Array, "B T D"], LayersKeyValues | None]:
    """Hidden states of `tokens`, which also see what the cache holds before their positions.

    Returns:
      Hidden states as `hidden` gives them, and the cache with the tokens' keys and values.
    """
    length = jax.tree.leaves(own)[0].shape[-2]
    slots = jnp.arange(length, dtype=positions.dtype)[None, :]
    mask = slots[:, None, :] <= positions[:, :, None]
    bias = self.decoder.bias(positions, slots)
    context = DecoderContext(mask, bias, cross_mask, slots=positions)
    caches: LayerCache | list[LayerCache]
    if isinstance(own, list) and isinstance(cross, list):
      caches = [LayerCache(*layer) for layer in zip(own, cross, strict=True)]
    else:
      assert isinstance(own, KeyValues) and isinstance(cross, KeyValues)
      caches = LayerCache(own, cross)
    x, written = self.decoder(self.embed(tokens), caches, context)
    return self._scaled(x), written

  def _same_segment(
    self,
    x: Float[Array, "B T D"],
    source: Float[Array, "B S D"],
    segment_ids: Int[Array, "B T"] | None,
    source_segment_ids: Int[Array, "B S"] | None,
  ) -> Mask | SameSegment:
    """Same segment; where only the source has segment ids, everything that is not padding."""
    if source_segment_ids is None:
      source_segment_ids = jnp.ones(source.shape[:2], jnp.int32)
      segment_ids = None
    elif segment_ids is None:
      source_segment_ids = (source_segment_ids > 0).astype(jnp.int32)
    if segment_ids is None:
      segment_ids = jnp.ones(x.shape[:2], jnp.int32)
    segments = SameSegment(segment_ids, source_segment_ids)
    return segments if self.config.attention == "flash" else same_segment(*segments)

  def _scaled(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return x * self.config.emb_dim**-0.5 if self.config.scaled_outputs else x


def _feed_forward(layer: nn.Module, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  c = layer.config
  mlp = MLP(
    c.mlp_dim,
    c.mlp_activations,
    FAN_IN_TRUNCATED,
    c.dtype,
    c.param_dtype,
    c.dropout_rate,
    name="mlp",
  )
  x = x + dropout(layer, mlp(_norm(c, "mlp_norm")(x)), c.dropout_rate)
  return constrain(x, "batch", "length", None)


def _attention(config: EncoderDecoderConfig, name: str) -> Attention:
  def query_init(*args):
    return FAN_IN_NORMAL(*args) * config.head_dim**-0.5

  return Attention(
    config.num_heads,
    config.num_heads,
    config.head_dim,
    1.0,
    query_init,
    FAN_IN_NORMAL,
    config.dtype,
    config.param_dtype,
    config.dropout_rate,
    kernel=config.attention,
    name=name,
  )


def _norm(config: EncoderDecoderConfig, name: str) -> RMSNorm:
  return RMSNorm(config.norm_eps, config.dtype, config.param_dtype, name=name)


def _bias_positions(
  x: Float[Array, "B T D"], positions: Int[Array, "B T"] | None, mask: EncoderMask | SelfMask | None
) -> Int[Array, "#B T"]:
  """Positions that the relative bias counts.

  Examples are contiguous in a packed row, so that distances within one are distances in the row,
  and one bias serves all rows. Only a caller's mask can let a token see others than its neighbours.
  """
  if mask is None or positions is None:
    return jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
  return positions
