"""Adapters: what they compute, what they cost, and that nothing but them is trained."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import FAMILIES, assert_trees_close, assert_trees_equal, batch_of

from flan_jax.checkpoints import Checkpoints
from flan_jax.errors import CheckpointError, ConfigError
from flan_jax.models import build_model
from flan_jax.models.layers import Dense
from flan_jax.training.config import TrainerConfig
from flan_jax.training.lora import AdaptedLoss, Lora, LoraConfig
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.optimizers import adafactor, adamw
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings
from flan_jax.training.schedules import constant
from flan_jax.training.step import TrainState, make_train_step
from flan_jax.training.trainer import Trainer

ALL = ("*attention*kernel", "*mlp*kernel")
BATCH = batch_of()
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """Tiny models compile far longer than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def optimised_compilation():
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


def adapted(family, rank=4, alpha=6.0, dropout=0.0, rank_stabilised=False, patterns=ALL, **changes):
  model = FAMILIES[family]
  model = build_model(dataclasses.replace(model.config, **changes)) if changes else model
  return Lora(model, LoraConfig(rank, alpha, dropout, rank_stabilised, patterns))


@functools.cache
def parameters(family):
  """A base, and adapters of which B is no longer zero."""
  lora = adapted(family)
  adapters = lora.init(jax.random.key(1))
  moved = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), adapters
  )
  return jax.jit(lora.model.init)(jax.random.key(0)), moved


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def explicit(base, adapters, scale):
  """W + s A B for every pair, layer by layer in NumPy."""
  leaves, factors = dict(flat(base)), flat(adapters)
  for name in [name for name in factors if name.endswith("lora_a")]:
    a, b = factors[name], factors[name.replace("lora_a", "lora_b")]
    kernel = name.replace("lora_a", "kernel")
    leaves[kernel] = leaves[kernel] + scale * np.stack([i @ j for i, j in zip(a, b, strict=True)])
  return traverse_util.unflatten_dict(leaves, sep="/")


@EACH_FAMILY
def test_fresh_adapters_change_no_bit_of_the_base(family):
  lora, (base, _) = adapted(family), parameters(family)
  fresh = lora.init(jax.random.key(3))
  logits = jax.jit(lora.model.logits)
  np.testing.assert_array_equal(logits(lora.join(base, fresh), BATCH), logits(base, BATCH))
  assert_trees_equal(lora.merge(base, fresh), base)


@EACH_FAMILY
@pytest.mark.parametrize(
  "changes",
  [{}, {"scan_layers": False}, {"remat": "full"}, {"scan_layers": False, "remat": "dots"}],
)
def test_joined_and_merged_parameters_give_the_logits_of_the_formula(family, changes):
  lora, (base, adapters) = adapted(family, **changes), parameters(family)
  wanted = explicit(base, adapters, 6.0 / 4)
  assert_trees_close(lora.merge(base, adapters), wanted, rtol=1e-5, atol=1e-6)
  hidden = jax.jit(lora.model.hidden)
  moved = hidden(wanted, BATCH)
  assert np.max(np.abs(moved - hidden(base, BATCH))) > 0.1
  np.testing.assert_allclose(hidden(lora.join(base, adapters), BATCH), moved, rtol=1e-4, atol=1e-5)
  logits = jax.jit(lora.model.logits)
  joined = logits(lora.join(base, adapters), BATCH)
  np.testing.assert_allclose(joined, logits(wanted, BATCH), rtol=1e-4, atol=1e-4)


