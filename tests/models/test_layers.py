"""Layers against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

import flan_jax.models.layers as layers
from flan_jax.models.dot_product_attention import dot_product_attention
from flan_jax.models.layers import Dense, embed_tokens, matmul
from flan_jax.models.positions import relative_bucket, rotary_angles, rotate


def normal(*shape: int, seed: int = 0) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("width", "out"), [(4, 5), (5, 4)])
def test_the_product_has_the_gradients_of_a_plain_one(width, out):
  x, kernel, g = normal(2, 3, width), normal(width, out, seed=1), normal(2, 3, out, seed=2)
  ours = jax.vjp(matmul, x, kernel)[1](g)
  plain = jax.vjp(lambda x, kernel: x @ kernel, x, kernel)[1](g)
  for a, b in zip(ours, plain, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("width", "out"), [(4, 5), (5, 4)])
def test_a_bfloat16_product_gives_a_float32_kernel_a_float32_gradient(width, out):
  x, kernel = normal(2, 300, width).astype(jnp.bfloat16), normal(width, out, seed=1)
  gradient = jax.grad(lambda kernel: matmul(x, kernel).astype(jnp.float32).sum())(kernel)
  exact = jnp.broadcast_to(x.astype(jnp.float32).sum((0, 1))[:, None], (width, out))
  assert gradient.dtype == jnp.float32
  np.testing.assert_allclose(gradient, exact, rtol=1e-5, atol=1e-5)


def test_a_bias_of_bfloat16_products_has_a_gradient_summed_in_float32():
  layer = Dense(5, ("embed", "mlp"), nn.initializers.ones_init(), "bfloat16", "float32", bias=True)
  x = normal(8, 705, 4)
  params = layer.init(jax.random.key(0), x)
  gradient = jax.grad(lambda params: layer.apply(params, x).astype(jnp.float32).sum())(params)
  np.testing.assert_array_equal(nn.unbox(gradient)["params"]["bias"], np.full(5, 8 * 705))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
  ("cut", "rows"),
  [
    ([("batch", ("data", "fsdp"))], 8),
    ([("batch", ("data", "fsdp"))], 3),
    ([("batch", "data"), ("length", "fsdp")], 4),
    ([("batch", "data")], 4),
  ],
  ids=["batch", "rows that do not divide", "length", "neither"],
)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (1, 8, 1)], ids=str)
def test_a_bfloat16_lookup_sums_gradients_in_float32_on_every_mesh(
  sizes, cut, rows, platform, dtype, monkeypatch
):
  monkeypatch.setattr(layers, "platform", lambda: platform)
  # Hundreds of tokens of one word: in bfloat16 a sum of ones ends at 256.
  tokens = jnp.tile(jnp.array([3] * 701 + [1, 6, 7], jnp.int32), (rows, 1)).at[0, 0].set(2)
  table = normal(8, 16).astype(dtype)
  axes = (*cut, ("embed", "fsdp"), ("vocab", "tensor"))
  mesh = jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  factors = normal(rows, 704, 16, seed=1).round()  # whose sums are exact
  with jax.set_mesh(mesh), nn.logical_axis_rules(axes):
    found, pull = jax.vjp(jax.jit(lambda table: embed_tokens(table, tokens, "bfloat16")), table)
    [gradient] = pull(factors.astype(jnp.bfloat16))
  np.testing.assert_array_equal(found, table.astype(jnp.bfloat16)[tokens])
  exact = np.zeros((8, 16), np.float32)
  np.add.at(exact, tokens, factors)
  assert gradient.dtype == dtype
  np.testing.assert_array_equal(gradient, jnp.asarray(exact).astype(dtype))


def test_rotary_scores_depend_on_the_distance_alone():
  query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

  def score(query_position: int, key_position: int) -> float:
    turned = [
      rotate(x, rotary_angles(jnp.array([[position]]), 8, 100.0))
      for x, position in ((query, query_position), (key, key_position))
    ]
    return float(jnp.vdot(*turned))

  assert score(5, 3) == pytest.approx(score(905, 903), rel=1e-3)
  assert score(5, 3) != pytest.approx(score(5, 4), rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 400))
def test_causal_buckets_never_decrease_with_the_distance(distance: int):
  near, far = relative_bucket(jnp.array([-distance, -distance - 1]), 32, 128, False)
  assert 0 <= near <= far <= 31


def test_buckets_are_exact_near_and_shared_far():
  distance = jnp.array([0, -1, -7, -8, -127, -5000, 1, 7, 5000])
  both_ways = relative_bucket(distance, 32, 128, True)
  np.testing.assert_array_equal(both_ways, [0, 1, 7, 8, 15, 15, 17, 23, 31])
  np.testing.assert_array_equal(relative_bucket(-distance[:3], 32, 128, False), [0, 0, 0])


def test_a_key_head_serves_its_group_of_query_heads():
  query, key, value = normal(1, 3, 4, 8), normal(1, 5, 2, 8, seed=1), normal(1, 5, 2, 8, seed=2)
  mask = jnp.ones((1, 3, 5), jnp.bool_)
  grouped = dot_product_attention(query, key, value, mask)
  repeated = dot_product_attention(
    query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2), mask
  )
  np.testing.assert_allclose(grouped, repeated, rtol=1e-5, atol=1e-6)


def test_a_row_that_may_see_nothing_stays_finite():
  x = normal(1, 3, 1, 8)
  blind = jnp.zeros((1, 3, 3), jnp.bool_)
  value, gradient = jax.value_and_grad(lambda x: dot_product_attention(x, x, x, blind).sum())(x)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_float_mask_is_added_to_the_scores_and_has_a_gradient():
  x = normal(1, 3, 1, 8)
  seen = jnp.tril(jnp.ones((1, 3, 3), jnp.bool_))
  added = jnp.where(seen, 0.0, -1e9)
  np.testing.assert_allclose(
    dot_product_attention(x, x, x, added), dot_product_attention(x, x, x, seen), rtol=1e-6
  )
  gradient = jax.grad(lambda mask: dot_product_attention(x, x, x, mask)[0, 2].sum())(added)
  assert np.abs(gradient[0, 2]).max() > 0
