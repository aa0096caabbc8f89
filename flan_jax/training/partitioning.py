"""Who holds what: the mesh, axis rules, and shardings of parameters, optimizer states, batches.

Models name the axes of their arrays; rules, which are data, map those names to mesh axes:

  batch, length         --> (data, fsdp), sequence    a token lives on one coordinate of these
  embed                 --> fsdp                      parameters are gathered where they are used
  vocab, heads, kv, mlp --> tensor

A rule may have an alternative: a second rule for the same name. The alternative is taken where the
first one's mesh axes do not divide a dimension, and the layout says so. Without an alternative that
is an error. Rules may also name `expert` and `stage`, which no mesh has as long as no model here has
experts or stages: they cut nothing.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from flan_jax.errors import ConfigError, MeshError, UnknownName
from flan_jax.models.config import KERNEL_PLATFORMS, ModelConfig

AXES = ("data", "fsdp", "sequence", "tensor")
OPEN_AXES = ("expert", "stage")

_ACTIVATIONS = ("batch", "length")  # logical axes that no parameter has

Rule = tuple[str, str | tuple[str, ...] | None]
Rules = tuple[Rule, ...]
PyTree = Any

DEFAULT_RULES: Rules = (
  ("batch", ("data", "fsdp")),
  ("length", "sequence"),
  ("vocab", "tensor"),
  ("vocab", None),
  ("heads", "tensor"),
  ("heads", None),
  ("kv", "tensor"),
  ("kv", None),
  ("mlp", "tensor"),
  ("embed", "fsdp"),
  ("layers", None),
  ("relpos_buckets", None),
)


class ShardedModel(Protocol):
  """What a model must tell to be laid out on a mesh."""

  def init(self, key: jax.Array) -> PyTree: ...

  def shapes(self) -> PyTree: ...

  def logical_axes(self) -> PyTree: ...


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis. One of the numbers may be -1: the devices that are left.

  Args:
    across_slices: the axis whose outer part leads from one slice of a TPU pod to the next, over the slow
      network between them; all else stays within slices. With one slice it says nothing.
  """

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  tensor: int = 1
  across_slices: str = "data"

  def __post_init__(self) -> None:
    if self.across_slices not in AXES:
      raise UnknownName("mesh axis", self.across_slices, AXES, "It stands in across_slices.")

  @staticmethod
  def of(text: str, name: str) -> "MeshConfig":
    """The mesh that a text such as "tensor=4,data=2" says; `name` is the setting that an error speaks of."""
    sizes: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
      axis, _, size = part.partition("=")
      if axis not in AXES:
        raise UnknownName("mesh axis", axis, AXES, f"It stands in {name}.")
      if not size.removeprefix("-").isdecimal():
        raise ConfigError(f"{name}={text!r} is not like tensor=4,data=2.")
      sizes[axis] = int(size)
    return MeshConfig(**sizes)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh together with the rules that hold on it for one model.

  Args:
    mesh: of the axes `AXES`; an abstract one tells shares of arrays and holds none.
    rules: one rule a name, every one of which divides the model's dimensions.
    fallbacks: a sentence for each rule whose alternative was taken.
  """

  mesh: Mesh | AbstractMesh
  rules: Rules
  fallbacks: tuple[str, ...] = ()

  @contextlib.contextmanager
  def active(self) -> Iterator[None]:
    """Within it, jitted functions see the mesh, and models obey the rules."""
    mesh: Any = (
      jax.set_mesh(self.mesh)
      if isinstance(self.mesh, Mesh)
      else jax.sharding.use_abstract_mesh(self.mesh)
    )
    with mesh, nn.logical_axis_rules(self.rules):
      yield

  def sharding(self, *names: str | None) -> NamedSharding:
    """Where an array lives whose dimensions carry these logical names."""
    return NamedSharding(self.mesh, _spec(names, self.rules))

  def without(self, name: str) -> "Layout":
    """The same, but that a dimension of this logical name is not cut."""
    rules = tuple((each, None if each == name else axes) for each, axes in self.rules)
    return dataclasses.replace(self, rules=rules)

  def shards(self, name: str) -> int:
    """Into how many pieces a dimension of this logical name is cut."""
    return _extent(dict(self.rules).get(name), self.mesh)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh of all devices, or of those given.

  Raises:
    MeshError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  # Explicit axes, the default of jax.make_mesh, would refuse gathers from a sharded embedding.
  types = (AxisType.Auto,) * len(AXES)
  sizes = _mesh_sizes(config, len(devices))
  if len(_slices(devices)) > 1:
    return Mesh(hybrid_devices(config, devices), AXES, axis_types=types)
  return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)


def hybrid_devices(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
  """The devices of several slices, told by their `slice_index`, in the shape of the mesh.

  Raises:
    MeshError: the slices are of different sizes, or do not divide `across_slices`.
  """
  sizes, slices = dict(zip(AXES, _mesh_sizes(config, len(devices)), strict=True)), _slices(devices)
  across, count = config.across_slices, len(slices)
  if len(set(slices.values())) > 1:
    raise MeshError(f"the slices have {sorted(slices.values())} devices: a mesh wants equal ones")
  if sizes[across] % count:
    raise MeshError(
      f"{across}={sizes[across]} does not divide over {count} slices: make it a multiple of {count}, or let "
      "mesh.across_slices name another axis"
    )
  outer = [count if axis == across else 1 for axis in AXES]
  inner = [sizes[axis] // n for axis, n in zip(AXES, outer, strict=True)]
  return mesh_utils.create_hybrid_device_mesh(inner, outer, devices)


def _slices(devices: Sequence[Any]) -> Mapping[int, int]:
  """Devices of each slice; those that know of no slices are in one."""
  return collections.Counter(getattr(device, "slice_index", None) or 0 for device in devices)


def make_abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
  """The mesh of so many devices that need not be there, to reckon with.

  Raises:
    MeshError: the sizes do not multiply to the number of devices.
  """
  return AbstractMesh(_mesh_sizes(config, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
  sizes = [getattr(config, axis) for axis in AXES]
  written = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise MeshError(f"mesh {written}: each axis is 1 or more, and at most one is -1 (the rest)")
  fixed = math.prod(size for size in sizes if size != -1)
  if devices % fixed or (-1 not in sizes and fixed != devices):
    raise MeshError(
      f"mesh {written} asks for {fixed}{' times something' if -1 in sizes else ''} devices, and "
      f"there are {devices}; choose sizes that multiply to {devices}, or -1 for one axis"
    )
  return tuple(devices // fixed if size == -1 else size for size in sizes)


def make_layout(
  model: ShardedModel, mesh: Mesh | AbstractMesh, rules: Rules = DEFAULT_RULES
) -> Layout:
  """Settles which rules hold for a model on a mesh.

  Raises:
    MeshError: a rule without an alternative does not divide a dimension of the model.
    ConfigError: the model uses an axis name that no rule mentions, or a rule an unknown mesh axis.
  """
  rules = tuple((name, _present(name, axes, mesh)) for name, axes in rules)
  sizes = _dimension_sizes(model)
  known = dict.fromkeys(name for name, _ in rules)
  for name in sizes:
    if name not in known:
      raise UnknownName("logical axis", name, known, "The model uses it; add an axis rule for it.")
  settled, fallbacks = [], []
  for name in known:
    rule, report = _settle(
      name, [axes for n, axes in rules if n == name], sizes.get(name, {}), mesh
    )
    settled.append((name, rule))
    fallbacks.extend(report)
  used = [
    axis for name, rule in settled if name in (*sizes, *_ACTIVATIONS) for axis in _tuple(rule)
  ]
  fallbacks.extend(
    f"mesh axis {axis}={size} cuts nothing of this model: its devices all do the same work"
    for axis, size in mesh.shape.items()
    if size > 1 and axis not in used
  )
  _check_no_axis_twice(model, mesh, dict(settled))
  return Layout(mesh, tuple(settled), tuple(fallbacks))


def param_shardings(model: ShardedModel, layout: Layout) -> PyTree:
  """The sharding of every parameter, in a tree like the parameters'."""
  return jax.tree.map(
    lambda names: layout.sharding(*names),
    model.logical_axes(),
    is_leaf=lambda x: isinstance(x, tuple),
  )


