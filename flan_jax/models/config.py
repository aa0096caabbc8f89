"""Shapes and numerics of the two model families, as frozen dataclasses."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flan_jax.errors import ConfigError, nearest

REMAT_POLICIES = ("none", "full", "dots")
ACTIVATIONS = ("gelu", "gelu_exact", "relu", "silu")
DTYPES = ("float32", "bfloat16", "float16")
NORMS = ("rms", "rms_plus_one", "layer")
BLOCKS = ("sequential", "parallel", "parallel_shared_norm")
BIASES = ("query_key_value", "attention_out", "mlp", "logits")
ROPE_SCALINGS = ("linear", "llama3")
ATTENTIONS = ("xla", "splash", "flash", "cudnn")
KERNEL_PLATFORMS = {"splash": "tpu", "flash": "gpu", "cudnn": "gpu"}
"""Of each kernel for attention, the platform whose devices have it."""


@dataclass(frozen=True)
class RopeScaling:
  """Slower rotary frequencies, for texts longer than those of pretraining.

  Args:
    kind: "linear": all are divided by `factor` (arXiv 2306.15595); "llama3": those whose wavelength is
      more than original_length / low_frequency_factor are, those with less than original_length /
      high_frequency_factor are kept, and between them goes a ramp (Llama 3.1's model card).
    original_length: tokens of a text in pretraining ("llama3").
  """

  kind: str
  factor: float
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: int = 8192

  def __post_init__(self) -> None:
    _choose("rope_scaling.kind", self.kind, ROPE_SCALINGS)
    if not self.factor >= 1:
      raise ConfigError(f"rope_scaling.factor={self.factor} must be 1 or more.")
    if not 0 < self.low_frequency_factor < self.high_frequency_factor:
      raise ConfigError(
        f"rope_scaling: low_frequency_factor={self.low_frequency_factor} must be above 0 and below "
        f"high_frequency_factor={self.high_frequency_factor}."
      )


@dataclass(frozen=True)
class DecoderConfig:
  """A decoder. As it stands: rotary positions, grouped-query attention, RMSNorm and SwiGLU, the shape of
  LLaMA; the switches make it Qwen, Gemma, GPT-2, GPT-J or GPT-NeoX.

  Args:
    num_kv_heads: key and value heads; each serves `num_heads / num_kv_heads` query heads.
    mlp_activations: one activation, or an activation and "linear" for a gated layer.
    norm: "rms"; "rms_plus_one", whose factor is 1 + scale; "layer", with mean and bias.
    biases: where products with weights have one, of "query_key_value", "attention_out", "mlp", "logits".
    block: "sequential": attention, then the feed-forward layer on its result; "parallel": both on what
      the layer is given, each behind a norm of its own; "parallel_shared_norm": behind one.
    post_norms: what attention and feed-forward layer give is normed before it is added.
    qk_norm: queries and keys are normed, each head for itself, before they are turned.
    attention_scale: of the scores; None: head_dim ** -0.5.
    attention_softcap, logit_softcap: x becomes cap * tanh(x / cap), for scores and logits.
    embedding_scale: factor of the embeddings.
    learned_positions: rows of a table of positions that is added to the embeddings; None: positions are
      rotary.
    rotary_dim: the first dimensions of each head that are turned; None: all.
    rope_theta, rope_scaling: of the rotary frequencies.
    sliding_window: a token sees so many, itself counted; None: all before it.
    window_pattern: which layers have the window, repeated over the layers: (True, False) is every
      other one, the first among them.
    local_rope_theta: of the layers with a window, without scaling; None: as the others.
    context_length: tokens of the longest text that it was trained for. It bounds nothing here, and is told to
      others when the model is written for them.
    dtype: of activations and matrix products; norms, scores and logits are float32 always.
    param_dtype: of the parameters that `init` makes.
    scan_layers: run the layers as one loop (compiles once a layer) or unrolled. The parameters are
      stacked either way and the numbers are the same.
    remat: what the backward pass computes again: "none"; "full", everything but each layer's
      input; "dots", everything but products with weights and attention.
    dropout_rate: on the embeddings and on what each layer adds; active where a key is given.
    attention: "xla"; or a kernel that makes no array of scores: "splash" for TPUs, "flash" and "cudnn" for GPUs,
      in bfloat16 or float16. Splash and flash compute whole rows under the model's own mask, and pass over
      what packing hides; cuDNN computes under every mask of booleans. What they cannot, and all that goes through a
      cache, is left to XLA.
  """

  vocab_size: int
  emb_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-5
  tied_embeddings: bool = True
  mlp_activations: tuple[str, ...] = ("silu", "linear")
  norm: str = "rms"
  biases: tuple[str, ...] = ()
  block: str = "sequential"
  post_norms: bool = False
  qk_norm: bool = False
  attention_scale: float | None = None
  attention_softcap: float | None = None
  logit_softcap: float | None = None
  embedding_scale: float = 1.0
  learned_positions: int | None = None
  rotary_dim: int | None = None
  rope_scaling: RopeScaling | Mapping[str, Any] | None = None
  sliding_window: int | None = None
  window_pattern: tuple[bool, ...] = (True,)
  local_rope_theta: float | None = None
  context_length: int | None = None
  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_layers: bool = True
  remat: str = "none"
  dropout_rate: float = 0.0
  attention: str = "xla"

  def __post_init__(self) -> None:
    for name in ("mlp_activations", "biases", "window_pattern"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if isinstance(self.rope_scaling, Mapping):
      object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
    _check(self)
    _choose("norm", self.norm, NORMS)
    _choose("block", self.block, BLOCKS)
    for bias in self.biases:
      _choose("biases", bias, BIASES)
    if self.num_heads % self.num_kv_heads:
      raise ConfigError(
        f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}."
      )
    turned = self.head_dim if self.rotary_dim is None else self.rotary_dim
    if turned % 2 or not 0 < turned <= self.head_dim:
      raise ConfigError(
        f"{turned} dimensions of each head cannot be turned: rotary positions turn pairs, and "
        f"head_dim={self.head_dim}."
      )
    if self.sliding_window is not None and self.sliding_window < 1:
      raise ConfigError(f"sliding_window={self.sliding_window} must be 1 or more, or None.")
    if not self.window_pattern:
      raise ConfigError("window_pattern is empty: (True,) gives every layer the window.")
    if self.attention in ("splash", "flash") and len(set(self.windowed)) > 1:
      raise ConfigError(
        f"attention={self.attention!r} has one mask for all layers, and window_pattern gives some a window and some "
        "none: leave attention='xla', or set 'cudnn' on NVIDIA GPUs."
      )
    if self.attention == "cudnn" and self.attention_softcap is not None:
      raise ConfigError("attention='cudnn' knows no attention_softcap: leave attention='xla'.")

  @property
  def windowed(self) -> tuple[bool, ...]:
    """Whether each layer has the window."""
    if self.sliding_window is None:
      return (False,) * self.num_layers
    return tuple(self.window_pattern[i % len(self.window_pattern)] for i in range(self.num_layers))


@dataclass(frozen=True)
class EncoderDecoderConfig:
  """T5: 1.1 with `mlp_activations=("gelu", "linear")` and untied logits, 1.0 with `("relu",)` and
  tied logits, which divide the decoder's output by sqrt(emb_dim).

  Args:
    mlp_activations: one activation, or an activation and "linear" for a gated layer.
    scaled_outputs: the decoder's output is divided by sqrt(emb_dim) before the logits; None: where
      embeddings are tied.
    relative_buckets: rows of each stack's table of relative positions; 4 or more.
    relative_max_distance: every distance from here on shares the last bucket.
    dropout_rate: on embeddings, attention weights, the feed-forward layer, what each layer adds,
      and each stack's output; active where a key is given.
    attention: "xla", or "flash" or "cudnn" for GPUs; see `DecoderConfig`. cuDNN drops no attention weights, and adds
      the relative positions to the scores in `dtype`.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_dim: int
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  tied_embeddings: bool = False
  scaled_outputs: bool | None = None
  relative_buckets: int = 32
  relative_max_distance: int = 128
  norm_eps: float = 1e-6
  dropout_rate: float = 0.0
  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_layers: bool = True
  remat: str = "none"
  attention: str = "xla"

  def __post_init__(self) -> None:
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    if self.scaled_outputs is None:
      object.__setattr__(self, "scaled_outputs", self.tied_embeddings)
    _check(self)
    if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 2:
      raise ConfigError(
        f"relative_buckets={self.relative_buckets} must be 4 or more, and relative_max_distance="
        f"{self.relative_max_distance} larger than half of it: that many distances have buckets of their own."
      )
    if self.attention == "splash":
      raise ConfigError(
        "attention='splash' takes no bias, which T5's relative positions are: leave attention='xla', or set "
        "'flash' on GPUs."
      )
    if self.attention == "cudnn" and self.dropout_rate:
      raise ConfigError(
        f"attention='cudnn' drops no attention weights, and dropout_rate={self.dropout_rate} of T5 drops some: set "
        "attention='flash' or 'xla', or dropout_rate=0.0."
      )


@dataclass(frozen=True)
class LoraConfig:
  """Adapters: what is adapted, and how much. See `flan_jax.training.lora`.

  Args:
    rank: r, the columns of A and rows of B.
    alpha: of the scale alpha / rank.
    dropout: on the input of A; the frozen product sees the whole input.
    rank_stabilised: the scale is alpha / sqrt(rank), which does not shrink what high ranks learn.
    patterns: of the kernels that are adapted, such as "*attention*kernel"; see
      `flan_jax.training.parameter_patterns`.
    magnitudes: DoRA: the norms of the columns are trained apart.
  """

  rank: int
  alpha: float
  dropout: float
  rank_stabilised: bool
  patterns: tuple[str, ...]
  magnitudes: bool = False

  def __post_init__(self) -> None:
    object.__setattr__(self, "patterns", tuple(self.patterns))
    if self.rank < 1:
      raise ConfigError(f"lora.rank={self.rank} must be 1 or more.")
    if not 0 < self.alpha < math.inf:
      raise ConfigError(f"lora.alpha={self.alpha} must be above 0.")
    if not 0 <= self.dropout < 1:
      raise ConfigError(f"lora.dropout={self.dropout} is not in [0, 1).")
    if not self.patterns:
      raise ConfigError("lora.patterns is empty: name kernels, such as '*attention*kernel'.")

  @property
  def scale(self) -> float:
    """s, the factor of A B."""
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


ModelConfig = DecoderConfig | EncoderDecoderConfig


def described(config: ModelConfig) -> str:
  """What of it is not the default, as one line: runs stay the same runs when a switch joins the config."""
  values = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != field.default
  }
  return (
    f"{type(config).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
  )


