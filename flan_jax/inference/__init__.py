"""Decoding with an explicit key-value cache."""

from flan_jax.inference.engine import FINISHES, Engine, Written
from flan_jax.inference.generation import generate
from flan_jax.inference.sampling import GREEDY, Sampling, Text
from flan_jax.inference.slots import Hook
from flan_jax.inference.texts import News, Texts

__all__ = [
  "FINISHES",
  "GREEDY",
  "Engine",
  "Hook",
  "News",
  "Sampling",
  "Text",
  "Texts",
  "Written",
  "generate",
]
