"""Checkpoints: our own runs, saved by Orbax, and other people's models."""

from flan_jax.checkpoints.kept import Keep
from flan_jax.checkpoints.saved import Checkpoints, checkpoint_table

__all__ = ["Checkpoints", "Keep", "checkpoint_table"]