@EACH_FAMILY
def test_the_gradient_is_that_of_the_formula(family):
  lora, (base, adapters) = adapted(family), parameters(family)
  loss = SupervisedLoss(lora.model)

  def ours(adapters):
    return AdaptedLoss(loss, lora).sums(adapters, BATCH, None, base).terms["cross_entropy"].sum

  def formula(adapters):
    leaves, factors = dict(flat(base)), flat(adapters)
    for name in [name for name in factors if name.endswith("lora_a")]:
      kernel, b = name.replace("lora_a", "kernel"), name.replace("lora_a", "lora_b")
      product = jnp.einsum("lir,lro->lio", factors[name], factors[b])
      leaves[kernel] = leaves[kernel] + 1.5 * product
    merged = traverse_util.unflatten_dict(leaves, sep="/")
    return loss.sums(merged, BATCH).terms["cross_entropy"].sum

  ours, theirs = jax.jit(jax.grad(ours))(adapters), jax.jit(jax.grad(formula))(adapters)
  assert_trees_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_scale_is_alpha_by_the_rank_or_by_its_root():
  assert LoraConfig(16, 32.0, 0.0, False, ALL).scale == 2.0
  assert LoraConfig(16, 32.0, 0.0, True, ALL).scale == 8.0
  base, adapters = parameters("decoder")
  plain, stabilised = (adapted("decoder", rank_stabilised=x) for x in (False, True))
  name = "layers/mlp/down/kernel"
  moved = [
    flat(lora.merge(base, adapters))[name] - flat(base)[name] for lora in (plain, stabilised)
  ]
  np.testing.assert_allclose(moved[1], moved[0] * math.sqrt(4), rtol=1e-3, atol=1e-6)


def test_a_is_uniform_within_one_by_the_root_of_its_rows_and_b_is_zero():
  drawn = flat(adapted("decoder", rank=8).init(jax.random.key(0)))
  a = drawn["layers/mlp/down/lora_a"]
  assert a.shape == (2, 32, 8) and np.abs(a).max() <= 1 / math.sqrt(32)
  np.testing.assert_allclose(np.var(a, axis=(1, 2)), 1 / (3 * 32), rtol=0.2)
  assert np.any(a[0] != a[1])
  assert not np.any(drawn["layers/mlp/down/lora_b"])


def test_dropout_acts_on_the_adapters_input_alone():
  layer = Dense(1, ("embed", "mlp"), nn.initializers.zeros, "float32", "float32")
  numbers = {"kernel": 3.0, "lora_a": 5.0, "lora_b": 7.0}
  params = {name: jnp.full((1, 1), value) for name, value in numbers.items()}
  params["lora_dropout"] = jnp.float32(0.5)
  x = jnp.full((1, 1), 2.0)
  assert layer.apply({"params": params}, x) == 2 * 3 + 2 * 5 * 7
  apply = jax.vmap(lambda key: layer.apply({"params": params}, x, rngs={"dropout": key}))
  draws = np.ravel(apply(jax.random.split(jax.random.key(0), 4000)))
  assert set(draws) == {2 * 3, 2 * 3 + 2 * (2 * 5 * 7)}
  assert abs(np.mean(draws > 6) - 0.5) < 0.05


@EACH_FAMILY
def test_the_models_key_draws_the_adapters_dropout(family):
  base, adapters = parameters(family)
  joined = adapted(family, dropout=0.5).join(base, adapters)
  logits = jax.jit(adapted(family).model.logits)
  still = logits(adapted(family).join(base, adapters), BATCH)
  np.testing.assert_array_equal(logits(joined, BATCH), still)
  one, other = (logits(joined, BATCH, dropout_key=jax.random.key(i)) for i in (0, 1))
  assert np.any(one != still) and np.any(one != other)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"rank": 0}, "lora.rank=0 must be 1 or more"),
    ({"rank": 17}, "lora.rank=17 is more than 'layers/attention/key/kernel' has, a matrix of 16 x 16"),
    ({"alpha": 0.0}, "lora.alpha=0.0 must be above 0"),
    ({"dropout": 1.0}, "lora.dropout=1.0 is not in"),
    ({"patterns": ()}, "lora.patterns is empty"),
    ({"patterns": ("*atention*kernel",)}, "'*atention*kernel' matches no parameter"),
    ({"patterns": ("*embedding",)}, "'*embedding' matches 'embed/embedding', and only kernels"),
    ({"patterns": ("*mlp*",)}, "'*mlp*' matches 'layers/mlp_norm/scale', and only kernels"),
  ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_named(changes, words):
  with pytest.raises(ConfigError) as error:
    adapted("decoder", **changes)
  assert words in str(error.value)


def test_the_kernel_of_untied_logits_is_not_adapted():
  with pytest.raises(ConfigError, match="'unembed/kernel', and only kernels of layers"):
    adapted("encoder_decoder", patterns=("*kernel",))


def train_step(lora, tx, **settings):
  return make_train_step(AdaptedLoss(SupervisedLoss(lora.model), lora), tx, **settings)


