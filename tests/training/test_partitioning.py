"""Meshes, axis rules, and what each device holds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from tiny import DECODER, ENCODER_DECODER, FAMILIES, batch_of

from flan_jax.errors import ConfigError, MeshError, UnknownName
from flan_jax.models import build_model
from flan_jax.training import optimizers, schedules
from flan_jax.training.partitioning import (
  AXES,
  DEFAULT_RULES,
  MeshConfig,
  check_batch,
  make_layout,
  make_mesh,
  param_shardings,
  put_batch,
  state_shardings,
)
from flan_jax.training.step import TrainState

LARGE = 256  # numbers in an array that is worth splitting


def sizes(mesh):
  return tuple(mesh.shape[axis] for axis in AXES)


def test_minus_one_is_the_devices_that_are_left():
  assert sizes(make_mesh(MeshConfig())) == (8, 1, 1, 1)
  assert sizes(make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))) == (2, 2, 1, 2)
  assert sizes(make_mesh(MeshConfig(), jax.devices()[:1])) == (1, 1, 1, 1)


def test_axes_are_automatic():
  assert set(make_mesh(MeshConfig()).axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  "config",
  [
    MeshConfig(data=3),
    MeshConfig(data=4),
    MeshConfig(tensor=3),
    MeshConfig(data=-1, fsdp=-1),
    MeshConfig(data=0),
    MeshConfig(data=16),
  ],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(config):
  with pytest.raises(MeshError, match="mesh data="):
    make_mesh(config)


def test_a_batch_that_does_not_divide_is_refused_with_a_size_that_does():
  layout = make_layout(DECODER, make_mesh(MeshConfig(data=4, tensor=2)))
  check_batch(16, 4, layout)
  with pytest.raises(MeshError, match="multiple of 8"):
    check_batch(12, 2, layout)
  with pytest.raises(ConfigError, match="accumulation=0"):
    check_batch(8, 0, layout)


def test_an_axis_with_an_alternative_falls_back_and_says_so():
  odd = build_model(dataclasses.replace(DECODER.config, vocab_size=63))
  layout = make_layout(odd, make_mesh(MeshConfig(tensor=2)))
  assert dict(layout.rules)["vocab"] is None and dict(layout.rules)["mlp"] == "tensor"
  [told] = layout.fallbacks
  assert "'vocab' of size 63" in told and "embed/embedding" in told and "replicated" in told


def test_heads_count_as_heads_and_not_as_the_width_of_their_kernel():
  # 4 query heads and 2 key heads over 4 devices: the kernels' widths would divide, the key heads do
  # not.
  layout = make_layout(DECODER, make_mesh(MeshConfig(data=2, tensor=4)))
  assert dict(layout.rules)["heads"] == "tensor" and dict(layout.rules)["kv"] is None
  assert "2 heads" in layout.fallbacks[0]


def test_an_axis_without_an_alternative_does_not_fall_back():
  odd = build_model(dataclasses.replace(DECODER.config, mlp_dim=33))
  with pytest.raises(MeshError, match=r"'mlp' of size 33 .*tensor=2.*\('mlp', None\)"):
    make_layout(odd, make_mesh(MeshConfig(tensor=2)))
  layout = make_layout(odd, make_mesh(MeshConfig(tensor=2)), (*DEFAULT_RULES, ("mlp", None)))
  assert dict(layout.rules)["mlp"] is None


def test_misspelt_rules_are_refused():
  mesh = make_mesh(MeshConfig())
  with pytest.raises(UnknownName, match="'tensors'.*'tensor'"):
    make_layout(DECODER, mesh, (*DEFAULT_RULES, ("mlp", "tensors")))
  without = tuple(rule for rule in DEFAULT_RULES if rule[0] != "mlp")
  with pytest.raises(UnknownName, match="logical axis 'mlp'"):
    make_layout(DECODER, mesh, without)


def test_rules_may_name_axes_that_no_mesh_has_yet():
  mesh = make_mesh(MeshConfig(data=4, tensor=2))
  rules = (("mlp", ("tensor", "expert")), ("layers", "stage"), *DEFAULT_RULES)
  layout = make_layout(DECODER, mesh, rules)
  assert (dict(layout.rules)["mlp"], dict(layout.rules)["layers"]) == (("tensor",), None)


def test_a_mesh_axis_that_cuts_nothing_is_told():
  rules = tuple(rule for rule in DEFAULT_RULES if rule[0] != "length")
  layout = make_layout(DECODER, make_mesh(MeshConfig(data=4, sequence=2)), rules)
  assert "sequence=2 cuts nothing" in layout.fallbacks[0]


def test_an_array_is_not_cut_twice_over_one_axis():
  rules = (("mlp", "fsdp"), *DEFAULT_RULES)
  with pytest.raises(MeshError, match="both 'mlp' and 'embed' of .*kernel over 'fsdp'"):
    make_layout(DECODER, make_mesh(MeshConfig(data=4, fsdp=2)), rules)
  make_layout(DECODER, make_mesh(MeshConfig(data=8)), rules)


def test_rows_that_do_not_divide_over_the_sequence_are_refused():
  layout = make_layout(ENCODER_DECODER, make_mesh(MeshConfig(data=4, sequence=2)))
  with pytest.raises(MeshError, match="rows of 11 tokens do not divide over sequence=2"):
    put_batch(batch_of(length=11), layout)


def adafactor(model, **settings):
  return optimizers.adafactor(schedules.constant(1e-3), model.logical_axes(), **settings)


OPTIMIZERS = {
  "adamw": lambda model: optimizers.adamw(
    schedules.constant(1e-3), weight_decay=0.1, ema_decay=0.9
  ),
  "adafactor": lambda model: adafactor(model, min_dim_size_to_factor=16, beta1=0.9),
  "lion": lambda model: optimizers.lion(schedules.constant(1e-3)),
  "muon": lambda model: optimizers.muon(schedules.constant(1e-3), ema_decay=0.9),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
  "config",
  [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)],
  ids=["fsdp", "mixed"],
)
def test_every_large_array_and_moment_holds_its_share_on_each_device(family, optimizer, config):
  model = FAMILIES[family]
  tx = OPTIMIZERS[optimizer](model)
  layout = make_layout(model, make_mesh(config))
  shardings = param_shardings(model, layout)
  shapes = jax.eval_shape(lambda key: TrainState.create(model.init(key), tx), jax.random.key(0))
  places = (shardings, state_shardings(tx, shapes.params, shardings))
  share = layout.shards("embed") * (layout.shards("mlp") if config.tensor > 1 else 1)
  large = 0
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path((shapes.params, shapes.opt_state)),
    jax.tree.leaves(places),
    strict=True,
  ):
    held = math.prod(sharding.shard_shape(leaf.shape))
    # The table of relative positions, [32, heads], belongs to no axis that is split.
    if math.prod(leaf.shape) >= LARGE and "relative_bias" not in jax.tree_util.keystr(path):
      large += 1
      assert held * share == math.prod(leaf.shape), jax.tree_util.keystr(path)
  assert large > 8


def test_factored_statistics_keep_the_layout_of_the_dimensions_they_kept():
  tx = adafactor(DECODER, min_dim_size_to_factor=8)
  layout = make_layout(DECODER, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
  params = jax.eval_shape(DECODER.init, jax.random.key(0))
  placed = state_shardings(tx, params, param_shardings(DECODER, layout))
  by_path = {
    jax.tree_util.keystr(path): sharding.spec
    for path, sharding in jax.tree_util.tree_leaves_with_path(placed)
    if "['up']" in jax.tree_util.keystr(path)
  }
  # up/kernel is [layers, embed 16, mlp 32]
  rows = next(spec for path, spec in by_path.items() if ".v_row" in path)
  columns = next(spec for path, spec in by_path.items() if ".v_col" in path)
  assert (rows, columns) == (PartitionSpec(None, "fsdp"), PartitionSpec(None, "tensor"))


def test_any_optax_state_finds_its_parameters():
  layout = make_layout(DECODER, make_mesh(MeshConfig(data=1, fsdp=8)))
  params = jax.eval_shape(DECODER.init, jax.random.key(0))
  tx = optax.MultiSteps(optax.chain(optax.lion(1e-3), optax.ema(0.9)), 2)
  placed = state_shardings(tx, params, param_shardings(DECODER, layout))
  split = sum(any(sharding.spec) for sharding in jax.tree.leaves(placed))
  assert split == 3 * len(jax.tree.leaves(params))


def test_batches_are_split_by_row_and_sequence():
  layout = make_layout(ENCODER_DECODER, make_mesh(MeshConfig(data=2, sequence=2, tensor=2)))
  placed = put_batch({**batch_of(), "rewards": np.zeros(8, np.float32)}, layout)
  assert placed["decoder_input_tokens"].sharding.spec == PartitionSpec(("data", "fsdp"), "sequence")
  assert placed["rewards"].sharding.spec == PartitionSpec(("data", "fsdp"))
  np.testing.assert_array_equal(placed["task_ids"], batch_of()["task_ids"])


def test_a_layout_without_effect_on_one_device():
  layout = make_layout(DECODER, make_mesh(MeshConfig(), jax.devices()[:1]))
  assert layout.fallbacks == ()
  with layout.active():
    assert jax.jit(DECODER.hidden)(DECODER.init(jax.random.key(0)), batch_of()).dtype == jnp.float32
