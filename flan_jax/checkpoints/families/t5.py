"""T5 1.0 and 1.1, Flan-T5, UL2, ByT5; mT5."""

from collections.abc import Callable
from typing import Any

from flan_jax.checkpoints.families.family import (
  THEIR_ACTIVATIONS,
  WEIGHT,
  Family,
  Json,
  activation,
  layer_names,
)
from flan_jax.models import EncoderDecoderConfig


def _t5_names(config: EncoderDecoderConfig) -> dict[str, str]:
  names = {"embed/embedding": "shared.weight", "unembed/kernel": "lm_head.weight"}
  for side, attentions in (
    ("encoder", {"attention": "0.SelfAttention"}),
    ("decoder", {"self_attention": "0.SelfAttention", "cross_attention": "1.EncDecAttention"}),
  ):
    layer, feed = f"{side}.block.{{}}.layer", f"{len(attentions)}.DenseReluDense"
    gated = len(config.mlp_activations) == 2
    wide = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    products = {f"mlp/{ours}": f"{feed}.{name}" for ours, name in {**wide, "down": "wo"}.items()}
    norms = {"mlp_norm": f"{len(attentions)}.layer_norm"}
    for ours, theirs in attentions.items():
      parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
      products |= {f"{ours}/{part}": f"{theirs}.{name}" for part, name in parts.items()}
      norms[f"{ours}_norm"] = f"{theirs[0]}.layer_norm"
    stacked = {
      **layer_names(layer, products, {"kernel": "weight"}),
      **layer_names(layer, norms, WEIGHT),
    }
    names |= {f"{side}/{path}": name for path, name in stacked.items()}
    names[f"{side}/norm/scale"] = f"{side}.final_layer_norm.weight"
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names[f"{side}/relative_bias/embedding"] = bias
  return names


def _t5_reader(scaled: Callable[[Json], bool]) -> Callable[[Json], EncoderDecoderConfig]:
  def read(settings: Json) -> EncoderDecoderConfig:
    first, _, rest = settings.get("feed_forward_proj", "relu").rpartition("-")
    # transformers means the approximation where a gated layer says "gelu".
    act = "gelu" if (first, rest) == ("gated", "gelu") else activation(rest)
    return EncoderDecoderConfig(
      vocab_size=settings["vocab_size"],
      emb_dim=settings["d_model"],
      num_heads=settings["num_heads"],
      head_dim=settings["d_kv"],
      num_encoder_layers=settings["num_layers"],
      num_decoder_layers=settings.get("num_decoder_layers") or settings["num_layers"],
      mlp_dim=settings["d_ff"],
      mlp_activations=(act, "linear") if first else (act,),
      tied_embeddings=settings.get("tie_word_embeddings", True),
      scaled_outputs=scaled(settings),
      relative_buckets=settings.get("relative_attention_num_buckets", 32),
      relative_max_distance=settings.get("relative_attention_max_distance", 128),
      norm_eps=settings.get("layer_norm_epsilon", 1e-6),
    )

  return read


def _t5_scales(settings: Json) -> bool:
  tied = settings.get("tie_word_embeddings", True)
  return bool(settings.get("scale_decoder_outputs", tied is not False))


def _write_t5(config: EncoderDecoderConfig) -> dict[str, Any]:
  c = config
  if c.mlp_activations[0] == "gelu" and len(c.mlp_activations) == 2:
    feed_forward = "gated-gelu"
  else:
    gate = "gated-" if len(c.mlp_activations) == 2 else ""
    feed_forward = gate + THEIR_ACTIVATIONS[c.mlp_activations[0]]
  return {
    "vocab_size": c.vocab_size,
    "d_model": c.emb_dim,
    "num_heads": c.num_heads,
    "d_kv": c.head_dim,
    "num_layers": c.num_encoder_layers,
    "num_decoder_layers": c.num_decoder_layers,
    "d_ff": c.mlp_dim,
    "feed_forward_proj": feed_forward,
    "tie_word_embeddings": c.tied_embeddings,
    "scale_decoder_outputs": c.scaled_outputs,
    "relative_attention_num_buckets": c.relative_buckets,
    "relative_attention_max_distance": c.relative_max_distance,
    "layer_norm_epsilon": c.norm_eps,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
  }


_T5_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _t5(kind: str, architecture: str, scaled: Callable[[Json], bool]) -> Family:
  read = _t5_reader(scaled)
  return Family(kind, architecture, _t5_names, read, _write_t5, "", ignored=_T5_COPIES)


FAMILIES = (
  _t5("t5", "T5ForConditionalGeneration", _t5_scales),
  _t5("mt5", "MT5ForConditionalGeneration", lambda settings: False),
)
