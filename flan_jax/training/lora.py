"""LoRA: low-rank adapters beside frozen kernels (Hu et al., arXiv 2106.09685), and DoRA.

The adapters are a tree of their own. For the kernel W [in, out] at `.../query/kernel` it holds
`.../query/lora_a` [in, r] and `.../query/lora_b` [r, out], stacked as the kernel is.

  joined with the base    Dense computes x W + s dropout(x) A B, and no gradient of W is ever made
  merged into it          W + s A B: parameters like any others, for whoever reads kernels

s is alpha / r, or alpha / sqrt(r) where rank-stabilised (Kalajdzievski, arXiv 2312.03732).

DoRA (Liu et al., arXiv 2402.09353) trains the norms m of the columns apart: V = W + s A B is used as
V m / |V|. `.../query/lora_magnitude` [out] is m - |W|, which begins at zero.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from flan_jax.errors import ConfigError, nearest
from flan_jax.models import LoraConfig
from flan_jax.models.layers import column_gains
from flan_jax.training.losses import Loss, LossSums
from flan_jax.training.parameter_patterns import matches, matching, require_matches
from flan_jax.training.partitioning import ShardedModel

PyTree = Any
Path = tuple[str, ...]

# U(-1/sqrt(in), 1/sqrt(in)), as the authors' code and PEFT draw A. B is zero, so that the adapted
# model begins as its base.
_A_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class Lora:
  """The adapters of a model, initialised and laid out on a mesh as a model of their own.

  Raises:
    ConfigError: a pattern matches no parameter, or one that is no kernel of a layer (tables of
      embeddings, norms, the kernel of the logits); a kernel has fewer rows or columns than rank.
  """

  model: ShardedModel
  config: LoraConfig

  def __post_init__(self) -> None:
    rank = self.config.rank
    for path, shape in self._kernels.items():
      if rank > min(shape[-2:]):
        raise ConfigError(
          f"lora.rank={rank} is more than {'/'.join(path)!r} has, a matrix of {shape[-2]} x "
          f"{shape[-1]}; choose {min(shape[-2:])} or less."
        )

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Fresh adapters in float32; A is uniform with variance 1 / (3 in), all else zero."""
    rank, leaves = self.config.rank, dict[Path, Array]()
    keys = jax.random.split(key, len(self._kernels))
    for (path, (*layers, rows, columns)), own in zip(self._kernels.items(), keys, strict=True):
      draws = jax.vmap(_A_INIT, in_axes=(0, None, None))
      each = jax.random.split(own, math.prod(layers))
      a = draws(each, (rows, rank), jnp.float32).reshape(*layers, rows, rank)
      leaves[_beside(path, "lora_a")] = a
      leaves[_beside(path, "lora_b")] = jnp.zeros((*layers, rank, columns), jnp.float32)
      if self.config.magnitudes:
        leaves[_beside(path, "lora_magnitude")] = jnp.zeros((*layers, columns), jnp.float32)
    return traverse_util.unflatten_dict(leaves)

  def shapes(self) -> dict[str, Any]:
    """The tree of `init` with shape and dtype of every adapter; nothing is made."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def logical_axes(self) -> dict[str, Any]:
    """The tree of `init` with logical axis names: A and B are cut as the kernel's own sides are."""
    names, leaves = _flat(self.model.logical_axes()), {}
    for path in self._kernels:
      *layers, rows, columns = names[path]
      leaves[_beside(path, "lora_a")] = (*layers, rows, None)
      leaves[_beside(path, "lora_b")] = (*layers, None, columns)
      if self.config.magnitudes:
        leaves[_beside(path, "lora_magnitude")] = (*layers, columns)
    return traverse_util.unflatten_dict(leaves)

  def join(self, base: PyTree, adapters: PyTree) -> dict[str, Any]:
    """The base with its adapters, for a forward pass that trains them; nothing of it is copied."""
    leaves = {**_flat(base), **_flat(adapters)}
    for path, shape in self._kernels.items():
      leaves[_beside(path, "lora_b")] *= self._scale
      if self.config.dropout:
        rates = jnp.full(shape[:-2], self.config.dropout, jnp.float32)
        leaves[_beside(path, "lora_dropout")] = rates
    return traverse_util.unflatten_dict(leaves)

  def merge(self, base: PyTree, adapters: PyTree) -> dict[str, Any]:
    """The base's own tree with the adapters in every adapted kernel, in the dtype of W."""
    leaves, factors = dict(_flat(base)), _flat(adapters)
    for path in self._kernels:
      a, b = factors[_beside(path, "lora_a")], factors[_beside(path, "lora_b")] * self._scale
      kernel = leaves[path]
      product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
      made = kernel.astype(jnp.float32) + product
      if self.config.magnitudes:
        gains = column_gains(kernel, a, b, factors[_beside(path, "lora_magnitude")])
        made = made * gains[..., None, :]
      leaves[path] = made.astype(kernel.dtype)
    return traverse_util.unflatten_dict(leaves)

  def summary(self) -> str:
    """How many parameters are trained, in a sentence."""
    trained, frozen = _count(jax.tree.leaves(self.shapes())), _count(self._shapes.values())
    return (
      f"LoRA: {trained:,} of {trained + frozen:,} parameters are trained "
      f"({100 * trained / (trained + frozen):.1f} %): {trained * 4 / 1e6:,.1f} MB in place of "
      f"{frozen * 4 / 1e6:,.0f} MB for gradients, for each moment of the optimizer and in checkpoints"
    )

  @functools.cached_property
  def _shapes(self) -> dict[Path, jax.ShapeDtypeStruct]:
    return _flat(self.model.shapes())

  @functools.cached_property
  def _kernels(self) -> dict[Path, tuple[int, ...]]:
    """Path and shape of every adapted kernel."""
    axes = _flat(self.model.logical_axes())
    # What makes embeddings and logits is read in pieces and never called as a layer.
    layers = [path for path in axes if path[-1] == "kernel" and "vocab" not in axes[path]]
    patterns, shapes = self.config.patterns, traverse_util.unflatten_dict(self._shapes)
    require_matches(shapes, "lora.patterns", patterns)
    chosen = [path for path, matched in _flat(matching(shapes, patterns)).items() if matched]
    for path in chosen:
      if path not in layers:
        name, names = "/".join(path), ["/".join(layer) for layer in layers]
        pattern = next(p for p in reversed(patterns) if matches(name, p))
        close = nearest(name, names, count=2) or names[:3]
        raise ConfigError(
          f"lora.patterns: {pattern!r} matches {name!r}, and only kernels of layers are adapted, "
          f"such as {', '.join(map(repr, close))}; choose a narrower pattern."
        )
    if not chosen:
      raise ConfigError(f"lora.patterns={patterns} takes out every kernel that it chooses.")
    return {path: self._shapes[path].shape for path in sorted(chosen)}

  @property
  def _scale(self) -> Float[Array, ""]:
    return jnp.float32(self.config.scale)


@dataclasses.dataclass(frozen=True)
class AdaptedLoss:
  """A loss whose trained parameters are adapters, and whose frozen ones the base."""

  loss: Loss
  lora: Lora

  def weights(self, batch: Any) -> Mapping[str, Float[Array, ""]]:
    return self.loss.weights(batch)

  def sums(
    self, params: PyTree, batch: Any, key: jax.Array | None, frozen: PyTree = None
  ) -> LossSums:
    return self.loss.sums(self.lora.join(frozen, params), batch, key)


def _beside(path: Path, name: str) -> Path:
  return (*path[:-1], name)


def _flat(tree: Mapping[str, Any]) -> dict[Path, Any]:
  return traverse_util.flatten_dict(tree)


def _count(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
  return sum(math.prod(leaf.shape) for leaf in leaves)
