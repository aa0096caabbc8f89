"""Shapes and numerics of the two model families, as frozen dataclasses."""

import dataclasses
from dataclasses import dataclass

from flan_jax.errors import ConfigError, nearest

REMAT_POLICIES = ("none", "full", "dots")
ACTIVATIONS = ("gelu", "relu", "silu")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class DecoderConfig:
  """A decoder with rotary positions, grouped-query attention, RMSNorm and SwiGLU.

  Args:
    num_kv_heads: key and value heads; each serves `num_heads / num_kv_heads` query heads.
    dtype: of activations and matrix products; norms, scores and logits are float32 always.
    param_dtype: of the parameters that `init` makes.
    scan_layers: run the layers as one loop (compiles once a layer) or unrolled. The parameters are
      stacked either way and the numbers are the same.
    remat: what the backward pass computes again: "none"; "full", everything but each layer's
      input; "dots", everything but products with weights.
    dropout_rate: on the embeddings and on what each layer adds; active where a key is given.
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
  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_layers: bool = True
  remat: str = "none"
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    _check(self)
    if self.num_heads % self.num_kv_heads:
      raise ConfigError(
        f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}."
      )
    if self.head_dim % 2:
      raise ConfigError(f"head_dim={self.head_dim} is odd, and rotary positions turn pairs.")


@dataclass(frozen=True)
class EncoderDecoderConfig:
  """T5: 1.1 with `mlp_activations=("gelu", "linear")` and untied logits, 1.0 with `("relu",)` and
  tied logits, which divide the decoder's output by sqrt(emb_dim).

  Args:
    mlp_activations: one activation, or an activation and "linear" for a gated layer.
    relative_buckets: rows of each stack's table of relative positions; 4 or more.
    relative_max_distance: every distance from here on shares the last bucket.
    dropout_rate: on embeddings, attention weights, the feed-forward layer, what each layer adds,
      and each stack's output; active where a key is given.
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
  relative_buckets: int = 32
  relative_max_distance: int = 128
  norm_eps: float = 1e-6
  dropout_rate: float = 0.0
  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_layers: bool = True
  remat: str = "none"

  def __post_init__(self) -> None:
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    _check(self)
    first, *rest = self.mlp_activations or ("",)
    _choose("mlp_activations", first, ACTIVATIONS)
    if rest not in ([], ["linear"]):
      raise ConfigError(
        f"mlp_activations={self.mlp_activations} is neither one activation nor an activation and"
        " 'linear'."
      )
    if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 2:
      raise ConfigError(
        f"relative_buckets={self.relative_buckets} must be 4 or more, and relative_max_distance="
        f"{self.relative_max_distance} larger than half of it: that many distances have buckets of their own."
      )


ModelConfig = DecoderConfig | EncoderDecoderConfig


def _check(config: ModelConfig) -> None:
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.type is int and (not isinstance(value, int) or value < 1):
      raise ConfigError(f"{field.name}={value!r} of the model must be a positive whole number.")
  _choose("remat", config.remat, REMAT_POLICIES)
  _choose("dtype", config.dtype, DTYPES)
  _choose("param_dtype", config.param_dtype, DTYPES)
  if not 0.0 <= config.dropout_rate < 1.0:
    raise ConfigError(f"dropout_rate={config.dropout_rate} is not in [0, 1).")


def _choose(setting: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    close = nearest(str(value), known, count=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{setting}={value!r} is not one of {', '.join(known)}.{hint}")
