"""Parameters from somebody's tensors, one tensor at a time into the place where it is needed."""

import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from flan_jax.checkpoints.families import Family
from flan_jax.checkpoints.tensor_forms import TensorForm
from flan_jax.errors import CheckpointError
from flan_jax.models import LanguageModel, ModelConfig

PyTree = Any


class SourceTensor(Protocol):
  """A tensor that can be read."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  def read(self) -> np.ndarray: ...


class Part(NamedTuple):
  """Where a layer of a parameter of ours is kept by somebody else.

  Args:
    path: of ours.
    layer: None: the parameter is not stacked.
    name: of theirs.
    form: how it holds ours.
  """

  path: str
  layer: int | None
  name: str
  form: TensorForm


def parts_of(model: LanguageModel, family: Family) -> list[Part]:
  """Every layer of every parameter, in the order of the family's table."""
  names, shapes, parts = family.names(model.config), _flat(model.shapes()), []
  for path in sorted(shapes, key=list(names).index):
    stacked = "layers" in path.split("/")
    for layer in range(shapes[path].shape[0]) if stacked else [None]:
      parts.append(Part(path, layer, names[path].format(layer), family.form(path)))
  return parts


def load_params(
  where: str,
  model: LanguageModel,
  family: Family,
  tensors: Mapping[str, SourceTensor],
  shardings: PyTree,
) -> PyTree:
  """The parameters of a model on their mesh, in the dtype that its configuration says.

  Args:
    where: said in errors.
    tensors: by the names of the family.
    shardings: of the parameters.

  Raises:
    CheckpointError: tensors hold numbers that are not finite; all are named at once.
  """
  parts, tensors = parts_of(model, family), _with_base(model, family, tensors)
  shapes, by_path = _flat(model.shapes()), dict[str, list[Part]]()
  for part in parts:
    by_path.setdefault(part.path, []).append(part)
  places, params, bad = _flat(shardings), {}, dict[str, None]()
  for path, layers in by_path.items():
    leaf, sharding = shapes[path], places[path]
    if layers[0].layer is None:
      placed = _placed(layers[0], tensors, model.config, leaf.dtype, sharding, bad)
      params[path] = placed.astype(leaf.dtype)
      continue
    array = _zeros(leaf.shape, leaf.dtype, sharding)
    for part in layers:
      piece = _placed(part, tensors, model.config, leaf.dtype, _inner(sharding), bad)
      array = _put(array, piece, jnp.int32(part.layer), sharding)
    params[path] = array
  if bad:
    raise CheckpointError(
      f"{where}: {len(bad)} tensors hold numbers that are not finite: {', '.join(list(bad)[:8])}."
    )
  return traverse_util.unflatten_dict(
    {tuple(path.split("/")): leaf for path, leaf in params.items()}
  )


def stored_params(
  model: LanguageModel, family: Family, params: PyTree
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
  """The tensors of a family that hold these parameters: shapes by name, and what makes each."""
  leaves, held = _flat(params), dict[str, list[Part]]()
  for part in parts_of(model, family):
    held.setdefault(part.name, []).append(part)

  def read(name: str) -> np.ndarray:
    pieces = [
      np.asarray(leaves[p.path] if p.layer is None else leaves[p.path][p.layer]) for p in held[name]
    ]
    return held[name][0].form.theirs(pieces, model.config)

  shapes = {}
  for name, parts in held.items():
    zeros = [np.broadcast_to(np.int8(0), _own_shape(p, leaves[p.path].shape)) for p in parts]
    shapes[name] = parts[0].form.theirs(zeros, model.config).shape
  return shapes, read


def check_tensors(
  where: str, model: LanguageModel, family: Family, tensors: Mapping[str, SourceTensor]
) -> None:
  """Raises CheckpointError with every tensor that is missing, left over or misshapen."""
  parts, tensors = parts_of(model, family), _with_base(model, family, tensors)
  shapes, wrong = _flat(model.shapes()), []
  for part in parts:
    wanted = _own_shape(part, shapes[part.path].shape)
    ours = part.path if part.layer is None else f"{part.path}[{part.layer}]"
    if part.name not in tensors:
      wrong.append(f"  missing: {part.name} (ours: {ours} {wanted})")
      continue
    found = tensors[part.name].shape
    try:
      held = part.form.ours(np.broadcast_to(np.int8(0), found), model.config).shape
    except (ValueError, IndexError):
      held = None
    if held != wanted:
      wrong.append(f"  misshapen: {part.name} is {found} (ours: {ours} {wanted})")
  table = family.names(model.config)
  # A copy of the table, where that makes the logits too.
  ignored = (*family.ignored, table["unembed/kernel"])
  for name in sorted(tensors.keys() - {part.name for part in parts}):
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored):
      wrong.append(f"  left over: {name} {tensors[name].shape}")
  if wrong:
    more = [f"  and {len(wrong) - 30} more"] if len(wrong) > 30 else []
    raise CheckpointError(
      "\n".join(
        [f"{where} does not hold the model that its settings describe:", *wrong[:30], *more]
      )
    )


def _with_base(
  model: LanguageModel, family: Family, tensors: Mapping[str, SourceTensor]
) -> dict[str, SourceTensor]:
  """The tensors, under names with the base that a folder saved without the logits leaves out."""
  known = {part.name for part in parts_of(model, family)}
  return {
    family.base + name if family.base + name in known else name: tensor
    for name, tensor in tensors.items()
  }


def _placed(
  part: Part,
  tensors: Mapping[str, SourceTensor],
  config: ModelConfig,
  dtype: Any,
  sharding: NamedSharding,
  bad: dict[str, None],
) -> jax.Array:
  """One layer of ours on the mesh, each device with its own part of it; its name is noted if it is bad."""
  raw = tensors[part.name].read()
  if not _finite(raw, dtype):
    bad[part.name] = None
  # Most forms are views, which the transfer straightens.
  return jax.device_put(part.form.ours(raw, config), sharding)


def _finite(array: np.ndarray, dtype: Any) -> bool:
  """Whether no number is infinite or NaN, nor becomes so in a dtype: those have an exponent of ones alone."""
  if jnp.dtype(dtype) == jnp.float16 != array.dtype:
    with np.errstate(over="ignore"):
      array = array.astype(np.float16)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return True
  bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
  exponent = np.array(np.inf, array.dtype).view(bits.dtype)
  # A piece at a time stays in the cache: many times as fast as np.isfinite, which is slow on bfloat16.
  pieces = (bits[i : i + 2**16] & exponent for i in range(0, bits.size, 2**16))
  return all(piece.max() < exponent for piece in pieces)


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "sharding"))
def _zeros(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.Array:
  return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("sharding",))
def _put(
  stack: jax.Array, piece: jax.Array, layer: jax.Array, sharding: NamedSharding
) -> jax.Array:
  return jax.lax.with_sharding_constraint(
    jax.lax.dynamic_update_index_in_dim(stack, piece.astype(stack.dtype), layer, 0), sharding
  )


def _inner(sharding: NamedSharding) -> NamedSharding:
  """That of one layer of a stack, whose own axis is never cut."""
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _own_shape(part: Part, shape: tuple[int, ...]) -> tuple[int, ...]:
  return shape if part.layer is None else shape[1:]


def _flat(tree: PyTree) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")
