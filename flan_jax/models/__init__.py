"""Language models: one encoder-decoder (T5), one decoder (LLaMA's shape), one face for both."""

from flan_jax.models.config import DecoderConfig, EncoderDecoderConfig, ModelConfig
from flan_jax.models.embedding_growth import InitialRow, grow_embeddings
from flan_jax.models.language_model import (
  Batch,
  Cache,
  LanguageModel,
  Params,
  build_model,
  parameter_count,
)

__all__ = [
  "Batch",
  "Cache",
  "DecoderConfig",
  "EncoderDecoderConfig",
  "InitialRow",
  "LanguageModel",
  "ModelConfig",
  "Params",
  "build_model",
  "grow_embeddings",
  "parameter_count",
]
