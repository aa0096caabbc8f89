"""The decoder family: one module whose configuration makes it LLaMA, Qwen, Gemma, GPT-2, GPT-J or NeoX."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flan_jax.errors import ConfigError
from flan_jax.models.attention import (
  Attention,
  KeyValues,
  LayersKeyValues,
  SelfMask,
  causal_mask,
  within_window,
)
from flan_jax.models.config import DecoderConfig
from flan_jax.models.dot_product_attention import LowerTriangular, Mask
from flan_jax.models.layers import (
  MLP,
  Embedding,
  LayerNorm,
  RMSNorm,
  Unembedding,
  constrain,
  dropout,
)
from flan_jax.models.positions import Angles, rotary_angles
from flan_jax.models.splash_attention import Causal
from flan_jax.models.stack import SeparateLayers, stacked

_INIT = nn.initializers.normal(0.02)


class Sight(NamedTuple):
  """What a layer's queries see, and how queries and keys are turned (None: they are not)."""

  mask: Mask | LowerTriangular | Causal
  rotary: Angles | None


class DecoderContext(NamedTuple):
  """What every layer is given alike.

  Attributes:
    whole: of layers that see all before a token.
    local: of layers with a window; None: there are none.
  """

  whole: Sight
  local: Sight | None = None
  slots: Int[Array, "B T"] | None = None


class LayerOwn(NamedTuple):
  """What each layer is given for itself; `windowed` is known beforehand where layers are separate."""

  windowed: Bool[Array, ""] | bool
  cache: KeyValues | None


