"""LLaMA and those that differ from it by a window, biases or norms of queries and keys: Mistral, Qwen 2 and 3."""

from collections.abc import Mapping
from typing import Any

from flan_jax.checkpoints.families.family import (
  KERNEL,
  THEIR_ACTIVATIONS,
  WEIGHT,
  Json,
  activation,
  decoder_family,
  layer_names,
  rope,
  window,
  written_length,
  written_ropes,
  written_window,
)
from flan_jax.models import DecoderConfig

_LLAMA_PRODUCTS = {
  "attention/query": "self_attn.q_proj",
  "attention/key": "self_attn.k_proj",
  "attention/value": "self_attn.v_proj",
  "attention/out": "self_attn.o_proj",
  "mlp/gate": "mlp.gate_proj",
  "mlp/up": "mlp.up_proj",
  "mlp/down": "mlp.down_proj",
}
_LLAMA_ENDS = {
  "embed/embedding": "model.embed_tokens.weight",
  "norm/scale": "model.norm.weight",
  "unembed/kernel": "lm_head.weight",
}


def llama_names(norms: Mapping[str, str]) -> dict[str, str]:
  return {
    **_LLAMA_ENDS,
    **layer_names("model.layers.{}", _LLAMA_PRODUCTS, KERNEL),
    **layer_names("model.layers.{}", norms, WEIGHT),
  }


LLAMA_NAMES = llama_names(
  {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
)
QK_NORMS = {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
_QWEN3 = {**LLAMA_NAMES, **layer_names("model.layers.{}", QK_NORMS, WEIGHT)}


def llama_like(settings: Json, tied: bool, theta: float = 10_000.0, **more: Any) -> DecoderConfig:
  """What LLaMA and its kin share.

  Args:
    tied: where config.json does not say.
    more: settings of ours that are not LLaMA's.
  """
  heads, width = settings["num_attention_heads"], settings["hidden_size"]
  rope_theta, rope_scaling = rope(settings, theta)
  plain: dict[str, Any] = {
    "vocab_size": settings["vocab_size"],
    "emb_dim": width,
    "num_layers": settings["num_hidden_layers"],
    "num_heads": heads,
    "num_kv_heads": settings.get("num_key_value_heads") or heads,
    "head_dim": settings.get("head_dim") or width // heads,
    "mlp_dim": settings["intermediate_size"],
    "rope_theta": rope_theta,
    "rope_scaling": rope_scaling,
    "norm_eps": float(settings.get("rms_norm_eps", 1e-6)),
    "tied_embeddings": settings.get("tie_word_embeddings", tied),
    "context_length": settings.get("max_position_embeddings"),
  }
  act = settings.get("hidden_activation") or settings.get("hidden_act") or "silu"
  return DecoderConfig(**(plain | {"mlp_activations": (activation(act), "linear")} | more))


def write_llama_like(config: DecoderConfig, **more: Any) -> dict[str, Any]:
  c = config
  return {
    "vocab_size": c.vocab_size,
    "hidden_size": c.emb_dim,
    "num_hidden_layers": c.num_layers,
    "num_attention_heads": c.num_heads,
    "num_key_value_heads": c.num_kv_heads,
    "head_dim": c.head_dim,
    "intermediate_size": c.mlp_dim,
    "rms_norm_eps": c.norm_eps,
    "tie_word_embeddings": c.tied_embeddings,
    "hidden_act": THEIR_ACTIVATIONS[c.mlp_activations[0]],
    **written_length(c, "max_position_embeddings"),
    **written_ropes(c),
    **more,
  }


def biases_of(settings: Json) -> tuple[str, ...]:
  attention = ("query_key_value", "attention_out") if settings.get("attention_bias") else ()
  return attention + (("mlp",) if settings.get("mlp_bias") else ())


def _read_llama(settings: Json) -> DecoderConfig:
  return llama_like(settings, tied=False, biases=biases_of(settings))


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
  biases = {"attention_bias": "attention_out" in config.biases, "mlp_bias": "mlp" in config.biases}
  return write_llama_like(config, **biases)


def _read_mistral(settings: Json) -> DecoderConfig:
  # Every layer, whatever layer_types may say: so does transformers.
  usual = {"sliding_window": 4096, "num_key_value_heads": 8}
  every = {**usual, **settings, "layer_types": None}
  return llama_like(every, tied=False, **window(every, lambda i: True))


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
  return write_llama_like(config, sliding_window=config.sliding_window)


def _qwen_window(settings: Json) -> dict[str, Any]:
  first = settings.get("max_window_layers", 28)
  used = settings.get("use_sliding_window", False)
  return window({"sliding_window": 4096, **settings}, lambda i: i >= first) if used else {}


def _read_qwen2(settings: Json) -> DecoderConfig:
  more = _qwen_window(settings)
  return llama_like(settings, tied=False, biases=("query_key_value",), **more)


def _read_qwen3(settings: Json) -> DecoderConfig:
  more: dict[str, Any] = {"qk_norm": True, "biases": biases_of(settings), **_qwen_window(settings)}
  return llama_like({"head_dim": 128, **settings}, tied=False, **more)


def _write_qwen(config: DecoderConfig) -> dict[str, Any]:
  used = {"use_sliding_window": config.sliding_window is not None}
  biased = {"attention_bias": "attention_out" in config.biases} if config.qk_norm else {}
  return write_llama_like(config, **used, **written_window(config), **biased)


FAMILIES = (
  decoder_family("llama", "LlamaForCausalLM", LLAMA_NAMES, _read_llama, _write_llama),
  decoder_family("mistral", "MistralForCausalLM", LLAMA_NAMES, _read_mistral, _write_mistral),
  decoder_family("qwen2", "Qwen2ForCausalLM", LLAMA_NAMES, _read_qwen2, _write_qwen),
  decoder_family("qwen3", "Qwen3ForCausalLM", _QWEN3, _read_qwen3, _write_qwen),
)
