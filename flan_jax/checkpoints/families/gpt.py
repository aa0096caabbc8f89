"""GPT-2, GPT-J and GPT-NeoX."""

import math
from collections.abc import Callable
from typing import Any

from flan_jax.checkpoints.families.family import (
  KERNEL,
  NORM,
  THEIR_ACTIVATIONS,
  Json,
  activation,
  decoder_family,
  layer_names,
  refuse,
  rope,
  written_length,
  written_ropes,
)
from flan_jax.checkpoints.tensor_forms import (
  SAME,
  TRANSPOSED,
  ByHead,
  Neighbours,
  TensorForm,
  Thirds,
)
from flan_jax.models import DecoderConfig

_GPT_ENDS = {
  "embed/embedding": "transformer.wte.weight",
  "norm/scale": "transformer.ln_f.weight",
  "norm/bias": "transformer.ln_f.bias",
  "unembed/kernel": "lm_head.weight",
  "unembed/bias": "lm_head.bias",
}
_GPT2 = {
  **_GPT_ENDS,
  "position_embed/embedding": "transformer.wpe.weight",
  **layer_names(
    "transformer.h.{}",
    {
      "attention/query": "attn.c_attn",
      "attention/key": "attn.c_attn",
      "attention/value": "attn.c_attn",
      "attention/out": "attn.c_proj",
      "mlp/up": "mlp.c_fc",
      "mlp/down": "mlp.c_proj",
    },
    KERNEL,
  ),
  **layer_names("transformer.h.{}", {"attention_norm": "ln_1", "mlp_norm": "ln_2"}, NORM),
}
_GPTJ = {
  **_GPT_ENDS,
  **layer_names(
    "transformer.h.{}",
    {
      "attention/query": "attn.q_proj",
      "attention/key": "attn.k_proj",
      "attention/value": "attn.v_proj",
      "attention/out": "attn.out_proj",
      "mlp/up": "mlp.fc_in",
      "mlp/down": "mlp.fc_out",
    },
    KERNEL,
  ),
  **layer_names("transformer.h.{}", {"attention_norm": "ln_1"}, NORM),
}
_NEOX = {
  "embed/embedding": "gpt_neox.embed_in.weight",
  "norm/scale": "gpt_neox.final_layer_norm.weight",
  "norm/bias": "gpt_neox.final_layer_norm.bias",
  "unembed/kernel": "embed_out.weight",
  **layer_names(
    "gpt_neox.layers.{}",
    {
      "attention/query": "attention.query_key_value",
      "attention/key": "attention.query_key_value",
      "attention/value": "attention.query_key_value",
      "attention/out": "attention.dense",
      "mlp/up": "mlp.dense_h_to_4h",
      "mlp/down": "mlp.dense_4h_to_h",
    },
    KERNEL,
  ),
  **layer_names(
    "gpt_neox.layers.{}",
    {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    NORM,
  ),
}


def _parts(form: Callable[[int], TensorForm]) -> dict[str, TensorForm]:
  """Query, key and value as parts of one tensor."""
  return {
    f"layers/attention/{name}/{leaf}": form(part)
    for part, name in enumerate(("query", "key", "value"))
    for leaf in ("kernel", "bias")
  }


def _gpt_like(settings: Json, **more: Any) -> DecoderConfig:
  """What GPT-2 and GPT-J share.

  Args:
    more: settings of ours that are of one of them.
  """
  heads, width = settings["n_head"], settings["n_embd"]
  return DecoderConfig(
    vocab_size=settings["vocab_size"],
    emb_dim=width,
    num_layers=settings["n_layer"],
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=width // heads,
    mlp_dim=settings.get("n_inner") or 4 * width,
    norm="layer",
    norm_eps=settings.get("layer_norm_epsilon", 1e-5),
    mlp_activations=(activation(settings.get("activation_function", "gelu_new")),),
    **more,
  )


def _read_gpt2(settings: Json) -> DecoderConfig:
  refuse(settings, add_cross_attention=False, scale_attn_by_inverse_layer_idx=False)
  length = settings.get("n_positions", 1024)
  return _gpt_like(
    settings,
    tied_embeddings=settings.get("tie_word_embeddings", True),
    biases=("query_key_value", "attention_out", "mlp"),
    learned_positions=length,
    context_length=length,
    attention_scale=None if settings.get("scale_attn_weights", True) else 1.0,
  )


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
  c = config
  return {
    **_write_gpt(c),
    "n_positions": c.learned_positions,
    "tie_word_embeddings": c.tied_embeddings,
    "scale_attn_weights": c.attention_scale is None,
  }


def _write_gpt(config: DecoderConfig) -> dict[str, Any]:
  c = config
  return {
    "vocab_size": c.vocab_size,
    "n_embd": c.emb_dim,
    "n_layer": c.num_layers,
    "n_head": c.num_heads,
    "n_inner": c.mlp_dim,
    "layer_norm_epsilon": c.norm_eps,
    "activation_function": THEIR_ACTIVATIONS[c.mlp_activations[0]],
  }


def _read_gptj(settings: Json) -> DecoderConfig:
  refuse(settings, tie_word_embeddings=False)
  return _gpt_like(
    settings,
    tied_embeddings=False,
    biases=("mlp", "logits"),
    block="parallel_shared_norm",
    rotary_dim=settings.get("rotary_dim") or settings["n_embd"] // settings["n_head"],
    context_length=settings.get("n_positions", 2048),
  )


def _write_gptj(config: DecoderConfig) -> dict[str, Any]:
  rest = {"rotary_dim": config.rotary_dim, "tie_word_embeddings": False}
  return {**_write_gpt(config), **written_length(config, "n_positions"), **rest}


def _read_neox(settings: Json) -> DecoderConfig:
  heads, width = settings["num_attention_heads"], settings["hidden_size"]
  nested = settings.get("rope_parameters") or {}
  share = nested.get("partial_rotary_factor", settings.get("rotary_pct", 0.25))
  theta, scaling = rope(settings, settings.get("rotary_emb_base", 10_000.0))
  attention = ("query_key_value", "attention_out") if settings.get("attention_bias", True) else ()
  return DecoderConfig(
    vocab_size=settings["vocab_size"],
    emb_dim=width,
    num_layers=settings["num_hidden_layers"],
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=width // heads,
    mlp_dim=settings["intermediate_size"],
    norm="layer",
    norm_eps=settings.get("layer_norm_eps", 1e-5),
    tied_embeddings=settings.get("tie_word_embeddings", False),
    mlp_activations=(activation(settings.get("hidden_act", "gelu")),),
    biases=(*attention, "mlp"),
    block="parallel" if settings.get("use_parallel_residual", True) else "sequential",
    rotary_dim=int(width // heads * share),
    rope_theta=theta,
    rope_scaling=scaling,
    context_length=settings.get("max_position_embeddings"),
  )


def _write_neox(config: DecoderConfig) -> dict[str, Any]:
  c = config
  turned = c.rotary_dim or c.head_dim
  share = turned / c.head_dim
  if int(c.head_dim * share) < turned:  # transformers rounds the product down
    share = math.nextafter(share, 1)
  ropes = written_ropes(c)
  ropes["rope_parameters"]["partial_rotary_factor"] = share
  return {
    "vocab_size": c.vocab_size,
    "hidden_size": c.emb_dim,
    "num_hidden_layers": c.num_layers,
    "num_attention_heads": c.num_heads,
    "intermediate_size": c.mlp_dim,
    "layer_norm_eps": c.norm_eps,
    "hidden_act": THEIR_ACTIVATIONS[c.mlp_activations[0]],
    "tie_word_embeddings": c.tied_embeddings,
    "attention_bias": "attention_out" in c.biases,
    "use_parallel_residual": c.block == "parallel",
    "rotary_pct": share,
    "rotary_emb_base": c.rope_theta,
    **written_length(c, "max_position_embeddings"),
    **ropes,
  }


FAMILIES = (
  decoder_family(
    "gpt2",
    "GPT2LMHeadModel",
    _GPT2,
    _read_gpt2,
    _write_gpt2,
    "transformer.",
    forms={**_parts(Thirds), "unembed/kernel": TRANSPOSED},
    kernels=SAME,
  ),
  decoder_family(
    "gptj",
    "GPTJForCausalLM",
    _GPTJ,
    _read_gptj,
    _write_gptj,
    "transformer.",
    forms={
      "layers/attention/query/kernel": Neighbours("num_heads"),
      "layers/attention/key/kernel": Neighbours("num_kv_heads"),
    },
  ),
  decoder_family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _NEOX,
    _read_neox,
    _write_neox,
    "gpt_neox.",
    forms=_parts(ByHead),
  ),
)
