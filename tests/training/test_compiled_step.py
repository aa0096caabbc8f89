"""What the compiler makes of a step on every mesh: its collectives, its bytes, the shapes that devices hold."""

import functools

import jax
import numpy as np
import pytest
from compiled import bytes_on_a_device, compiled_step
from jax.sharding import AxisType, Mesh
from meshes import MESHES, devices_of, packed_batch
from tiny import DECODER, FAMILIES

from flan_jax.errors import MeshError, UnknownName
from flan_jax.training.partitioning import AXES, MeshConfig, hybrid_devices

EVERYWHERE = [
  pytest.param(family, mesh, marks=[pytest.mark.slow] if family == "encoder_decoder" else [])
  for family in FAMILIES
  for mesh in MESHES
]
KERNEL = 1024  # bytes on a device of what is worth a name


@functools.cache
def step_of(family, mesh, accumulation=1, accumulator_dtype="float32"):
  model, config = FAMILIES[family], MESHES[mesh]
  return compiled_step(
    model,
    config,
    packed_batch(model.layout, 8 * accumulation, seed=0),
    devices=jax.devices()[: devices_of(config)],
    accumulation=accumulation,
    accumulator_dtype=accumulator_dtype,
  )


@pytest.mark.parametrize(("family", "mesh"), EVERYWHERE)
def test_the_program_has_the_collectives_that_the_layout_implies(family, mesh):
  step = step_of(family, mesh)
  used = {(each.kind, axis) for each in step.collectives() for axis in each.axes}
  assert {axis for _, axis in used} == {a for a, n in step.layout.mesh.shape.items() if n > 1}
  for axis in ("data", "fsdp", "sequence", "tensor"):
    if step.layout.mesh.shape[axis] > 1:  # gradients, or products that are cut
      assert {("all-reduce", axis), ("reduce-scatter", axis)} & used
  gathered = {axis for kind, axis in used if kind == "all-gather"}
  wanted = {a for a in ("fsdp", "sequence") if step.layout.mesh.shape[a] > 1}
  assert wanted <= gathered and "data" not in gathered
  if "fsdp" in wanted:
    kernels = sum(
      "kernel" in str(path) for path in jax.tree_util.tree_leaves_with_path(step.state.params)
    )
    gathers = [x for x in step.collectives(KERNEL) if (x.kind, x.axes) == ("all-gather", {"fsdp"})]
    assert len(gathers) >= kernels


@pytest.mark.parametrize(("family", "mesh"), EVERYWHERE)
def test_the_whole_state_is_donated_and_each_device_has_its_share(family, mesh):
  step = step_of(family, mesh)
  assert step.memory.alias_size_in_bytes == bytes_on_a_device(step.state)
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.state))
  shape = step.layout.mesh.shape
  # Of T5 the tables of relative positions, of the decoder two key heads over four devices are on all.
  assert bytes_on_a_device(step.state) * shape["fsdp"] * shape["tensor"] < 1.5 * whole


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_axis_cuts_what_is_kept_and_the_scores_by_query(family):
  step, model = step_of(family, "sequence=2,fsdp=4"), FAMILIES[family]
  tokens = 32 if model.layout == "decoder" else 16
  stream, heads = model.config.emb_dim, model.config.num_heads
  assert f"f32[2,2,{tokens // 2},{stream}]" in step.text  # layers, rows, tokens, features
  assert f"f32[2,2,{tokens},{stream}]" not in step.text
  groups = 2 if model.layout == "decoder" else 1
  half, whole = (f"f32[2,{heads // groups},{n},{groups},{tokens}]" for n in (tokens // 2, tokens))
  assert half in step.text and whole not in step.text


@pytest.mark.parametrize(("dtype", "written"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_sums_of_gradients_are_held_in_shares_and_in_the_dtype_asked_for(dtype, written):
  carried = step_of("decoder", "fsdp=8", 2, dtype).loop_carries()
  assert {f"{written}[2,2,32]", f"{written}[2,32,2]", f"{written}[64,2]"} <= carried
  assert not {f"{written}[2,16,32]", f"{written}[2,32,16]"} & carried


class InSlice:
  """A device that says in which slice of a pod it is."""

  def __init__(self, device, slice_index):
    self.device, self.slice_index = device, slice_index
    self.platform, self.device_kind = device.platform, device.device_kind
    self.process_index, self.id = device.process_index, device.id


def sliced(config, slices=2):
  devices = [InSlice(d, i % slices) for i, d in enumerate(jax.devices())]  # in no good order
  return hybrid_devices(config, devices)


def mesh_of(config, slices=2):
  grid = np.vectorize(lambda each: each.device)(sliced(config, slices))
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@pytest.mark.parametrize(
  "config",
  [
    MeshConfig(data=2, fsdp=4),
    MeshConfig(data=4, fsdp=1, tensor=2),
    MeshConfig(data=1, fsdp=8, across_slices="fsdp"),
    MeshConfig(data=2, fsdp=2, tensor=2, across_slices="fsdp"),
  ],
)
def test_one_axis_alone_leads_from_slice_to_slice_and_its_outer_part(config):
  place = AXES.index(config.across_slices)
  slices = np.vectorize(lambda each: each.slice_index)(sliced(config))
  halves = np.split(slices, 2, axis=place)
  assert [np.unique(half).tolist() for half in halves] == [[0], [1]]


def test_only_gradients_cross_from_slice_to_slice():
  mesh = mesh_of(MeshConfig(data=2, fsdp=4))
  step = compiled_step(DECODER, mesh, packed_batch("decoder", 8, seed=0))
  crossing = {each.kind for each in step.collectives() if "data" in each.axes}
  assert crossing == {"all-reduce"}


def test_slices_that_an_axis_does_not_divide_over_are_refused():
  with pytest.raises(MeshError, match=r"data=1 does not divide over 2 slices.*across_slices"):
    sliced(MeshConfig(data=1, fsdp=8))
  with pytest.raises(MeshError, match=r"\[2, 3, 3\] devices"):
    sliced(MeshConfig(data=8), slices=3)
  with pytest.raises(UnknownName, match="'fsdb'.*'fsdp'"):
    MeshConfig(across_slices="fsdb")
