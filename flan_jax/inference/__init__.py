"""Decoding with an explicit key-value cache."""

from flan_jax.inference.decoding import Choose, DecodingState, advance, greedy, run, start
from flan_jax.inference.generation import generate

__all__ = ["Choose", "DecodingState", "advance", "generate", "greedy", "run", "start"]
