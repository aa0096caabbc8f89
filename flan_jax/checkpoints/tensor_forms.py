"""How a tensor of somebody else holds what a parameter of ours holds. Both ways, for NumPy and JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flan_jax.models import DecoderConfig, ModelConfig

Array = Any  # of NumPy or JAX


class TensorForm(Protocol):
  """One way to hold it. `ours(theirs([x])) == x`, and the other way round."""

  def ours(self, tensor: Array, config: ModelConfig) -> Array:
    """The parameter that is in a tensor."""

  def theirs(self, parts: Sequence[Array], config: ModelConfig) -> Array:
    """The tensor of all the parameters that are in it, in the order of the table."""


@dataclass(frozen=True)
class Same:
  """As ours is."""

  def ours(self, tensor: Array, config: ModelConfig) -> Array:
    return tensor

  def theirs(self, parts: Sequence[Array], config: ModelConfig) -> Array:
    return parts[0]


@dataclass(frozen=True)
class Transposed:
  """[out, in], as PyTorch has it; ours is [in, out]."""

  def ours(self, tensor: Array, config: ModelConfig) -> Array:
    return tensor.T

  def theirs(self, parts: Sequence[Array], config: ModelConfig) -> Array:
    return parts[0].T


@dataclass(frozen=True)
class OneMore:
  """The factor of a norm, where ours is what is added to 1."""

  def ours(self, tensor: Array, config: ModelConfig) -> Array:
    return tensor - np.ones((), tensor.dtype)

  def theirs(self, parts: Sequence[Array], config: ModelConfig) -> Array:
    return parts[0] + np.ones((), parts[0].dtype)


@dataclass(frozen=True)
class Thirds:
  """Query, key and value beside each other: [in, 3 out], or [3 out]."""

  part: int

  def ours(self, tensor: Array, config: ModelConfig) -> Array:
    size = tensor.shape[-1] // 3
    return tensor[..., self.part * size : (self.part + 1) * size]

  def theirs(self, parts: Sequence[Array], config: ModelConfig) -> Array:
    return np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class ByHead:
  """Query, key and value of a head after each other: [heads 3 head_dim, in], or without `in`."""

  part: int

  def ours(self, tensor: Array, config: ModelConfig) -> Array:
    size, rest = config.head_dim, tensor.shape[1:]
    return tensor.reshape(-1, 3, size, *rest)[:, self.part].reshape(-1, *rest).T

  def theirs(self, parts: Sequence[Array], config: ModelConfig) -> Array:
    each = [part.T.reshape(config.num_heads, config.head_dim, *part.T.shape[1:]) for part in parts]
    return np.stack(each, axis=1).reshape(-1, *each[0].shape[2:])


@dataclass(frozen=True)
class Neighbours:
  """A transposed kernel whose rotary pairs are neighbours, (2i, 2i + 1); ours are (i, i + R/2)."""

  heads: str

  def ours(self, tensor: Array, config: ModelConfig) -> Array:
    return tensor[self._order(config)].T

  def theirs(self, parts: Sequence[Array], config: ModelConfig) -> Array:
    return parts[0].T[np.argsort(self._order(config))]

  def _order(self, config: ModelConfig) -> np.ndarray:
    """Of each of our columns, which row of theirs it is."""
    assert isinstance(config, DecoderConfig)
    turned = config.head_dim if config.rotary_dim is None else config.rotary_dim
    head = np.arange(config.head_dim)
    head[:turned] = np.arange(turned).reshape(-1, 2).T.reshape(-1)
    starts = np.arange(getattr(config, self.heads)) * config.head_dim
    return (starts[:, None] + head[None, :]).reshape(-1)


SAME, TRANSPOSED = Same(), Transposed()
