"""Where numbers stop being finite: in which parameters, and where in a forward pass first."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from flan_jax.models import LanguageModel
from flan_jax.training.partitioning import Layout, path_of
from flan_jax.training.step import in_microbatches

PyTree = Any
Path = tuple[str, ...]

_SOWN = "intermediates"


def not_finite(tree: PyTree, layout: Layout) -> list[str]:
  """Names of the arrays that hold a NaN or an infinity, such as "layers/mlp/up/kernel (layer 1)".

  Args:
    tree: a nested dict of arrays on the mesh, layers stacked on a leading axis.
  """

  def finite(tree: PyTree) -> list[Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [_finite(leaf, axes=leaf.ndim - ("layers" in path_of(keys))) for keys, leaf in leaves]

  paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
  found = jax.device_get(jax.jit(finite, out_shardings=_everywhere(layout))(tree))
  pairs = zip(paths, found, strict=True)
  return [name for path, flags in pairs for name, is_finite in _each(path, flags) if not is_finite]


@dataclasses.dataclass(frozen=True)
class ForwardPass:
  """The forward pass of a training step, which can be made again to be looked into.

  Args:
    model: of either family.
    layout: mesh and rules, which must be active where it is called.
    accumulation: microbatches of a step.
    join: from the frozen parameters and the trained ones to those of the model.
  """

  model: LanguageModel
  layout: Layout
  accumulation: int = 1
  join: Callable[[PyTree, PyTree], PyTree] = lambda frozen, params: params

  def first_not_finite(
    self, params: PyTree, batch: Mapping[str, Any], key: jax.Array, step: int, frozen: PyTree = None
  ) -> str | None:
    """The first module whose output is not finite, such as "encoder/layers/attention/out (layer 3)".

    None: the outputs of all of them are.

    Args:
      batch: the global batch, on the mesh.
      key: of all steps.
      step: number of batches before this one: dropout is that of the step.
    """
    calls: list[list[Path]] = []

    def outputs(
      params: PyTree, batch: PyTree, key: jax.Array, index: int, frozen: PyTree
    ) -> PyTree:
      rows = jax.tree.map(lambda x: x[index], in_microbatches(batch, self.accumulation))
      watched = _Watched(self.model.module)
      model = dataclasses.replace(self.model, module=watched)  # type: ignore[arg-type]
      own = jax.random.fold_in(jax.random.fold_in(key, step), index)
      model.hidden(self.join(frozen, params), rows, dropout_key=own)
      # The order is known once this is traced.
      calls[:] = watched.paths
      return watched.flags

    compiled = jax.jit(outputs, out_shardings=_everywhere(self.layout))
    for index in range(self.accumulation):
      flags = jax.device_get(compiled(params, batch, key, jnp.int32(index), frozen))
      for paths, found in zip(calls, flags, strict=True):
        for name, is_finite in _in_order(paths, found):
          if not is_finite:
            return name
    return None


class _Watched:
  """A Linen module that notes, at every call of a module within it, whether the output is finite."""

  def __init__(self, module: nn.Module):
    self._module = module
    self.paths: list[list[Path]] = []
    self.flags: list[PyTree] = []

  def apply(self, *arguments: Any, **options: Any) -> Any:
    paths: dict[Path, None] = {}

    def watch(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
      output = call(*arguments, **options)
      numbers = [x for x in jax.tree.leaves(output) if jnp.issubdtype(x.dtype, jnp.inexact)]
      if context.method_name == "__call__" and numbers:
        flag = jnp.all(jnp.stack([_finite(x, axes=x.ndim) for x in numbers]))
        context.module.sow(_SOWN, _FLAG, flag, reduce_fn=lambda _, new: new, init_fn=lambda: True)
        paths[context.module.path] = None
      return output

    with nn.intercept_methods(watch):
      output, sown = self._module.apply(*arguments, mutable=[_SOWN], **options)
    self.paths.append(list(paths))
    self.flags.append(sown.get(_SOWN, {}))
    return output


_FLAG = "is_finite"


def _in_order(paths: list[Path], flags: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
  """Every call of one pass as it was made: all modules of a layer before those of the next."""

  def flag_of(path: Path) -> np.ndarray:
    found: Any = flags
    for name in (*path, _FLAG):
      found = found[name]
    return np.asarray(found)

  for _, group in itertools.groupby(paths, key=lambda path: flag_of(path).shape):
    per_module = [list(_each(path, flag_of(path))) for path in group]
    for layer in zip(*per_module, strict=True):
      yield from layer


def _each(path: Path, flags: np.ndarray) -> Iterator[tuple[str, bool]]:
  """Name and flag of each layer, where there is a flag for each."""
  name = "/".join(path)
  if flags.ndim == 0:
    yield name, bool(flags)
  for layer, flag in enumerate(flags if flags.ndim else ()):
    yield f"{name} (layer {layer})", bool(flag)


def _finite(x: jax.Array, axes: int) -> Bool[Array, "*layers"]:
  """Whether all is finite along the last `axes`."""
  return jnp.all(jnp.isfinite(x), axis=tuple(range(x.ndim - axes, x.ndim)))


def _everywhere(layout: Layout) -> NamedSharding:
  return NamedSharding(layout.mesh, PartitionSpec())