@EACH_FAMILY
def test_sharded_over_eight_devices_a_step_is_that_of_one(family):
  lora, tx = adapted(family), adamw(constant(1e-2))
  (base, adapters), after = parameters(family), []
  for mesh, devices in ((MeshConfig(), 1), (MeshConfig(data=2, fsdp=2, tensor=2), 8)):
    layout = make_layout(lora.model, make_mesh(mesh, jax.devices()[:devices]))
    with layout.active():
      placed = jax.device_put(base, param_shardings(lora.model, layout))
      params = jax.device_put(jax.tree.map(jnp.copy, adapters), param_shardings(lora, layout))
      state = TrainState.create(params, tx)
      step = train_step(lora, tx, accumulation=2)
      state, metrics = step(state, BATCH, jax.random.key(0), placed)
      after.append((jax.device_get(state.params), metrics["loss"], metrics["grad_norm"]))
  assert_trees_close(after[1][0], after[0][0], rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(after[1][1:], after[0][1:], rtol=1e-5)


def test_each_side_of_an_adapter_is_cut_as_the_kernels_side_is():
  lora = adapted("decoder")
  layout = make_layout(lora.model, make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
  specs = {name: x.spec for name, x in flat(param_shardings(lora, layout)).items()}
  assert specs["layers/mlp/up/lora_a"] == jax.P(None, "fsdp", None)
  assert specs["layers/mlp/up/lora_b"] == jax.P(None, None, "tensor")


def test_no_array_of_a_step_is_a_gradient_or_copy_of_the_base(optimised_compilation):
  lora = adapted("decoder", emb_dim=256, mlp_dim=1024, num_layers=16, remat="full")
  tx = adamw(constant(1e-2))
  base, adapters = (jax.eval_shape(x.init, jax.random.key(0)) for x in (lora.model, lora))
  state = jax.eval_shape(lambda params: TrainState.create(params, tx), adapters)
  lowered = train_step(lora, tx, accumulation=2).lower(state, BATCH, jax.random.key(0), base)
  one_stack = base["layers"]["mlp"]["up"]["kernel"].size * 4
  assert lowered.compile().memory_analysis().temp_size_in_bytes < one_stack


@pytest.mark.parametrize(
  "make", [lambda axes: adamw(constant(1e-2)), lambda axes: adafactor(constant(1e-2), axes)]
)
def test_the_optimizer_knows_the_adapters_alone(make):
  lora = adapted("decoder")
  tx = make(lora.logical_axes())
  adapters = jax.eval_shape(lora.init, jax.random.key(0))
  state = jax.eval_shape(lambda params: TrainState.create(params, tx).opt_state, adapters)
  arrays = [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(state) if x.ndim > 1]
  owners = {jax.tree_util.keystr(path[-4:]) for path, _ in arrays}
  names = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(adapters)}
  assert owners == names
  assert sum(x.size for _, x in arrays) <= 2 * sum(x.size for x in jax.tree.leaves(adapters))


def test_training_moves_adapters_beside_a_base_in_bfloat16_and_saves_nothing_else(tmp_path):
  lora = adapted("decoder", dropout=0.1)
  base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters("decoder")[0])
  before = jax.tree.map(np.asarray, base)
  layout = make_layout(lora.model, make_mesh(MeshConfig(fsdp=2, data=1), jax.devices()[:2]))
  base = jax.device_put(base, param_shardings(lora.model, layout))
  schedule = constant(1e-2)

  def trainer(lora, steps):
    return Trainer(
      TrainerConfig(steps, 8, accumulation=2, progress=False),
      model=lora,
      loss=AdaptedLoss(SupervisedLoss(lora.model), lora),
      tx=adamw(schedule),
      schedule=schedule,
      layout=layout,
      batches=lambda row: iter([BATCH] * 99),
      directory=tmp_path,
      say=lambda text: None,
    )

  state = trainer(lora, 6).run(frozen=base).state
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  assert all(np.any(x) for x in jax.tree.leaves(state.params))
  assert_trees_equal(jax.device_get(base), before)
  saved, _ = Checkpoints(tmp_path / "checkpoints").restore_params(state.params)
  assert_trees_equal(saved, state.params)
  again = trainer(lora, 8).run(frozen=base)
  assert again.resumed_from == 6 and int(again.state.updates) == 8
  with pytest.raises(CheckpointError, match="lora_a"):
    trainer(adapted("decoder", rank=2), 8).run(frozen=base)
