"""Adafactor, against the numbers of T5X's own and of optax's.

`t5x_adafactor.npz` holds the parameters after 10 updates by `t5x/adafactor.py` of T5X at revision
cc342d419ec3e3e9c4bf1df33c82330cafdc1e16, run under JAX 0.10.2 on CPU with `standard_logical_factor_rules`,
`min_dim_size_to_factor=8`, the rate 0.1 / n, the parameters and gradients drawn below, and the
settings beside each case (T5X's names). "offset" was begun at step 1000.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from flan_jax.errors import ConfigError
from flan_jax.training import optimizers, schedules

PARAMETERS = {
  "embed/embedding": ((24, 8), ("vocab", "embed")),
  "encoder/layers/attention/query/kernel": ((3, 8, 12), ("layers", "embed", "heads")),
  "encoder/layers/attention/out/kernel": ((3, 12, 8), ("layers", "heads", "embed")),
  "encoder/layers/mlp/up/kernel": ((3, 8, 16), ("layers", "embed", "mlp")),
  "encoder/layers/norm/scale": ((3, 8), ("layers", "embed")),
  "encoder/norm/scale": ((8,), ("embed",)),
  "encoder/relative_bias/embedding": ((6, 4), ("relpos_buckets", "heads")),
}
AXES = traverse_util.unflatten_dict({name: axes for name, (_, axes) in PARAMETERS.items()}, sep="/")
CASES = {  # of T5X: ours
  "default": {},
  # multiply_by_parameter_scale=False
  "no parameter scale": {"multiply_by_parameter_scale": False},
  # max_parameter_scale=0.5, epsilon2=0.01
  "capped scale": {"max_parameter_scale": 0.5, "epsilon2": 0.01},
  # clipping_threshold=None
  "no clipping": {"clipping_threshold": None},
  # beta1=0.9, clipping_threshold=2
  "momentum": {"beta1": 0.9, "clipping_threshold": 2.0},
  # step_offset=900
  "offset": {"step_offset": 100},
  # weight_decay_rate=0.3, weight_decay_rate_lr_exponent=1, decay_rate=0.6
  "decay": {"weight_decay": 0.3, "decay": ("*",), "decay_rate": 0.6},
  # global_norm_clip_threshold=0.5, epsilon1=1e-4
  "norm clipping": {"clip_norm": 0.5, "epsilon1": 1e-4},
}


def drawn(seed, factor=1.0):
  draw = np.random.RandomState(seed)
  arrays = {}
  for name in sorted(PARAMETERS):
    arrays[name] = draw.standard_normal(PARAMETERS[name][0]).astype(np.float32)
    if "layers" in name:
      arrays[name][1] *= factor
  return arrays


def tree(arrays):
  return traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in arrays.items()}, sep="/")


def first_params():
  arrays = drawn(0)
  arrays["encoder/layers/mlp/up/kernel"] *= np.float32(1e-5)  # below the least scale
  arrays["encoder/norm/scale"] += np.float32(4)
  return tree(arrays)


def falling(count):
  return 0.1 / (count + 1.0)


@pytest.mark.parametrize("case", CASES)
def test_ten_updates_are_those_of_t5x(case):
  theirs = np.load(Path(__file__).parent / "t5x_adafactor.npz")
  tx = optimizers.adafactor(falling, AXES, min_dim_size_to_factor=8, **CASES[case])
  params, update = first_params(), jax.jit(tx.update)
  state = tx.init(params)
  for step in range(10):
    # One layer pulls fifty times harder, which is what a statistic over the whole stack gets wrong.
    updates, state = update(tree(drawn(100 + step, factor=50)), state, params)
    params = optax.apply_updates(params, updates)
  for name, ours in traverse_util.flatten_dict(params, sep="/").items():
    np.testing.assert_allclose(
      ours, theirs[f"{case}|{name}"], rtol=1e-5, atol=1e-7, err_msg=f"{case}: {name}"
    )


def test_the_matrices_of_a_stack_keep_means_alone_and_the_rest_keeps_everything():
  tx = optimizers.adafactor(schedules.constant(0.1), AXES, min_dim_size_to_factor=8, beta1=0.9)
  state = tx.init(first_params())
  shapes = {
    f"{jax.tree_util.keystr(path)}": leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if "'out'" in jax.tree_util.keystr(path) or "'relative_bias'" in jax.tree_util.keystr(path)
  }
  assert sorted(shapes.values()) == [(3, 8), (3, 12), (3, 12, 8), (6, 4), (6, 4)]


def test_small_matrices_keep_everything():
  state = optimizers.adafactor(schedules.constant(0.1), AXES).init(first_params())
  held = sum(leaf.size for leaf in jax.tree.leaves(state))
  assert held == 1 + sum(leaf.size for leaf in jax.tree.leaves(first_params()))


@pytest.mark.parametrize(
  "settings",
  [
    {"decay_rate": 1.0},
    {"beta1": -0.1},
    {"clipping_threshold": 0.5},
    {"step_offset": -1},
    {"max_parameter_scale": 1e-4},
    {"weight_decay": -1.0},
  ],
)
def test_numbers_out_of_range_are_refused(settings):
  with pytest.raises(ConfigError, match=next(iter(settings))):
    optimizers.adafactor(schedules.constant(0.1), AXES, **settings)