def state_shardings(tx: optax.GradientTransformation, params: PyTree, shardings: PyTree) -> PyTree:
  """The sharding of every array in the state of an optimizer, whatever its structure.

  A state array belongs to the parameter whose path its own path ends with. It is laid out as the
  parameter; where it has fewer dimensions (Adafactor's factors), as those dimensions of the
  parameter that it kept. Everything else (counts, rates) is held by every device.

  Args:
    params: arrays or shapes, a tree like `shardings`.
  """
  shapes = jax.eval_shape(lambda p: _unpromoted(tx.init, p), params)
  owners = {
    path_of(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    )
  }
  anchor = next(iter(owners.values()))[1]
  replicated = NamedSharding(anchor.mesh, PartitionSpec())

  def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    names = path_of(path)
    owner = next((names[i:] for i in range(len(names)) if names[i:] in owners), None)
    if owner is None or not leaf.shape:
      return replicated
    shape, sharding = owners[owner]
    kept = _kept_dimensions(shape, leaf.shape, prefer_last="v_col" in names)
    if kept is None:
      return replicated
    spec = tuple(sharding.spec) + (None,) * (len(shape) - len(sharding.spec))
    return NamedSharding(sharding.mesh, PartitionSpec(*(spec[i] for i in kept)))

  return jax.tree_util.tree_map_with_path(place, shapes)


