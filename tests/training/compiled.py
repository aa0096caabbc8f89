"""What the compiler made of a training step: its collectives, by mesh axis, and its bytes."""

import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from flan_jax.training import optimizers, schedules
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import make_layout, make_mesh, put_batch
from flan_jax.training.step import abstract_state, make_train_step

_NUMBER_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


class Collective(NamedTuple):
  """One instruction of the program.

  Args:
    kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
    axes: the mesh axes along which devices exchange something.
    bytes: of its result on one device.
  """

  kind: str
  axes: frozenset[str]
  bytes: int


class CompiledStep(NamedTuple):
  """Args:
  state: shapes with shardings.
  """

  layout: Any
  state: Any
  program: Any

  @property
  def text(self):
    return self.program.as_text()

  @property
  def memory(self):
    return self.program.memory_analysis()

  def collectives(self, at_least=0):
    """Those whose result has so many bytes."""
    return [each for each in _collectives(self.text, self.layout.mesh) if each.bytes >= at_least]

  def loop_carries(self):
    """Shapes of what any loop of the program carries, as the compiler writes them."""
    loops = re.findall(r" = \((.*?)\) while\(", self.text)
    return {shape for loop in loops for shape in re.findall(r"\w+\[[\d,]+\]", loop)}


def compiled_step(
  model, mesh, batch, *, devices=None, accumulation=1, accumulator_dtype="float32", tx=None
):
  """The step of AdamW, or another optimizer, on a mesh: compiled and not run."""
  layout = make_layout(model, mesh if hasattr(mesh, "devices") else make_mesh(mesh, devices))
  tx = tx or optimizers.adamw(schedules.constant(1e-3), weight_decay=0.1)
  with layout.active():
    shapes, shardings = abstract_state(model, tx, layout)
    state = jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
      shapes,
      shardings,
    )
    step = make_train_step(
      SupervisedLoss(model, z_loss=1e-4, tasks=3),
      tx,
      accumulation=accumulation,
      accumulator_dtype=accumulator_dtype,
      shardings=shardings,
    )
    lowered = step.lower(state, put_batch(batch, layout), jax.random.key(0))
    return CompiledStep(layout, state, lowered.compile())


def bytes_on_a_device(tree):
  """Of shapes with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _collectives(text, mesh):
  found = re.finditer(
    r" = (?P<result>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\(.*?(?:replica_groups|source_target_pairs)=(?P<groups>.*)",
    text,
  )
  for match in found:
    axes = frozenset().union(*(_axes(group, mesh) for group in _groups(match["groups"])))
    if axes:  # groups of one device exchange nothing
      yield Collective(match["kind"], axes, _bytes(match["result"]))


def _groups(written):
  """Places in the mesh that exchange something, which the compiler writes in one of three ways:

  {{0,1},{2,3}}
  [2,2]<=[4], or [2,2]<=[2,2]T(1,0)
  mesh['a'=2,'b'=2] {'b'}, or mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}
  """
  if listed := re.match(r"\{\{[\d,{}]+\}\}", written):
    return [_numbers(group) for group in re.findall(r"[\d,]+(?=\})", listed[0])]
  if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", written):
    places = _places(_numbers(iota[2]))
    return (places.transpose(_numbers(iota[3])) if iota[3] else places).reshape(_numbers(iota[1]))
  if named := re.match(
    r"mesh\[((?:'\w+'=\d+,?)+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:'\w+',?)+)\}",
    written,
  ):
    sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", named[1])}
    places = _places(_numbers(named[2]) if named[2] else list(sizes.values()))
    places = places.transpose(_numbers(named[3])) if named[3] else places
    used = [list(sizes).index(axis) for axis in named[4].split(",")]
    places = np.moveaxis(places.reshape(list(sizes.values())), used, range(len(used)))
    return places.reshape(math.prod(places.shape[: len(used)]), -1).T
  raise ValueError(f"replica groups that are written in a new way: {written[:80]}")


def _places(sizes):
  return np.arange(math.prod(sizes)).reshape(sizes)


def _axes(group, mesh):
  """The axes along which some places of a group differ."""
  coordinates = np.stack(np.unravel_index(group, mesh.devices.shape), axis=1)
  differ = (coordinates != coordinates[0]).any(axis=0)
  return {axis for axis, differs in zip(mesh.axis_names, differ, strict=True) if differs}


def _bytes(result):
  return sum(
    _NUMBER_BYTES[dtype] * math.prod(_numbers(shape))
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
    if dtype in _NUMBER_BYTES
  )


def _numbers(written):
  return [int(number) for number in written.split(",") if number]
