"""Optimizers, against optax on the layers taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flan_jax.errors import ConfigError
from flan_jax.training import optimizers, schedules

LAYERS = 3


def stacked_params(seed=0):
  draw = np.random.default_rng(seed)

  def one(*shape):
    return jnp.asarray(draw.normal(size=shape), jnp.float32)

  return {
    "embed": {"embedding": one(16, 8)},
    "encoder": {"layers": {"mlp": {"kernel": one(2, 8, 8)}, "norm": {"scale": one(2, 8)}}},
    "layers": {
      "attention": {"kernel": one(LAYERS, 8, 12)},
      "norm": {"scale": one(LAYERS, 8)},
    },
  }


def apart(tree):
  """The same parameters with every layer under its own name, as an unscanned model has them."""
  return {
    "embed": tree["embed"],
    **{f"encoder{i}": jax.tree.map(lambda x, i=i: x[i], tree["encoder"]["layers"]) for i in (0, 1)},
    **{f"layer{i}": jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in range(LAYERS)},
  }


def uneven_gradients(step):
  gradients = stacked_params(seed=100 + step)
  # One layer pulls fifty times harder, which is what a statistic over the whole stack gets wrong.
  gradients["layers"] = jax.tree.map(lambda g: g.at[1].multiply(50.0), gradients["layers"])
  return gradients


def run(tx, params, gradients_at, steps=4):
  update = jax.jit(tx.update)
  state = tx.init(params)
  for step in range(steps):
    updates, state = update(gradients_at(step), state, params)
    params = optax.apply_updates(params, updates)
  return params


def assert_trees_close(ours, theirs):
  for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
    name = jax.tree_util.keystr(path)
    got = ours
    for key in path:
      got = got[key.key]
    np.testing.assert_allclose(got, leaf, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_adafactor_on_a_stack_is_optax_adafactor_on_separate_layers(momentum):
  ours = optimizers.adafactor(schedules.constant(0.1), min_dim_size_to_factor=8, momentum=momentum)
  theirs = optax.adafactor(0.1, min_dim_size_to_factor=8, momentum=momentum)
  got = run(ours, stacked_params(), uneven_gradients)
  want = run(theirs, apart(stacked_params()), lambda step: apart(uneven_gradients(step)))
  assert_trees_close(apart(got), want)


def test_adafactor_factors_the_matrices_of_a_stack():
  state = optimizers.adafactor(schedules.constant(0.1), min_dim_size_to_factor=8).init(
    stacked_params()
  )
  shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
  assert (LAYERS, 8, 12) not in shapes
  assert {(LAYERS, 8), (LAYERS, 12)} <= shapes


def test_adamw_is_optax_clipping_and_adamw():
  ours = optimizers.adamw(
    schedules.constant(0.1), weight_decay=0.3, decay=("*kernel", "embed/*"), clip_norm=0.5
  )

  def mask(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)

  theirs = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.3, mask=mask)
  )
  got = run(ours, stacked_params(), uneven_gradients)
  want = run(theirs, apart(stacked_params()), lambda step: apart(uneven_gradients(step)))
  assert_trees_close(apart(got), want)


def test_adafactor_decay_is_scaled_by_the_rate():
  params = stacked_params()
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = optimizers.adafactor(schedules.constant(0.1), weight_decay=0.5, decay=("layers/*kernel",))
  got = run(tx, params, lambda _: zero, steps=1)
  kernel = params["layers"]["attention"]["kernel"]
  np.testing.assert_allclose(got["layers"]["attention"]["kernel"], 0.95 * kernel, rtol=1e-6)
  np.testing.assert_array_equal(got["embed"]["embedding"], params["embed"]["embedding"])


def test_a_pattern_that_matches_nothing_names_what_there_is():
  tx = optimizers.adamw(
    schedules.constant(0.1), weight_decay=0.1, decay=("layers/atention/kernel",)
  )
  with pytest.raises(ConfigError, match=r"'layers/atention/kernel'.*'layers/attention/kernel'"):
    tx.init(stacked_params())


@pytest.mark.parametrize(
  "settings",
  [{"b1": 1.0}, {"b2": -0.1}, {"weight_decay": -1.0}, {"clip_norm": 0.0}],
)
def test_numbers_out_of_range_are_refused(settings):
  with pytest.raises(ConfigError):
    optimizers.adamw(schedules.constant(0.1), **settings)
