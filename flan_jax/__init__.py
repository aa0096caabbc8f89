"""Instruction tuning of encoder-decoder and decoder language models in JAX."""

__version__ = "0.1.0"
