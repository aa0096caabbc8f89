"""The families of models that Hugging Face folders hold: their settings, and the names of their tensors.

Each family says once what is called what; the tables are read in both directions. In a name, `{}` stands
for the number of the layer, and several parameters of ours may be parts of one tensor of theirs.
"""

import dataclasses
from typing import Any

from flan_jax.checkpoints.families import gemma, gpt, llama, t5
from flan_jax.checkpoints.families.family import Family, Json
from flan_jax.errors import CheckpointError, ConfigError, nearest
from flan_jax.models import DecoderConfig, ModelConfig

FAMILIES: dict[str, Family] = {
  family.model_type: family
  for family in (*llama.FAMILIES, *gemma.FAMILIES, *gpt.FAMILIES, *t5.FAMILIES)
}


def family_of(settings: Json) -> Family:
  """The family of a `config.json`.

  Raises:
    CheckpointError: it is of none; the nearest one is named.
  """
  kind = settings.get("model_type")
  if isinstance(kind, str) and kind in FAMILIES:
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
    "dropout_rate": 0.0,
    "dtype": "float32",
    "param_dtype": "float32",
    "remat": "none",
    "scan_layers": True,
  }
  if isinstance(config, DecoderConfig):
    same["context_length"] = None
  return dataclasses.replace(config, **same)