def batch_shardings(batch: Mapping[str, Any], layout: Layout) -> PyTree:
  """Rows over the batch axes, tokens over the sequence. Other second dimensions are cut where they divide.

  Raises:
    MeshError: the tokens of a row do not divide.
  """
  pieces = layout.shards("length")

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    names: list[str | None] = [*("batch", "length")[: leaf.ndim]]
    if leaf.ndim > 1 and leaf.shape[1] % pieces:
      if path_of(path)[-1].endswith("_tokens"):
        check_lengths([leaf.shape[1]], layout)
      names[1] = None
    return layout.sharding(*names)

  return jax.tree_util.tree_map_with_path(place, batch)


def rows_of_process(batch_size: int, layout: Layout) -> list[int]:
  """The rows of a global batch that this process's devices hold.

  Processes along the tensor or sequence axis hold the same rows.
  """
  places = layout.sharding("batch").addressable_devices_indices_map((batch_size,))
  spans = [place[0].indices(batch_size) for place in places.values() if place]
  return sorted({row for span in spans for row in range(*span)})


def put_batch(batch: Mapping[str, Any], layout: Layout, batch_size: int | None = None) -> PyTree:
  """Global arrays on the mesh from the rows of this process.

  Args:
    batch: of each array the rows that `rows_of_process` tells.
    batch_size: rows of the global batch; None: those given.
  """

  def put(sharding: NamedSharding, rows: Any) -> jax.Array:
    rows = np.asarray(rows)
    shape = (batch_size or rows.shape[0], *rows.shape[1:])
    return jax.make_array_from_process_local_data(sharding, rows, shape)

  return jax.tree.map(put, batch_shardings(batch, layout), batch)


def check_batch(batch_size: int, accumulation: int, layout: Layout) -> None:
  """Raises MeshError unless every device gets the same number of rows of every microbatch."""
  shards = layout.shards("batch")
  if batch_size < 1 or accumulation < 1:
    raise ConfigError(
      f"batch_size={batch_size} and accumulation={accumulation} must both be 1 or more"
    )
  if batch_size % (shards * accumulation):
    raise MeshError(
      f"a batch of {batch_size} rows does not divide into {accumulation} microbatches over {shards} "
      f"devices along {_tuple(dict(layout.rules).get('batch'))}; use a multiple of {shards * accumulation}"
    )


def check_kernels(config: ModelConfig, mesh: Mesh | AbstractMesh) -> None:
  """Raises MeshError where the model asks for a kernel that the devices of the mesh do not have."""
  kernel, device = config.attention, mesh.devices.flat[0] if isinstance(mesh, Mesh) else None
  if kernel == "xla" or device is None:
    return
  platform = KERNEL_PLATFORMS[kernel]
  if device.platform != platform:
    raise MeshError(
      f"attention={kernel!r} is a kernel for {platform.upper()}s, and these devices are {device.device_kind}: set "
      "attention='xla'."
    )
  if kernel == "cudnn" and config.head_dim > 128 and float(device.compute_capability) < 9:
    raise MeshError(
      f"attention='cudnn' takes heads of {config.head_dim} numbers from Hopper on, and of 128 on these "
      f"{device.device_kind}: set attention='xla'."
    )


def check_lengths(lengths: Iterable[int], layout: Layout) -> None:
  """Raises MeshError unless rows of so many tokens divide over the sequence."""
  pieces = layout.shards("length")
  for length in lengths:
    if length % pieces:
      raise MeshError(
        f"rows of {length} tokens do not divide over sequence={pieces}: make them a multiple of {pieces} (a "
        "decoder's are inputs and targets together), or choose another mesh"
      )


