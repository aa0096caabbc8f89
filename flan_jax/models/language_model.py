"""One face for both families: pure functions over a plain dict of parameters."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flan_jax.errors import ConfigError
from flan_jax.models.attention import (
  EncoderMask,
  KeyValues,
  LayersKeyValues,
  Mask,
  SelfMask,
)
from flan_jax.models.config import DecoderConfig, EncoderDecoderConfig, ModelConfig
from flan_jax.models.decoder import Decoder
from flan_jax.models.encoder_decoder import EncoderDecoder
from flan_jax.models.layers import constrain
from flan_jax.models.stack import separate

Params = Mapping[str, Any]
Batch = Mapping[str, Array]


class Cache(NamedTuple):
  """What decoding carries from one call of `LanguageModel.decode` to the next.

  Attributes:
    own: keys and values [L, B, K, length, H] of the tokens decoded so far, by position.
    cross: keys and values [L, B, N, S, H] of the encoder's output; None for a decoder.
    cross_mask: [B, 1, S], True where the encoder's output is no padding; None for a decoder.

  Where the model's layers are separate, `own` and `cross` are of each layer, without the axis L.
  """

  own: LayersKeyValues
  cross: LayersKeyValues | None = None
  cross_mask: Mask | None = None


class LMHead(NamedTuple):
  """From hidden states to logits: cap * tanh((hidden @ kernel + bias) / cap).

  Args:
    kernel: with tied embeddings their table, transposed.
    bias: None: there is none.
    softcap: None: the logits are hidden @ kernel + bias.
  """

  kernel: Float[Array, "D V"]
  bias: Float[Array, " V"] | None = None
  softcap: float | None = None


@dataclass(frozen=True)
class LanguageModel:
  """A model whose methods are pure functions of its parameters, to be traced under `jax.jit`.

  Attributes:
    config: its shapes and numerics.
    module: the Linen module that computes.
    layout: which batch keys it reads: "decoder" reads the `decoder_*` keys only.
    bidirectional_inputs: a decoder that was tuned to read prompts in both directions: decoding and scoring
      then do so too. In `hidden` the batch says what is a prompt.
  """

  config: ModelConfig
  module: Decoder | EncoderDecoder
  layout: Literal["decoder", "encoder_decoder"]
  bidirectional_inputs: bool = False

  def __post_init__(self) -> None:
    if self.bidirectional_inputs and self.layout != "decoder":
      raise ConfigError("bidirectional_inputs is for decoders: an encoder reads both ways anyway.")
    if self.bidirectional_inputs and self.config.attention in ("splash", "flash"):
      raise ConfigError(
        f"attention={self.config.attention!r} is causal: bidirectional_inputs needs attention='xla', or 'cudnn' on "
        "NVIDIA GPUs."
      )

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters: a plain nested dict, unboxed, layers stacked on a leading axis."""
    return jax.tree.map(lambda box: box.value, _boxed(self.module, key), is_leaf=_is_box)

  def shapes(self) -> dict[str, Any]:
    """The tree of `init` with shape and dtype of every parameter; nothing is made."""
    return jax.tree.map(lambda box: box.value, _boxed_shapes(self.module), is_leaf=_is_box)

  def logical_axes(self) -> dict[str, Any]:
    """The tree of `init` with a tuple of logical axis names (or None) for every parameter."""
    return jax.tree.map(lambda box: tuple(box.names), _boxed_shapes(self.module), is_leaf=_is_box)

  def separated(self, params: Params) -> tuple["LanguageModel", Params]:
    """The same model as it decodes fastest: of each decoder layer the parameters are arrays of their own.

    Returns:
      A model, and its parameters, for `init_cache`, `decode` and all else. They take as much memory again.
    """
    if self.module.separate_layers:
      return self, params
    module = self.module.clone(separate_layers=True)
    if self.layout == "decoder":
      return replace(self, module=module), {**params, "layers": separate(params["layers"])}
    decoder = {**params["decoder"], "layers": separate(params["decoder"]["layers"])}
    return replace(self, module=module), {**params, "decoder": decoder}

  def embed(self, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Token embeddings as the model's first layer takes them, for `inputs_embeds`."""
    return self._apply(params, "embed_tokens", tokens)

  def hidden(
    self,
    params: Params,
    batch: Batch,
    dropout_key: jax.Array | None = None,
    inputs_embeds: Float[Array, "B S D"] | None = None,
    attention_mask: SelfMask | None = None,
    encoder_mask: EncoderMask | None = None,
    cross_mask: Mask | None = None,
  ) -> Float[Array, "B T D"]:
    """Final-normed hidden states; `lm_head` makes logits of them.

    Segment ids and positions of the batch are optional. Without segment ids every token is real;
    tokens of different segments never see each other.

    Args:
      batch: `decoder_input_tokens` [B, T] and, for an encoder-decoder, `encoder_input_tokens`
        [B, S], each with optional `*_segment_ids` and `*_positions`. A decoder also reads
        `decoder_causal_attention` [B, T], not 0 on inputs, which then see each other in both directions.
      dropout_key: turns dropout on.
      inputs_embeds: instead of `decoder_input_tokens` (decoder) or of `encoder_input_tokens`
        (encoder-decoder), which the batch may then lack.
      attention_mask: [B, T, T], decoder tokens to decoder tokens, instead of what segments and
        inputs of the batch give. Masks are boolean (True: seen), or float and added to the attention scores.
        With a mask, T5's relative positions are counted from the batch's positions.
      encoder_mask: [B, S, S], encoder tokens to encoder tokens.
      cross_mask: [B, T, S], decoder tokens to encoder tokens.
    """
    segments, positions = batch.get("decoder_segment_ids"), batch.get("decoder_positions")
    if self.layout == "decoder":
      x = inputs_embeds
      if x is None:
        x = self.embed(params, batch["decoder_input_tokens"])
      rest = (segments, positions, attention_mask, batch.get("decoder_causal_attention"))
      return self._apply(params, "hidden", x, *rest, dropout_key=dropout_key)
    encoded = self.encode(params, batch, dropout_key, inputs_embeds, encoder_mask)
    return self._apply(
      params,
      "hidden",
      self.embed(params, batch["decoder_input_tokens"]),
      encoded,
      segments,
      batch.get("encoder_segment_ids"),
      positions,
      attention_mask,
      cross_mask,
      dropout_key=None if dropout_key is None else jax.random.fold_in(dropout_key, 1),
    )

  def logits(self, params: Params, batch: Batch, **hidden_options: Any) -> Float[Array, "B T V"]:
    """Logits in float32. Takes what `hidden` takes; losses chunk the vocabulary instead."""
    return self.project(params, self.hidden(params, batch, **hidden_options))

  def lm_head(self, params: Params) -> LMHead:
    """What makes logits of `hidden`."""
    softcap = self.config.logit_softcap if isinstance(self.config, DecoderConfig) else None
    if self.config.tied_embeddings:
      return LMHead(params["embed"]["embedding"].T, None, softcap)
    return LMHead(params["unembed"]["kernel"], params["unembed"].get("bias"), softcap)

  def project(self, params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Logits of hidden states, accumulated and returned in float32."""
    kernel, bias, softcap = self.lm_head(params)
    # The table as it lies in memory: XLA on CPU would turn it round for one token after the other.
    product, factor = (
      ("btd,vd->btv", kernel.T) if self.config.tied_embeddings else ("btd,dv->btv", kernel)
    )
    logits = jnp.einsum(
      product, hidden, factor.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    if bias is not None:
      logits = logits + bias.astype(jnp.float32)[None, None, :]
    if softcap is not None:
      logits = jnp.tanh(logits / softcap) * softcap
    return constrain(logits, "batch", "length", "vocab")

  def encode(
    self,
    params: Params,
    batch: Batch,
    dropout_key: jax.Array | None = None,
    inputs_embeds: Float[Array, "B S D"] | None = None,
    encoder_mask: EncoderMask | None = None,
  ) -> Float[Array, "B S D"]:
    """The encoder's output (encoder-decoder only)."""
    if self.layout == "decoder":
      raise ConfigError("a decoder has no encoder: use hidden() or init_cache().")
    x = inputs_embeds
    if x is None:
      x = self.embed(params, batch["encoder_input_tokens"])
    segments, positions = batch.get("encoder_segment_ids"), batch.get("encoder_positions")
    rest = (segments, positions, encoder_mask)
    return self._apply(params, "encode", x, *rest, dropout_key=dropout_key)

  def init_cache(self, params: Params, batch: Batch, length: int) -> Cache:
    """An empty cache for `length` positions a row; an encoder-decoder encodes the batch here, once.

    Args:
      batch: for a decoder only the number of rows is read, from `decoder_input_tokens`.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    if isinstance(c, DecoderConfig):
      rows, layers, kv_heads = batch["decoder_input_tokens"].shape[0], c.num_layers, c.num_kv_heads
      cross, cross_mask = None, None
    else:
      encoded = self.encode(params, batch)
      rows, layers, kv_heads = encoded.shape[0], c.num_decoder_layers, c.num_heads
      segments = batch.get("encoder_segment_ids")
      cross = self._cross_key_values(params, encoded)
      cross_mask = jnp.ones((rows, 1, encoded.shape[1]), jnp.bool_)
      if segments is not None:
        cross_mask = segments[:, None, :] > 0
    shape = (rows, kv_heads, length, c.head_dim)
    if not self.module.separate_layers:
      return Cache(_zeros((layers, *shape), dtype), cross, cross_mask)
    return Cache([_zeros(shape, dtype) for _ in range(layers)], cross, cross_mask)

  def decode_hidden(
    self,
    params: Params,
    cache: Cache,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    prefix_lengths: Int[Array, "B"] | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache]:
    """Hidden states of the next tokens, and the cache with their keys and values.

    A token sees every position up to its own, so positions are written in order, each row at its
    own pace. A position of the cache's length or more is not written: pad a row with it.

    Args:
      prefix_lengths: of each row the first positions that see each other in both directions (decoder only);
        they are then written by one call.
    """
    if cache.cross is None:
      hidden, own = self._apply(params, "decode", tokens, positions, cache.own, prefix_lengths)
    else:
      hidden, own = self._apply(params, "decode", tokens, positions, *cache)
    return hidden, cache._replace(own=own)

  def decode(
    self,
    params: Params,
    cache: Cache,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
  ) -> tuple[Float[Array, "B T V"], Cache]:
    """Logits of the next tokens, and the cache with their keys and values: see `decode_hidden`."""
    hidden, cache = self.decode_hidden(params, cache, tokens, positions)
    return self.project(params, hidden), cache

  def _apply(
    self, params: Params, method: str, *args: Any, dropout_key: jax.Array | None = None
  ) -> Any:
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return self.module.apply({"params": params}, *args, rngs=rngs, method=method)

  def _cross_key_values(self, params: Params, encoded: Float[Array, "B S D"]) -> LayersKeyValues:
    layers, c = params["decoder"]["layers"], self.config

    def project(kernel: Float[Array, "D F"]) -> Float[Array, "B N S H"]:
      out = jnp.einsum("bsd,df->bsf", encoded, kernel.astype(encoded.dtype))
      return jnp.swapaxes(out.reshape(*out.shape[:2], c.num_heads, c.head_dim), 1, 2)

    def of_layer(layer: Params) -> KeyValues:
      attention = layer["cross_attention"]
      return KeyValues(*(project(attention[name]["kernel"]) for name in ("key", "value")))

    if not self.module.separate_layers:
      return jax.vmap(of_layer)(layers)
    return [of_layer(layers[str(i)]) for i in range(len(layers))]


def build_model(config: ModelConfig) -> LanguageModel:
  """The model of a configuration."""
  if isinstance(config, DecoderConfig):
    return LanguageModel(config, Decoder(config), "decoder")
  if isinstance(config, EncoderDecoderConfig):
    return LanguageModel(config, EncoderDecoder(config), "encoder_decoder")
  raise ConfigError(f"no model is built from a {type(config).__name__}.")


def parameter_count(model: LanguageModel) -> int:
  """Numbers in the model's parameters, counted without making them."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.shapes()))


def _boxed(module: Decoder | EncoderDecoder, key: jax.Array) -> dict[str, Any]:
  return module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def _zeros(shape: tuple[int, ...], dtype: Any) -> KeyValues:
  return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


@functools.lru_cache(maxsize=32)
def _boxed_shapes(module: Decoder | EncoderDecoder) -> dict[str, Any]:
  """Kept, for tracing a model takes a while and its shapes and axes are asked for often."""
  return jax.eval_shape(functools.partial(_boxed, module), jax.random.key(0))


def _is_box(leaf: Any) -> bool:
  return isinstance(leaf, nn.meta.AxisMetadata)
