"""Language models: one encoder-decoder (T5), one decoder (LLaMA and its kin), one face for both."""

from flan_jax.models.config import (
  DecoderConfig,
  EncoderDecoderConfig,
  LoraConfig,
  ModelConfig,
  RopeScaling,
  described,
)
from flan_jax.models.embedding_growth import InitialRow, grow_embeddings
from flan_jax.models.language_model import (
  Batch,
  Cache,
  LanguageModel,
  LMHead,
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
  "LMHead",
  "LanguageModel",
  "LoraConfig",
  "ModelConfig",
  "Params",
  "RopeScaling",
  "build_model",
  "described",
  "grow_embeddings",
  "parameter_count",
]
