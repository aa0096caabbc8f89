"""Gemma 1, 2 and the text of 3."""

import math
from typing import Any

from flan_jax.checkpoints.families.family import (
  THEIR_ACTIVATIONS,
  WEIGHT,
  Json,
  decoder_family,
  layer_names,
  refuse,
  rope,
  window,
  written_rope,
  written_window,
)
from flan_jax.checkpoints.families.llama import (
  LLAMA_NAMES,
  QK_NORMS,
  biases_of,
  llama_like,
  llama_names,
  write_llama_like,
)
from flan_jax.errors import CheckpointError
from flan_jax.models import DecoderConfig

_GEMMA2 = llama_names(
  {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
  }
)
_GEMMA3 = {**_GEMMA2, **layer_names("model.layers.{}", QK_NORMS, WEIGHT)}


def _gemma_like(settings: Json, **more: Any) -> DecoderConfig:
  refuse(settings, use_bidirectional_attention=False)
  with_defaults = {"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, **settings}
  gemma: dict[str, Any] = {
    "norm": "rms_plus_one",
    "embedding_scale": math.sqrt(settings["hidden_size"]),
    "biases": biases_of(settings),
  }
  return llama_like(with_defaults, tied=True, **(gemma | more))


def _write_gemma_like(config: DecoderConfig, **more: Any) -> dict[str, Any]:
  act = {"gelu": "gelu_pytorch_tanh"}.get(
    config.mlp_activations[0], THEIR_ACTIVATIONS[config.mlp_activations[0]]
  )
  named = {"hidden_act": act, "hidden_activation": act, "attention_bias": bool(config.biases)}
  return write_llama_like(config, **(named | more))


def _gemma_scale(settings: Json) -> float:
  return settings.get("query_pre_attn_scalar", 256) ** -0.5


def _read_gemma2(settings: Json) -> DecoderConfig:
  return _gemma_like(
    settings,
    post_norms=True,
    attention_scale=_gemma_scale(settings),
    attention_softcap=settings.get("attn_logit_softcapping", 50.0),
    logit_softcap=settings.get("final_logit_softcapping", 30.0),
    **window({"sliding_window": 4096, **settings}, lambda i: i % 2 == 0),
  )


# What the folders of the multimodal sizes leave unsaid about their text models.
_UNSAID = {
  "vocab_size": 262_208,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "max_position_embeddings": 131_072,
}


def _read_gemma3(settings: Json) -> DecoderConfig:
  settings = _UNSAID | dict(settings)
  every = settings.get("sliding_window_pattern") or settings.get("_sliding_window_pattern") or 6
  theta, scaling = rope(settings, 1_000_000.0, "full_attention")
  nested = (settings.get("rope_parameters") or {}).get("sliding_attention") or {}
  if nested.get("rope_type", "default") != "default":
    raise CheckpointError(
      f"config.json: rotary scaling of type {nested['rope_type']!r} in the sliding_attention layers is not supported."
    )
  local = nested.get("rope_theta")
  return _gemma_like(
    settings,
    post_norms=True,
    qk_norm=True,
    attention_scale=_gemma_scale(settings),
    logit_softcap=settings.get("final_logit_softcapping"),
    rope_theta=theta,
    rope_scaling=scaling,
    local_rope_theta=float(local or settings.get("rope_local_base_freq") or 10_000.0),
    **window({"sliding_window": 4096, **settings}, lambda i: (i + 1) % every != 0),
  )


def _write_gemma2(config: DecoderConfig) -> dict[str, Any]:
  c = config
  more: dict[str, Any] = {
    "query_pre_attn_scalar": _whole((c.attention_scale or 0.0625) ** -2),
    "attn_logit_softcapping": c.attention_softcap,
    "final_logit_softcapping": c.logit_softcap,
    # transformers wants a window also where no layer has one.
    **{**written_window(c), "sliding_window": c.sliding_window or 4096},
  }
  if c.local_rope_theta is not None:
    more["rope_local_base_freq"] = c.local_rope_theta
    more["rope_parameters"] = {
      "full_attention": written_rope(c.rope_theta, c.rope_scaling),
      "sliding_attention": written_rope(c.local_rope_theta, None),
    }
  return _write_gemma_like(c, **more)


def _whole(number: float) -> int | float:
  return round(number) if math.isclose(number, round(number), rel_tol=1e-9) else number


FAMILIES = (
  decoder_family("gemma", "GemmaForCausalLM", LLAMA_NAMES, _gemma_like, _write_gemma_like),
  decoder_family("gemma2", "Gemma2ForCausalLM", _GEMMA2, _read_gemma2, _write_gemma2),
  decoder_family("gemma3_text", "Gemma3ForCausalLM", _GEMMA3, _read_gemma3, _write_gemma2),
)
