"""Optimizers, against optax on the layers taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from flan_jax.errors import ConfigError, UnknownName
from flan_jax.training import optimizers, schedules
from flan_jax.training.averages import averaged_params
from flan_jax.training.parameter_patterns import matching

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


AXES = {
  "embed": {"embedding": ("vocab", "embed")},
  "encoder": {
    "layers": {
      "mlp": {"kernel": ("layers", "embed", "mlp")},
      "norm": {"scale": ("layers", "embed")},
    }
  },
  "layers": {
    "attention": {"kernel": ("layers", "embed", "heads")},
    "norm": {"scale": ("layers", "embed")},
  },
}


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_adafactor_on_a_stack_is_optax_adafactor_on_separate_layers(momentum):
  ours = optimizers.adafactor(
    schedules.constant(0.1), AXES, min_dim_size_to_factor=8, beta1=momentum
  )
  theirs = optax.adafactor(0.1, min_dim_size_to_factor=8, momentum=momentum)
  got = run(ours, stacked_params(), uneven_gradients)
  want = run(theirs, apart(stacked_params()), lambda step: apart(uneven_gradients(step)))
  assert_trees_close(apart(got), want)


def test_lion_on_a_stack_is_optax_lion_on_separate_layers():
  ours = optimizers.lion(schedules.constant(0.01), weight_decay=0.3, decay=("*",), clip_norm=None)
  theirs = optax.lion(0.01, weight_decay=0.3)
  got = run(ours, stacked_params(), uneven_gradients)
  want = run(theirs, apart(stacked_params()), lambda step: apart(uneven_gradients(step)))
  assert_trees_close(apart(got), want)


def test_muon_on_a_stack_is_optax_muon_on_separate_layers_and_adam_on_the_rest():
  ours = optimizers.muon(
    schedules.constant(0.1), matrices=("*layers/*kernel",), weight_decay=0.3, clip_norm=None
  )
  got = apart(run(ours, stacked_params(), uneven_gradients))

  def part(tree, kernels):
    return {
      path: leaf
      for path, leaf in traverse_util.flatten_dict(apart(tree)).items()
      if (path[-1] == "kernel") == kernels
    }

  for kernels, theirs in {
    True: optax.contrib.muon(0.1, weight_decay=0.3, consistent_rms=0.2),
    False: optax.adam(0.1),
  }.items():
    want = run(
      theirs,
      part(stacked_params(), kernels),
      lambda step, kernels=kernels: part(uneven_gradients(step), kernels),
    )
    assert_trees_close(got, traverse_util.unflatten_dict(want))


def test_muon_refuses_what_is_no_matrix():
  tx = optimizers.muon(schedules.constant(0.1), matrices=("layers/*",))
  with pytest.raises(ConfigError, match="'layers/norm/scale', which is no matrix"):
    tx.init(stacked_params())
  optimizers.muon(schedules.constant(0.1), matrices=("layers/*", "!*norm*")).init(stacked_params())


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
  tx = optimizers.adafactor(
    schedules.constant(0.1), AXES, weight_decay=0.5, decay=("layers/*kernel",)
  )
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
  [
    {"b1": 1.0},
    {"b2": -0.1},
    {"eps": float("nan")},
    {"weight_decay": -1.0},
    {"weight_decay": float("inf")},
    {"clip_norm": 0.0},
    {"multipliers": {"*": "x"}},
    {"multipliers": {"*": True}},
  ],
)
def test_numbers_out_of_range_are_refused(settings):
  with pytest.raises(ConfigError, match=next(iter(settings))):
    optimizers.adamw(schedules.constant(0.1), **settings)


def test_a_multiplier_that_a_later_one_overrules_is_refused():
  tx = optimizers.adamw(schedules.constant(0.1), multipliers={"*layers*": 0.0, "*": 1.0})
  with pytest.raises(ConfigError, match=r"multipliers: '\*layers\*' has no effect.*put it after"):
    tx.init(stacked_params())


@pytest.mark.parametrize(
  "settings",
  [
    {"epsilon1": -1.0},
    {"epsilon2": float("nan")},
    {"multiply_by_parameter_scale": False, "epsilon2": 1e-2},
    {"multiply_by_parameter_scale": False, "max_parameter_scale": 1.0},
  ],
)
def test_bounds_that_adafactor_cannot_obey_are_refused(settings):
  with pytest.raises(ConfigError, match=list(settings)[-1]):
    optimizers.adafactor(schedules.constant(0.1), {}, **settings)


def test_patterns_are_looked_at_where_nothing_decays_yet():
  tx = optimizers.lion(schedules.constant(0.1), decay=("*kernl",))
  with pytest.raises(ConfigError, match=r"decay: .*'\*kernl'.*Did you mean 'kernel'"):
    tx.init(stacked_params())


def adam_by_numpy(params, gradients_at, correction, steps, eps=0.05, rate=0.1, b1=0.9, b2=0.99):
  """TensorFlow 1's Adam, or BERT's, in float64."""
  first, second = 0.0, 0.0
  for t in range(1, steps + 1):
    gradient = gradients_at(t - 1)
    first = b1 * first + (1 - b1) * gradient
    second = b2 * second + (1 - b2) * gradient**2
    now = rate * np.sqrt(1 - b2**t) / (1 - b1**t) if correction == "rate" else rate
    params = params - now * first / (np.sqrt(second) + eps)
  return params


@pytest.mark.parametrize("correction", ["rate", "none"])
def test_adam_with_the_epsilon_of_tensorflow_and_without_bias_correction(correction):
  ours = optimizers.adamw(
    schedules.constant(0.1), b2=0.99, eps=0.05, bias_correction=correction, clip_norm=None
  )
  got = run(ours, stacked_params(), uneven_gradients, steps=6)
  want = adam_by_numpy(
    np.float64(stacked_params()["embed"]["embedding"]),
    lambda step: np.float64(uneven_gradients(step)["embed"]["embedding"]),
    correction,
    steps=6,
  )
  np.testing.assert_allclose(got["embed"]["embedding"], want, rtol=2e-5, atol=1e-6)


@pytest.mark.oracle
def test_adamw_is_that_of_torch():
  import torch

  ours = optimizers.adamw(
    schedules.constant(0.1), b2=0.99, eps=0.05, weight_decay=0.3, decay=("*",), clip_norm=0.5
  )
  got = run(ours, stacked_params(), uneven_gradients, steps=6)
  leaves = [torch.tensor(np.asarray(leaf)) for leaf in jax.tree.leaves(stacked_params())]
  theirs = torch.optim.AdamW(leaves, lr=0.1, betas=(0.9, 0.99), eps=0.05, weight_decay=0.3)
  for step in range(6):
    for leaf, gradient in zip(leaves, jax.tree.leaves(uneven_gradients(step)), strict=True):
      leaf.grad = torch.tensor(np.asarray(gradient))
    torch.nn.utils.clip_grad_norm_(leaves, 0.5)
    theirs.step()
  for mine, leaf in zip(jax.tree.leaves(got), leaves, strict=True):
    np.testing.assert_allclose(mine, leaf.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_an_unknown_bias_correction_is_named():
  with pytest.raises(UnknownName, match="'moment'.*'moments'"):
    optimizers.adamw(schedules.constant(0.1), bias_correction="moment")


def test_the_last_pattern_that_speaks_of_a_parameter_counts():
  chosen = matching(stacked_params(), ("*", "!*norm*|*bias*", "layers/norm/*"))
  assert chosen == {
    "embed": {"embedding": True},
    "encoder": {"layers": {"mlp": {"kernel": True}, "norm": {"scale": False}}},
    "layers": {"attention": {"kernel": True}, "norm": {"scale": True}},
  }


SHELF = {
  "adamw": optimizers.adamw,
  "adafactor": lambda schedule, **settings: optimizers.adafactor(schedule, AXES, **settings),
  "lion": optimizers.lion,
  "muon": optimizers.muon,
}


@pytest.mark.parametrize("name", SHELF)
def test_frozen_parameters_stay_as_they_are_and_cost_nothing(name):
  settings = {"weight_decay": 0.1, "decay": ("*",), "clip_norm": 0.5, "ema_decay": 0.9}
  freezing = {"*embed*": 0.0, "*norm*": 0.0}
  tx = SHELF[name](schedules.constant(0.1), multipliers=freezing, **settings)

  def without(tree):
    kept = {p: leaf for p, leaf in traverse_util.flatten_dict(tree).items() if p[-1] == "kernel"}
    return traverse_util.unflatten_dict(kept)

  params = stacked_params()
  params["embed"]["embedding"] = params["embed"]["embedding"].at[0].set(-0.0)
  got = run(tx, params, uneven_gradients)
  for path, leaf in traverse_util.flatten_dict(params).items():
    now = traverse_util.flatten_dict(got)[path]
    assert (np.asarray(now).tobytes() == np.asarray(leaf).tobytes()) == (path[-1] != "kernel"), path

  # The kernels move as if there were nothing else: their norm alone is clipped.
  alone = SHELF[name](schedules.constant(0.1), **settings)
  assert_trees_close(got, run(alone, without(params), lambda n: without(uneven_gradients(n))))
  sizes = [
    sum(x.size for x in jax.tree.leaves(tree))
    for tree in (tx.init(params), alone.init(without(params)))
  ]
  assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", SHELF)
def test_a_multiplier_scales_rate_and_decay_of_its_parameters(name):
  settings = {"weight_decay": 0.1, "decay": ("*",)}
  params, gradients = stacked_params(), uneven_gradients(0)
  updates = []
  for factors in ({}, {"*": 0.5, "layers/*": 3.0}):
    tx = SHELF[name](schedules.constant(0.1), multipliers=factors, **settings)
    updates.append(tx.update(gradients, tx.init(params), params)[0])
  plain, scaled = map(traverse_util.flatten_dict, updates)
  for path in plain:
    factor = 3.0 if path[0] == "layers" else 0.5
    np.testing.assert_allclose(scaled[path], factor * plain[path], rtol=1e-6)


@pytest.mark.parametrize(
  ("factors", "message"),
  [
    ({"*nrom*": 0.0}, r"'\*nrom\*' matches no parameter"),
    ({"*": 0.0}, "freeze every parameter"),
    ({"*": -1.0}, "factor of 0 or more"),
    ({"!*norm*": 1.0}, "without '!'"),
  ],
)
def test_multipliers_that_cannot_be_obeyed_are_refused(factors, message):
  with pytest.raises(ConfigError, match=message):
    optimizers.adamw(schedules.constant(0.1), multipliers=factors).init(stacked_params())


def test_averages_are_those_of_optax_over_the_parameters_of_each_update():
  settings = {"multipliers": {"*embed*": 0.0}}
  tx = optimizers.adamw(schedules.constant(0.1), ema_decay=0.7, **settings)
  params = stacked_params()
  state, average = tx.init(params), optax.EmaState(jnp.int32(0), params)
  for step in range(5):
    updates, state = tx.update(uneven_gradients(step), state, params)
    params = optax.apply_updates(params, updates)
    _, average = optax.ema(0.7, debias=False).update(params, average)
  assert_trees_close(averaged_params(state, params), average.ema)
  np.testing.assert_array_equal(
    averaged_params(state, params)["embed"]["embedding"], params["embed"]["embedding"]
  )


def test_without_an_average_the_parameters_are_taken():
  tx, params = optimizers.adamw(schedules.constant(0.1)), stacked_params()
  assert averaged_params(tx.init(params), params) is not None
  assert_trees_close(averaged_params(tx.init(params), params), params)


@pytest.mark.parametrize("ema_decay", [0.0, 1.0, -0.5])
def test_an_average_that_would_not_average_is_refused(ema_decay):
  with pytest.raises(ConfigError, match="ema_decay"):
    optimizers.adamw(schedules.constant(0.1), ema_decay=ema_decay)