def current_shards(name: str) -> int:
  """Into how many pieces the mesh and rules in force, if any, cut this logical dimension."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  spec = nn.logical_to_mesh_axes((name,))
  return _extent(spec[0] if spec else None, mesh)


def path_of(keys: tuple[Any, ...]) -> tuple[str, ...]:
  """A tree path as plain names."""
  return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def _spec(names: Sequence[str | None], rules: Rules) -> PartitionSpec:
  return nn.logical_to_mesh_axes(tuple(names), rules) or PartitionSpec()


def _tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _extent(axes: str | tuple[str, ...] | None, mesh: Any) -> int:
  return math.prod(mesh.shape[axis] for axis in _tuple(axes))


def _present(
  name: str, axes: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh
) -> str | tuple[str, ...] | None:
  """What a rule says of the axes that the mesh has."""
  for axis in _tuple(axes):
    if axis not in mesh.shape and axis not in OPEN_AXES:
      known = (*mesh.shape, *OPEN_AXES)
      raise UnknownName("mesh axis", axis, known, f"It stands in the axis rule for {name!r}.")
  if isinstance(axes, str):
    return axes if axes in mesh.shape else None
  return tuple(axis for axis in _tuple(axes) if axis in mesh.shape) or None


def _check_no_axis_twice(
  model: ShardedModel, mesh: Mesh | AbstractMesh, rules: Mapping[str, Any]
) -> None:
  """Raises MeshError where two dimensions of an array would go over one mesh axis.

  Flax would leave one of them whole and say nothing.
  """
  leaves = jax.tree_util.tree_leaves_with_path(
    model.logical_axes(), is_leaf=lambda x: isinstance(x, tuple)
  )
  for path, names in leaves:
    owner: dict[str, str] = {}
    for name in names:
      for axis in _tuple(rules.get(name)):
        if mesh.shape[axis] > 1 and owner.setdefault(axis, name) != name:
          raise MeshError(
            f"the axis rules cut both {owner[axis]!r} and {name!r} of {'/'.join(path_of(path))} over "
            f"{axis!r}; an array can be cut over a mesh axis once"
          )


def _dimension_sizes(model: ShardedModel) -> dict[str, dict[int, str]]:
  """For each logical name, the sizes that the model gives it, each with an array that has it."""
  sizes: dict[str, dict[int, str]] = {}
  shapes = model.shapes()
  axes = jax.tree.leaves(model.logical_axes(), is_leaf=lambda x: isinstance(x, tuple))
  for (path, leaf), names in zip(jax.tree_util.tree_leaves_with_path(shapes), axes, strict=True):
    for name, size in zip(names, leaf.shape, strict=True):
      if name is not None:
        sizes.setdefault(name, {}).setdefault(size, "/".join(path_of(path)))
  # Kernels carry heads and their width in one dimension; activations have the heads alone.
  config = getattr(model, "config", None)
  heads = getattr(config, "num_heads", None)
  for name, count in (("heads", heads), ("kv", getattr(config, "num_kv_heads", heads))):
    if count is not None and name in sizes:
      sizes[name].setdefault(count, f"{count} heads")
  return sizes


def _settle(
  name: str, choices: Sequence[Any], sizes: Mapping[int, str], mesh: Mesh | AbstractMesh
) -> tuple[Any, list[str]]:
  """The first of a name's rules that divides all its dimensions, and what to say of the others."""
  report: list[str] = []
  for position, axes in enumerate(choices):
    extent = _extent(axes, mesh)
    uneven = {size: array for size, array in sizes.items() if size % extent}
    if not uneven:
      return axes, report
    size, array = next(iter(uneven.items()))
    told = f"axis {name!r} of size {size} ({array}) does not divide over {'*'.join(_tuple(axes))}={extent}"
    if position + 1 == len(choices):
      raise MeshError(
        f"{told}; choose another mesh, or let it fall back with one more axis rule ({name!r}, None)"
      )
    instead = "*".join(_tuple(choices[position + 1]))
    report.append(f"{told}: {'split over ' + instead if instead else 'replicated'} instead")
  raise ValueError(f"no rule for {name!r}")


def _kept_dimensions(
  shape: tuple[int, ...], part: tuple[int, ...], prefer_last: bool
) -> tuple[int, ...] | None:
  """Which dimensions of a parameter a statistic kept, or None if it is not made of them.

  A square matrix leaves a choice: Adafactor's column statistic keeps the last dimension, its row
  statistic the first.
  """
  found: list[tuple[int, ...]] = []

  def search(start: int, chosen: tuple[int, ...]) -> None:
    if len(chosen) == len(part):
      found.append(chosen)
      return
    for i in range(start, len(shape)):
      if shape[i] == part[len(chosen)]:
        search(i + 1, (*chosen, i))

  search(0, ())
  if not found:
    return None
  return found[-1] if prefer_last else found[0]


def _unpromoted(init: Any, params: PyTree) -> PyTree:
  """Optimizers of optax mix dtypes that strict promotion refuses."""
  with jax.numpy_dtype_promotion("standard"):
    return init(params)