class DecoderLayer(nn.Module):
  """Self attention and a feed-forward layer, each behind a norm and added to the residual stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], own: LayerOwn, context: DecoderContext
  ) -> tuple[Float[Array, "B T D"], KeyValues | None]:
    c = self.config
    x = constrain(x, "batch", "length", None)
    normed = _norm(c, "attention_norm")(x)
    sight = _sight(c, own.windowed, context)
    attended, cache = self._attention()(
      normed, sight.mask, rotary=sight.rotary, cache=own.cache, slots=context.slots
    )
    attended = self._added(attended, "attention_post_norm")
    if c.block == "sequential":
      x = x + attended
    if c.block != "parallel_shared_norm":
      normed = _norm(c, "mlp_norm")(x)
    mlp = MLP(
      c.mlp_dim,
      c.mlp_activations,
      _INIT,
      c.dtype,
      c.param_dtype,
      bias="mlp" in c.biases,
      name="mlp",
    )
    x = x + self._added(mlp(normed), "mlp_post_norm")
    if c.block != "sequential":
      x = x + attended
    x = constrain(x, "batch", "length", None)
    return x, cache

  def _attention(self) -> Attention:
    c = self.config
    head_norm = partial(RMSNorm, c.norm_eps, c.dtype, c.param_dtype, None, c.norm == "rms_plus_one")
    return Attention(
      c.num_heads,
      c.num_kv_heads,
      c.head_dim,
      c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale,
      _INIT,
      _INIT,
      c.dtype,
      c.param_dtype,
      biases=c.biases,
      head_norm=head_norm if c.qk_norm else None,
      softcap=c.attention_softcap,
      window=c.sliding_window if any(c.windowed) else None,
      kernel=c.attention,
      name="attention",
    )

  def _added(self, x: Float[Array, "B T D"], post_norm: str) -> Float[Array, "B T D"]:
    if self.config.post_norms:
      x = _norm(self.config, post_norm)(x)
    return dropout(self, x, self.config.dropout_rate)


class Decoder(nn.Module):
  """Embedding, layers, final norm. Logits are made outside, a piece at a time where that saves
  memory.

  Args:
    separate_layers: see `flan_jax.models.stack.SeparateLayers`.
  """

  config: DecoderConfig
  separate_layers: bool = False

  def setup(self) -> None:
    c = self.config
    self.embed = Embedding(c.vocab_size, c.emb_dim, _INIT, c.dtype, c.param_dtype)
    if c.learned_positions:
      self.position_embed = Embedding(
        c.learned_positions, c.emb_dim, _INIT, c.dtype, c.param_dtype, rows=None
      )
    stack = SeparateLayers if self.separate_layers else stacked
    self.layers = stack(DecoderLayer, c, c.num_layers)
    self.norm = _norm(c)
    if not c.tied_embeddings:
      self.unembed = Unembedding(
        c.vocab_size, c.emb_dim, _INIT, c.param_dtype, "logits" in c.biases
      )

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Touches every parameter: for initialisation."""
    if not self.config.tied_embeddings:
      self.unembed()
    return self.hidden(self.embed(tokens))

  def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    x = self.embed(tokens)
    scale = self.config.embedding_scale
    return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)

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
    index = jnp.arange(length, dtype=jnp.int32)[None, :]
    # Examples are contiguous in a packed row: places in the row tell distances within one, and one
    # window serves all rows. Only a caller's mask can let a token see others than its neighbours.
    places = index if attention_mask is None or positions is None else positions
    if positions is None:
      positions = jnp.broadcast_to(index, (batch, length))
    mask: Mask | LowerTriangular | Causal | None = attention_mask
    if mask is None and self.config.attention in ("splash", "flash"):
      if prefix is not None:
        raise ConfigError(
          f"attention={self.config.attention!r} is causal, and the batch has inputs that are not: set attention='xla', "
          "or 'cudnn' on NVIDIA GPUs."
        )
      mask = Causal(segment_ids)
    if mask is None:
      rows = 1 if segment_ids is None and prefix is None else batch
      causal = causal_mask(rows, length, segment_ids, prefix)
      mask = LowerTriangular(causal) if prefix is None else causal
    x, _ = self._run(x, positions, None, self._context(mask, positions, places, places))
    return x

  def decode(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: LayersKeyValues,
    prefix_lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], LayersKeyValues | None]:
    """Hidden states of `tokens`, which also see what the cache holds before their positions.

    Args:
      prefix_lengths: the first positions of a row, so many, see each other in both directions.

    Returns:
      Final-normed hidden states, and the cache with the tokens' keys and values.
    """
    length = jax.tree.leaves(cache)[0].shape[-2]
    slots = jnp.arange(length, dtype=positions.dtype)[None, :]
    mask = slots[:, None, :] <= positions[:, :, None]
    if prefix_lengths is not None:
      ends = prefix_lengths[:, None, None]
      mask |= (slots[:, None, :] < ends) & (positions[:, :, None] < ends)
    context = self._context(mask, positions, positions, slots)._replace(slots=positions)
    return self._run(self.embed_tokens(tokens), positions, cache, context)

  def _context(
    self,
    mask: Mask | LowerTriangular | Causal,
    positions: Int[Array, "B T"],
    query_places: Int[Array, "#B T"],
    key_places: Int[Array, "#B S"],
  ) -> DecoderContext:
    c = self.config

    def angles(theta: float, scaling) -> Angles | None:
      dims = c.head_dim if c.rotary_dim is None else c.rotary_dim
      return None if c.learned_positions else rotary_angles(positions, dims, theta, scaling)

    whole = Sight(mask, angles(c.rope_theta, c.rope_scaling))
    if c.sliding_window is None:
      return DecoderContext(whole)
    near = mask
    if not isinstance(mask, Causal):
      near = within_window(mask, query_places, key_places, c.sliding_window)
    own = c.local_rope_theta
    local = Sight(near, whole.rotary if own is None else angles(own, None))
    return DecoderContext(whole, local)

  def _run(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    cache: LayersKeyValues | None,
    context: DecoderContext,
  ) -> tuple[Float[Array, "B T D"], LayersKeyValues | None]:
    x = x.astype(self.config.dtype)
    if self.config.learned_positions:
      x = x + self.position_embed(positions)
    x = dropout(self, x, self.config.dropout_rate)
    windowed = self.config.windowed
    own: LayerOwn | list[LayerOwn]
    if isinstance(cache, list):
      own = [LayerOwn(*layer) for layer in zip(windowed, cache, strict=True)]
    elif self.separate_layers:
      own = [LayerOwn(layer, None) for layer in windowed]
    else:
      own = LayerOwn(jnp.asarray(np.array(windowed)), cache)
    x, written = self.layers(x, own, context)
    return self.norm(x), None if cache is None else written


def _sight(
  config: DecoderConfig, windowed: Bool[Array, ""] | bool, context: DecoderContext
) -> Sight:
  """That of a layer. Where all layers are alike nothing is chosen while they run."""
  if context.local is None or not any(config.windowed):
    return context.whole
  if all(config.windowed):
    return context.local
  if isinstance(windowed, bool):
    return context.local if windowed else context.whole
  # A kernel's masks are chosen here no more: its config has one for all layers.
  assert not isinstance(context.local.mask, Causal) and not isinstance(context.whole.mask, Causal)
  mask = jax.tree.map(partial(jnp.where, windowed), context.local.mask, context.whole.mask)
  if context.whole.rotary is None or context.local.rotary is None:
    return Sight(mask, None)
  pairs = zip(context.local.rotary, context.whole.rotary, strict=True)
  cosine, sine = (jnp.where(windowed, local, whole) for local, whole in pairs)
  return Sight(mask, (cosine, sine))


def _norm(config: DecoderConfig, name: str | None = None) -> nn.Module:
  c = config
  if c.norm == "layer":
    return LayerNorm(c.norm_eps, c.dtype, c.param_dtype, name=name)
  plus_one = c.norm == "rms_plus_one"
  return RMSNorm(c.norm_eps, c.dtype, c.param_dtype, plus_one=plus_one, name=name)
