"""The decoder family: rotary positions, grouped-query attention, RMSNorm, SwiGLU (LLaMA's shape)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flan_jax.models.attention import Attention, KeyValues, Mask, SelfMask, causal_mask
from flan_jax.models.config import DecoderConfig
from flan_jax.models.layers import (
  MLP,
  Embedding,
  RMSNorm,
  Unembedding,
  constrain,
  dropout,
  rotary_angles,
)
from flan_jax.models.stack import stacked

_INIT = nn.initializers.normal(0.02)


class DecoderContext(NamedTuple):
  """What every layer is given alike."""

  mask: Mask
  rotary: tuple[Float[Array, "B T 1 H2"], Float[Array, "B T 1 H2"]]
  slots: Int[Array, "B T"] | None = None


class DecoderLayer(nn.Module):
  """Pre-norm self attention and SwiGLU, each added to the residual stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], cache: KeyValues | None, context: DecoderContext
  ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
    c = self.config
    x = constrain(x, "batch", "length", None)
    normed = RMSNorm(c.norm_eps, c.dtype, c.param_dtype, name="attention_norm")(x)
    attention = Attention(
      c.num_heads,
      c.num_kv_heads,
      c.head_dim,
      c.head_dim**-0.5,
      _INIT,
      _INIT,
      c.dtype,
      c.param_dtype,
      name="attention",
    )
    attended, new = attention(
      normed, context.mask, rotary=context.rotary, cache=cache, slots=context.slots
    )
    x = x + dropout(self, attended, c.dropout_rate)
    normed = RMSNorm(c.norm_eps, c.dtype, c.param_dtype, name="mlp_norm")(x)
    fed = MLP(c.mlp_dim, ("silu", "linear"), _INIT, c.dtype, c.param_dtype, name="mlp")(normed)
    x = constrain(x + dropout(self, fed, c.dropout_rate), "batch", "length", None)
    return x, new if cache is not None else None


class Decoder(nn.Module):
  """Embedding, layers, final norm. Logits are made outside, a piece at a time where that saves
  memory."""

  config: DecoderConfig

  def setup(self) -> None:
    c = self.config
    self.embed = Embedding(c.vocab_size, c.emb_dim, _INIT, c.dtype, c.param_dtype)
    self.layers = stacked(DecoderLayer, c, c.num_layers)
    self.norm = RMSNorm(c.norm_eps, c.dtype, c.param_dtype)
    if not c.tied_embeddings:
      self.unembed = Unembedding(c.vocab_size, c.emb_dim, _INIT, c.param_dtype)

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Touches every parameter: for initialisation."""
    if not self.config.tied_embeddings:
      self.unembed()
    return self.hidden(self.embed(tokens))

  def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return self.embed(tokens)

  def hidden(
    self,
    x: Float[Array, "B T D"],
    segment_ids: Int[Array, "B T"] | None = None,
    positions: Int[Array, "B T"] | None = None,
    attention_mask: SelfMask | None = None,
    prefix: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T D"]:
    """Final-normed hidden states of embedded tokens, all at once."""
    batch, length, _ = x.shape
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    if attention_mask is None:
      rows = 1 if segment_ids is None and prefix is None else batch
      attention_mask = causal_mask(rows, length, segment_ids, prefix)
    rotary = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
    x, _ = self._run(x, None, DecoderContext(attention_mask, rotary))
    return x

  def decode(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: KeyValues,
    prefix_lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
    """Hidden states of `tokens`, which also see what the cache holds before their positions.

    Args:
      prefix_lengths: the first positions of a row, so many, see each other in both directions.

    Returns:
      Final-normed hidden states, and the new keys and values [L, B, T, K, H].
    """
    slots = jnp.arange(cache.key.shape[2], dtype=positions.dtype)
    mask = slots[None, None, :] <= positions[:, :, None]
    if prefix_lengths is not None:
      ends = prefix_lengths[:, None, None]
      mask |= (slots[None, None, :] < ends) & (positions[:, :, None] < ends)
    rotary = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
    return self._run(self.embed(tokens), cache, DecoderContext(mask, rotary, positions))

  def _run(
    self, x: Float[Array, "B T D"], cache: KeyValues | None, context: DecoderContext
  ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
    x = dropout(self, x.astype(self.config.dtype), self.config.dropout_rate)
    x, new = self.layers(x, cache, context)
    return self.norm(x), new
