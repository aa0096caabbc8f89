"""Instruction tuning of encoder-decoder and decoder language models in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from flan_jax.inference.loaded import LoadedModel

__version__ = "0.1.0"


def load(source: Any, dtype: str = "float32", **settings: Any) -> "LoadedModel":
  """Opens a published model, to be asked from Python: see `flan_jax.inference.loaded.load`."""
  from flan_jax.inference.loaded import load

  return load(source, dtype, **settings)
