"""The families of models that Hugging Face folders hold: their settings, and the names of their tensors.

Each family says once what is called what; the tables are read in both directions. In a name, `{}` stands
for the number of the layer, and several parameters of ours may be parts of one tensor of theirs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flan_jax.checkpoints.tensor_forms import (
  SAME,
  TRANSPOSED,
  ByHead,
  Neighbours,
  TensorForm,
  Thirds,
)
from flan_jax.errors import CheckpointError, ConfigError, nearest
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, ModelConfig, RopeScaling

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
  """How a family is written.

  Args:
    model_type, architecture: as `config.json` has them.
    names: of a configuration: path of our parameter -> name of their tensor.
    read: from their settings to ours.
    write: from ours to theirs; need not check that it can.
    base: what stands before the names of a folder that was saved with the logits, and may be missing.
    forms: how a tensor holds what our parameter holds, by path; a kernel is transposed else.
    ignored: patterns of tensors that carry nothing.
  """

  model_type: str
  architecture: str
  names: Callable[[Any], Mapping[str, str]]
  read: Callable[[Json], ModelConfig]
  write: Callable[[Any], dict[str, Any]]
  base: str = "model."
  forms: Mapping[str, TensorForm] = field(default_factory=dict)
  kernels: TensorForm = TRANSPOSED
  ignored: tuple[str, ...] = ()

  def form(self, path: str) -> TensorForm:
    """How their tensor holds the parameter at this path."""
    return self.forms.get(path, self.kernels if path.endswith("/kernel") else SAME)


def family_of(settings: Json) -> Family:
  """The family of a `config.json`.

  Raises:
    CheckpointError: it is of none; the nearest one is named.
  """
  kind = settings.get("model_type")
  if kind in FAMILIES:
    return FAMILIES[kind]
  close = nearest(str(kind), FAMILIES, count=2)
  hint = f"nearest: {' or '.join(close)}" if close else f"known: {', '.join(sorted(FAMILIES))}"
  raise CheckpointError(f"models of type {kind!r} are not read; {hint}.")


def family_for(config: ModelConfig) -> Family:
  """The first family that can say everything about a model.

  Raises:
    ConfigError: there is none.
  """
  for family in FAMILIES.values():
    if _says(family, config):
      return family
  raise ConfigError(
    f"no family of Hugging Face's has a model with these settings, so it cannot be written as one: {config}"
  )


def _says(family: Family, config: ModelConfig) -> bool:
  try:
    return shape_of(family.read(family.write(config))) == shape_of(config)
  except (CheckpointError, ConfigError, LookupError, TypeError, AttributeError):
    return False


def shape_of(config: ModelConfig) -> ModelConfig:
  """The configuration without what says nothing about the parameters and what they mean."""
  same: dict[str, Any] = {
    "dtype": "float32",
    "param_dtype": "float32",
    "remat": "none",
    "scan_layers": True,
  }
  return dataclasses.replace(config, dropout_rate=0.0, **same)


# --- settings -------------------------------------------------------------------------------------

_ACTIVATIONS = {
  "gelu": "gelu_exact",
  "gelu_fast": "gelu",
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
}
_THEIR_ACTIVATIONS = {"gelu_exact": "gelu", "gelu": "gelu_new", "relu": "relu", "silu": "silu"}


def _activation(name: str) -> str:
  if name not in _ACTIVATIONS:
    close = ", ".join(nearest(name, _ACTIVATIONS) or sorted(_ACTIVATIONS))
    raise CheckpointError(f"the activation {name!r} is not known; known: {close}.")
  return _ACTIVATIONS[name]


def _refuse(settings: Json, **unless: Any) -> None:
  """Settings that would have to be obeyed and are not."""
  for name, value in unless.items():
    if settings.get(name, value) not in (value, None):
      raise CheckpointError(f"config.json: {name}={settings[name]!r} is not supported.")


def _rope(settings: Json, theta: float, layers: str = "") -> tuple[float, RopeScaling | None]:
  """Base and scaling, as config.json of transformers 5 or of earlier ones has them.

  Args:
    theta: where none is given.
    layers: the kind of layers, where they differ.
  """
  written = settings.get("rope_parameters") or {}
  written = written.get(layers) or written
  scaling = written or settings.get("rope_scaling") or {}
  theta = float(written.get("rope_theta") or settings.get("rope_theta") or theta)
  kind = scaling.get("rope_type", scaling.get("type", "default"))
  if kind == "default":
    return theta, None
  if kind == "linear":
    return theta, RopeScaling("linear", float(scaling["factor"]))
  if kind != "llama3":
    raise CheckpointError(
      f"config.json: rotary scaling of type {kind!r} is not supported; 'linear' and 'llama3' are."
    )
  return theta, RopeScaling(
    "llama3",
    float(scaling["factor"]),
    float(scaling["low_freq_factor"]),
    float(scaling["high_freq_factor"]),
    int(scaling["original_max_position_embeddings"]),
  )


def _written_rope(theta: float, scaling: Any) -> dict[str, Any]:
  if scaling is None:
    return {"rope_theta": theta, "rope_type": "default"}
  written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
  if scaling.kind == "llama3":
    written |= {
      "low_freq_factor": scaling.low_frequency_factor,
      "high_freq_factor": scaling.high_frequency_factor,
      "original_max_position_embeddings": scaling.original_length,
    }
  return {"rope_theta": theta, **written}


def _ropes(config: DecoderConfig) -> dict[str, Any]:
  """In the words of transformers 5 and of the versions before it."""
  written = _written_rope(config.rope_theta, config.rope_scaling)
  old = {name: value for name, value in written.items() if name != "rope_theta"}
  return {
    "rope_parameters": written,
    "rope_theta": config.rope_theta,
    "rope_scaling": old if config.rope_scaling else None,
  }


def _window(settings: Json, usual: Callable[[int], bool]) -> dict[str, Any]:
  """The window and the layers that have it.

  Args:
    usual: whether a layer has it, where config.json lists no layers.
  """
  layers = settings["num_hidden_layers"]
  kinds = settings.get("layer_types")
  if kinds is None:
    windowed = [usual(i) for i in range(layers)]
  else:
    windowed = [kind == "sliding_attention" for kind in kinds[:layers]]
  window = settings.get("sliding_window")
  if window is None or not any(windowed):
    return {}
  return {"sliding_window": window, "window_pattern": _period(windowed)}


def _period(values: Sequence[bool]) -> tuple[bool, ...]:
  """The shortest beginning that gives the whole when it is repeated."""
  return next(
    tuple(values[:size])
    for size in range(1, len(values) + 1)
    if all(value == values[i % size] for i, value in enumerate(values))
  )


def _written_window(config: DecoderConfig) -> dict[str, Any]:
  kinds = ["sliding_attention" if has else "full_attention" for has in config.windowed]
  return {"sliding_window": config.sliding_window, "layer_types": kinds}


def _llama_like(settings: Json, tied: bool, theta: float = 10_000.0, **more: Any) -> DecoderConfig:
  """What LLaMA and its kin share.

  Args:
    tied: where config.json does not say.
    more: settings of ours that are not LLaMA's.
  """
  heads, width = settings["num_attention_heads"], settings["hidden_size"]
  rope_theta, rope_scaling = _rope(settings, theta)
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
  }
  act = settings.get("hidden_activation") or settings.get("hidden_act") or "silu"
  return DecoderConfig(**(plain | {"mlp_activations": (_activation(act), "linear")} | more))


def _write_llama_like(config: DecoderConfig, **more: Any) -> dict[str, Any]:
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
    "hidden_act": _THEIR_ACTIVATIONS[c.mlp_activations[0]],
    **_ropes(c),
    **more,
  }


def _biases(settings: Json) -> tuple[str, ...]:
  attention = ("query_key_value", "attention_out") if settings.get("attention_bias") else ()
  return attention + (("mlp",) if settings.get("mlp_bias") else ())


def _read_llama(settings: Json) -> DecoderConfig:
  return _llama_like(settings, tied=False, biases=_biases(settings))


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
  biases = {"attention_bias": "attention_out" in config.biases, "mlp_bias": "mlp" in config.biases}
  return _write_llama_like(config, **biases)


def _read_mistral(settings: Json) -> DecoderConfig:
  return _llama_like(settings, tied=False, **_window(settings, lambda i: True))


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
  return _write_llama_like(config, sliding_window=config.sliding_window)


def _qwen_window(settings: Json) -> dict[str, Any]:
  first = settings.get("max_window_layers", 28)
  used = settings.get("use_sliding_window", False)
  return _window(settings, lambda i: i >= first) if used else {}


def _read_qwen2(settings: Json) -> DecoderConfig:
  more = _qwen_window(settings)
  return _llama_like(settings, tied=False, biases=("query_key_value",), **more)


def _read_qwen3(settings: Json) -> DecoderConfig:
  more: dict[str, Any] = {"qk_norm": True, "biases": _biases(settings), **_qwen_window(settings)}
  return _llama_like({"head_dim": 128, **settings}, tied=False, **more)


def _write_qwen(config: DecoderConfig) -> dict[str, Any]:
  used = {"use_sliding_window": config.sliding_window is not None}
  biased = {"attention_bias": "attention_out" in config.biases} if config.qk_norm else {}
  return _write_llama_like(config, **used, **_written_window(config), **biased)


def _gemma_like(settings: Json, **more: Any) -> DecoderConfig:
  _refuse(settings, use_bidirectional_attention=False)
  with_defaults = {"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, **settings}
  gemma: dict[str, Any] = {
    "norm": "rms_plus_one",
    "embedding_scale": math.sqrt(settings["hidden_size"]),
    "biases": _biases(settings),
  }
  return _llama_like(with_defaults, tied=True, **(gemma | more))


def _write_gemma_like(config: DecoderConfig, **more: Any) -> dict[str, Any]:
  act = {"gelu": "gelu_pytorch_tanh"}.get(
    config.mlp_activations[0], _THEIR_ACTIVATIONS[config.mlp_activations[0]]
  )
  named = {"hidden_act": act, "hidden_activation": act, "attention_bias": bool(config.biases)}
  return _write_llama_like(config, **(named | more))


def _gemma_scale(settings: Json) -> float:
  return settings.get("query_pre_attn_scalar", 256) ** -0.5


def _read_gemma2(settings: Json) -> DecoderConfig:
  return _gemma_like(
    settings,
    post_norms=True,
    attention_scale=_gemma_scale(settings),
    attention_softcap=settings.get("attn_logit_softcapping", 50.0),
    logit_softcap=settings.get("final_logit_softcapping", 30.0),
    **_window({"sliding_window": 4096, **settings}, lambda i: i % 2 == 0),
  )


def _read_gemma3(settings: Json) -> DecoderConfig:
  every = settings.get("sliding_window_pattern") or settings.get("_sliding_window_pattern") or 6
  theta, scaling = _rope(settings, 1_000_000.0, "full_attention")
  nested = settings.get("rope_parameters") or {}
  local = (nested.get("sliding_attention") or {}).get("rope_theta")
  return _gemma_like(
    settings,
    post_norms=True,
    qk_norm=True,
    attention_scale=_gemma_scale(settings),
    attention_softcap=settings.get("attn_logit_softcapping"),
    logit_softcap=settings.get("final_logit_softcapping"),
    rope_theta=theta,
    rope_scaling=scaling,
    local_rope_theta=float(local or settings.get("rope_local_base_freq") or 10_000.0),
    **_window({"sliding_window": 4096, **settings}, lambda i: (i + 1) % every != 0),
  )


def _write_gemma2(config: DecoderConfig) -> dict[str, Any]:
  c = config
  more: dict[str, Any] = {
    "query_pre_attn_scalar": _whole((c.attention_scale or 0.0625) ** -2),
    "attn_logit_softcapping": c.attention_softcap,
    "final_logit_softcapping": c.logit_softcap,
    **_written_window(c),
  }
  if c.local_rope_theta is not None:
    more["rope_local_base_freq"] = c.local_rope_theta
    more["rope_parameters"] = {
      "full_attention": _written_rope(c.rope_theta, c.rope_scaling),
      "sliding_attention": _written_rope(c.local_rope_theta, None),
    }
  return _write_gemma_like(c, **more)


def _whole(number: float) -> int | float:
  return round(number) if math.isclose(number, round(number), rel_tol=1e-9) else number


def _read_gpt2(settings: Json) -> DecoderConfig:
  _refuse(settings, add_cross_attention=False, scale_attn_by_inverse_layer_idx=False)
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
    tied_embeddings=settings.get("tie_word_embeddings", True),
    mlp_activations=(_activation(settings.get("activation_function", "gelu_new")),),
    biases=("query_key_value", "attention_out", "mlp"),
    learned_positions=settings.get("n_positions", 1024),
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
    "activation_function": _THEIR_ACTIVATIONS[c.mlp_activations[0]],
  }


def _read_gptj(settings: Json) -> DecoderConfig:
  _refuse(settings, tie_word_embeddings=False)
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
    tied_embeddings=False,
    mlp_activations=(_activation(settings.get("activation_function", "gelu_new")),),
    biases=("mlp", "logits"),
    block="parallel_shared_norm",
    rotary_dim=settings.get("rotary_dim") or width // heads,
  )


def _write_gptj(config: DecoderConfig) -> dict[str, Any]:
  rest = {"n_positions": 2048, "rotary_dim": config.rotary_dim, "tie_word_embeddings": False}
  return {**_write_gpt(config), **rest}


def _read_neox(settings: Json) -> DecoderConfig:
  heads, width = settings["num_attention_heads"], settings["hidden_size"]
  nested = settings.get("rope_parameters") or {}
  share = nested.get("partial_rotary_factor", settings.get("rotary_pct", 0.25))
  theta, scaling = _rope(settings, settings.get("rotary_emb_base", 10_000.0))
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
    mlp_activations=(_activation(settings.get("hidden_act", "gelu")),),
    biases=(*attention, "mlp"),
    block="parallel" if settings.get("use_parallel_residual", True) else "sequential",
    rotary_dim=int(width // heads * share),
    rope_theta=theta,
    rope_scaling=scaling,
  )


def _write_neox(config: DecoderConfig) -> dict[str, Any]:
  c = config
  share = (c.rotary_dim or c.head_dim) / c.head_dim
  ropes = _ropes(c)
  ropes["rope_parameters"]["partial_rotary_factor"] = share
  return {
    "vocab_size": c.vocab_size,
    "hidden_size": c.emb_dim,
    "num_hidden_layers": c.num_layers,
    "num_attention_heads": c.num_heads,
    "intermediate_size": c.mlp_dim,
    "layer_norm_eps": c.norm_eps,
    "hidden_act": _THEIR_ACTIVATIONS[c.mlp_activations[0]],
    "tie_word_embeddings": c.tied_embeddings,
    "attention_bias": "attention_out" in c.biases,
    "use_parallel_residual": c.block == "parallel",
    "rotary_pct": share,
    "rotary_emb_base": c.rope_theta,
    **ropes,
  }


def _t5_reader(scaled: Callable[[Json], bool]) -> Callable[[Json], EncoderDecoderConfig]:
  def read(settings: Json) -> EncoderDecoderConfig:
    first, _, rest = settings.get("feed_forward_proj", "relu").rpartition("-")
    # transformers means the approximation where a gated layer says "gelu".
    act = "gelu" if (first, rest) == ("gated", "gelu") else _activation(rest)
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
    feed_forward = gate + _THEIR_ACTIVATIONS[c.mlp_activations[0]]
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


# --- names ----------------------------------------------------------------------------------------


def _layer_names(
  prefix: str, parts: Mapping[str, str], leaves: Mapping[str, str]
) -> dict[str, str]:
  """Every leaf ("kernel": "weight", ...) of every part of a layer."""
  return {
    f"layers/{ours}/{leaf}": f"{prefix}.{theirs}.{name}"
    for ours, theirs in parts.items()
    for leaf, name in leaves.items()
  }


_WEIGHT, _KERNEL = {"scale": "weight"}, {"kernel": "weight", "bias": "bias"}
_NORM = {"scale": "weight", "bias": "bias"}

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


def _llama_names(norms: Mapping[str, str]) -> dict[str, str]:
  return {
    **_LLAMA_ENDS,
    **_layer_names("model.layers.{}", _LLAMA_PRODUCTS, _KERNEL),
    **_layer_names("model.layers.{}", norms, _WEIGHT),
  }


_LLAMA = _llama_names({"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"})
_QK_NORMS = {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
_QWEN3 = {**_LLAMA, **_layer_names("model.layers.{}", _QK_NORMS, _WEIGHT)}
_GEMMA2 = _llama_names(
  {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
  }
)
_GEMMA3 = {**_GEMMA2, **_layer_names("model.layers.{}", _QK_NORMS, _WEIGHT)}

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
  **_layer_names(
    "transformer.h.{}",
    {
      "attention/query": "attn.c_attn",
      "attention/key": "attn.c_attn",
      "attention/value": "attn.c_attn",
      "attention/out": "attn.c_proj",
      "mlp/up": "mlp.c_fc",
      "mlp/down": "mlp.c_proj",
    },
    _KERNEL,
  ),
  **_layer_names("transformer.h.{}", {"attention_norm": "ln_1", "mlp_norm": "ln_2"}, _NORM),
}
_GPTJ = {
  **_GPT_ENDS,
  **_layer_names(
    "transformer.h.{}",
    {
      "attention/query": "attn.q_proj",
      "attention/key": "attn.k_proj",
      "attention/value": "attn.v_proj",
      "attention/out": "attn.out_proj",
      "mlp/up": "mlp.fc_in",
      "mlp/down": "mlp.fc_out",
    },
    _KERNEL,
  ),
  **_layer_names("transformer.h.{}", {"attention_norm": "ln_1"}, _NORM),
}
_NEOX = {
  "embed/embedding": "gpt_neox.embed_in.weight",
  "norm/scale": "gpt_neox.final_layer_norm.weight",
  "norm/bias": "gpt_neox.final_layer_norm.bias",
  "unembed/kernel": "embed_out.weight",
  **_layer_names(
    "gpt_neox.layers.{}",
    {
      "attention/query": "attention.query_key_value",
      "attention/key": "attention.query_key_value",
      "attention/value": "attention.query_key_value",
      "attention/out": "attention.dense",
      "mlp/up": "mlp.dense_h_to_4h",
      "mlp/down": "mlp.dense_4h_to_h",
    },
    _KERNEL,
  ),
  **_layer_names(
    "gpt_neox.layers.{}",
    {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    _NORM,
  ),
}


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
      **_layer_names(layer, products, {"kernel": "weight"}),
      **_layer_names(layer, norms, _WEIGHT),
    }
    names |= {f"{side}/{path}": name for path, name in stacked.items()}
    names[f"{side}/norm/scale"] = f"{side}.final_layer_norm.weight"
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names[f"{side}/relative_bias/embedding"] = bias
  return names


# --- families -------------------------------------------------------------------------------------


def _parts(form: Callable[[int], TensorForm]) -> dict[str, TensorForm]:
  """Query, key and value as parts of one tensor."""
  return {
    f"layers/attention/{name}/{leaf}": form(part)
    for part, name in enumerate(("query", "key", "value"))
    for leaf in ("kernel", "bias")
  }


_BUFFERS = ("*.attn.bias", "*.attention.bias", "*.masked_bias", "*.inv_freq")
_T5_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _decoder(
  kind: str,
  architecture: str,
  names: Mapping[str, str],
  read: Callable[[Json], ModelConfig],
  write: Callable[[Any], dict[str, Any]],
  base: str = "model.",
  **forms: Any,
) -> Family:
  return Family(kind, architecture, lambda _: names, read, write, base, ignored=_BUFFERS, **forms)


def _t5(kind: str, architecture: str, scaled: Callable[[Json], bool]) -> Family:
  read = _t5_reader(scaled)
  return Family(kind, architecture, _t5_names, read, _write_t5, "", ignored=_T5_COPIES)


FAMILIES: dict[str, Family] = {
  family.model_type: family
  for family in (
    _decoder("llama", "LlamaForCausalLM", _LLAMA, _read_llama, _write_llama),
    _decoder("mistral", "MistralForCausalLM", _LLAMA, _read_mistral, _write_mistral),
    _decoder("qwen2", "Qwen2ForCausalLM", _LLAMA, _read_qwen2, _write_qwen),
    _decoder("qwen3", "Qwen3ForCausalLM", _QWEN3, _read_qwen3, _write_qwen),
    _decoder("gemma", "GemmaForCausalLM", _LLAMA, _gemma_like, _write_gemma_like),
    _decoder("gemma2", "Gemma2ForCausalLM", _GEMMA2, _read_gemma2, _write_gemma2),
    _decoder("gemma3_text", "Gemma3ForCausalLM", _GEMMA3, _read_gemma3, _write_gemma2),
    _decoder(
      "gpt2",
      "GPT2LMHeadModel",
      _GPT2,
      _read_gpt2,
      _write_gpt2,
      "transformer.",
      forms={**_parts(Thirds), "unembed/kernel": TRANSPOSED},
      kernels=SAME,
    ),
    _decoder(
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
    _decoder(
      "gpt_neox",
      "GPTNeoXForCausalLM",
      _NEOX,
      _read_neox,
      _write_neox,
      "gpt_neox.",
      forms=_parts(ByHead),
    ),
    _t5("t5", "T5ForConditionalGeneration", _t5_scales),
    _t5("mt5", "MT5ForConditionalGeneration", lambda settings: False),
  )
}