def _check(config: ModelConfig) -> None:
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.type is int and (not isinstance(value, int) or value < 1):
      raise ConfigError(f"{field.name}={value!r} of the model must be a positive whole number.")
  _choose("remat", config.remat, REMAT_POLICIES)
  _choose("attention", config.attention, ATTENTIONS)
  if config.attention in _HEADS:
    _check_kernel(config)
  _choose("dtype", config.dtype, DTYPES)
  _choose("param_dtype", config.param_dtype, DTYPES)
  if not 0.0 <= config.dropout_rate < 1.0:
    raise ConfigError(f"dropout_rate={config.dropout_rate} is not in [0, 1).")
  first, *rest = config.mlp_activations or ("",)
  _choose("mlp_activations", first, ACTIVATIONS)
  if rest not in ([], ["linear"]):
    raise ConfigError(
      f"mlp_activations={config.mlp_activations} is neither one activation nor an activation and "
      "'linear'."
    )


_HEADS = {"flash": (16, 32, 64, 128), "cudnn": tuple(range(8, 257, 8))}


def _check_kernel(config: ModelConfig) -> None:
  kernel, sizes = config.attention, _HEADS[config.attention]
  if config.dtype == "float32":
    raise ConfigError(
      f"attention={kernel!r} computes in bfloat16 or float16, and dtype is 'float32': set dtype='bfloat16', or leave "
      "attention='xla'."
    )
  if config.head_dim not in sizes:
    raise ConfigError(
      f"attention={kernel!r} takes heads of {sizes[0]}, {sizes[1]}, ... {sizes[-1]} numbers, and "
      f"head_dim={config.head_dim}: leave attention='xla'{', or set cudnn' if kernel == 'flash' else ''}."
    )


def _choose(setting: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    close = nearest(str(value), known, count=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{setting}={value!r} is not one of {', '.join(known)}.{hint}")
