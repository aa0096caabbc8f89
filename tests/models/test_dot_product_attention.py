"""Attention in blocks and in a loop over tiles, with a gradient of its own, against attention written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flan_jax.models.dot_product_attention import LowerTriangular, dot_product_attention

LENGTHS = [5, 64, 130, 256, 517]  # From 256 on by the loop, on one CPU.


def plain(query, key, value, mask, bias=None, scale=1.0, kept=None, rate=0.0, softcap=None):
  """The equation, head by head, in whole arrays; JAX differentiates it."""
  groups = query.shape[2] // key.shape[2]
  key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
  scores = jnp.einsum("btnh,bsnh->bnts", query, key) * scale
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias is not None:
    scores = scores + bias
  hidden = jnp.where(mask, 0.0, -jnp.inf) if mask.dtype == jnp.bool_ else mask
  weights = jax.nn.softmax(scores + hidden[:, None], axis=-1)
  if kept is not None:
    batch, kv_heads, length, groups, source = kept.shape
    kept = kept.swapaxes(2, 3).reshape(batch, kv_heads * groups, length, source)
    weights = jnp.where(kept, weights / (1 - rate), 0.0)
  return jnp.einsum("bnts,bsnh->btnh", weights, value).reshape(*query.shape[:2], -1)


def packed(length: int) -> jax.Array:
  """Causal, over two examples a row that end elsewhere in each row."""
  ids = jnp.arange(length)[None, :] >= jnp.array([[length // 3], [length // 2]])
  index = jnp.arange(length)
  return (index[:, None] >= index[None, :]) & (ids[:, :, None] == ids[:, None, :])


def arrays(length: int, dtype=jnp.float32):
  draw = np.random.default_rng(length)
  shapes = [(2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8)]
  return [jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes], draw


def assert_alike(ours, theirs, arguments, rtol=1e-4, atol=1e-5):
  """The same value, and the same gradient for each argument."""
  seed = np.random.default_rng(1).standard_normal(theirs(*arguments).shape)
  found, expected = (
    jax.jit(lambda *x, f=f: (f(*x), jax.vjp(f, *x)[1](jnp.asarray(seed, f(*x).dtype))))(*arguments)
    for f in (ours, theirs)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_blocks_under_a_triangle_give_what_whole_arrays_give(length: int):
  arguments, _ = arrays(length)
  mask = packed(length)
  assert_alike(
    lambda q, k, v: dot_product_attention(q, k, v, LowerTriangular(mask), scale=0.3),
    lambda q, k, v: plain(q, k, v, mask, scale=0.3),
    arguments,
  )


@pytest.mark.parametrize("triangle", [False, True])
@pytest.mark.parametrize("length", [5, 130, 300])
def test_bias_softcap_and_dropout_have_their_part_in_value_and_gradient(length, triangle):
  arguments, draw = arrays(length)
  bias = jnp.asarray(draw.standard_normal((1, 4, length, length)), jnp.float32)
  kept = jnp.asarray(draw.random((2, 2, length, 2, length)) > 0.25)
  mask = packed(length)
  ours = LowerTriangular(mask) if triangle else mask
  assert_alike(
    lambda q, k, v, b: dot_product_attention(q, k, v, ours, b, 0.5, kept, 0.25, softcap=2.0),
    lambda q, k, v, b: plain(q, k, v, mask, b, 0.5, kept, 0.25, softcap=2.0),
    [*arguments, bias],
  )


@pytest.mark.parametrize(("length", "source"), [(4, 9), (260, 600)])
def test_other_keys_than_queries_and_an_added_mask_that_all_queries_share(length, source):
  (query, key, value), draw = arrays(source)
  query = query[:, :length]
  mask = jnp.asarray(draw.standard_normal((2, 1, source)), jnp.float32)
  assert_alike(dot_product_attention, plain, [query, key, value, mask])


@pytest.mark.parametrize("length", [300, 512])
def test_added_minus_infinity_hides_a_key_however_long_the_row(length):
  arguments, _ = arrays(length)
  mask = packed(length)
  added = jnp.where(mask, 0.0, -jnp.inf)
  assert_alike(
    lambda q, k, v: dot_product_attention(q, k, v, added),
    lambda q, k, v: plain(q, k, v, mask),
    arguments,
  )


@pytest.mark.parametrize("length", [256, 512])
def test_a_row_that_the_lowest_number_hides_from_every_key_is_finite(length):
  arguments, _ = arrays(length)
  added = jnp.zeros((1, length, length)).at[:, -5:].set(jnp.finfo(jnp.float32).min)
  out, backward = jax.vjp(lambda *x: dot_product_attention(*x, added), *arguments)
  assert all(np.isfinite(x).all() for x in (out, *backward(jnp.ones_like(out))))


@pytest.mark.parametrize("rows_of_bias", [1, 2])
def test_the_loop_goes_over_examples_that_lie_elsewhere_among_queries_and_keys(rows_of_bias):
  (query, key, value), draw = arrays(600)
  query = query[:, :300]
  ids = jnp.arange(300)[None] >= jnp.array([[40], [290]])
  key_ids = jnp.arange(600)[None] >= jnp.array([[550], [100]])
  mask = ids[:, :, None] == key_ids[:, None, :]
  bias = jnp.asarray(draw.standard_normal((rows_of_bias, 4, 300, 600)), jnp.float32)
  assert_alike(
    lambda q, k, v, b: dot_product_attention(q, k, v, mask, b),
    lambda q, k, v, b: plain(q, k, v, mask, b),
    [query, key, value, bias],
  )


@pytest.mark.parametrize("triangle", [False, True])
def test_the_loop_passes_over_keys_that_no_query_of_a_tile_sees(triangle):
  arguments, _ = arrays(512)
  ids = jnp.arange(512) >= 256
  mask = jnp.broadcast_to(ids[:, None] == ids[None, :], (2, 512, 512))
  mask = LowerTriangular(mask & jnp.tril(mask)) if triangle else mask

  def of_the_first_example(query, key, value):
    key, value = (x.at[:, 256:].set(jnp.nan) for x in (key, value))
    return dot_product_attention(query, key, value, mask)[:, :256]

  out, backward = jax.vjp(of_the_first_example, *arguments)
  assert np.isfinite(out).all()
  assert all(np.isfinite(x[:, :256]).all() for x in backward(jnp.ones_like(out)))


def test_narrow_numbers_are_summed_in_float32():
  arguments, _ = arrays(130, jnp.bfloat16)
  mask = packed(130)
  wide = [x.astype(jnp.float32) for x in arguments]
  ours, theirs = (
    jax.jit(jax.grad(lambda *x, f=f: f(*x).astype(jnp.float32).sum(), (0, 1, 2)))(*given)
    for f, given in (
      (lambda q, k, v: dot_product_attention(q, k, v, LowerTriangular(mask)), arguments),
      (lambda q, k, v: plain(q, k, v, mask), wide),
    )
  )
  for found, expected in zip(ours, theirs, strict=True):
    assert found.dtype == jnp.bfloat16
    error = np.abs(found.astype(jnp.float32) - expected).mean() / np.abs(expected).mean()
    assert error < 0.02


def test_a_row_that_sees_nothing_averages_all_values_and_moves_no_score():
  (query, key, value), _ = arrays(5)
  mask = jnp.ones((2, 5, 5), jnp.bool_).at[0, 2].set(False)
  out = dot_product_attention(query, key, value, mask)
  average = jnp.repeat(value[0].mean(0), 2, axis=0).reshape(-1)
  np.testing.assert_allclose(out[0, 2], average, rtol=1e-5)
  gradient = jax.grad(lambda q: dot_product_attention(q, key, value, mask)[0, 2, 0])(query)
  assert not np.any(gradient)


def test_no_array_of_scores_is_kept_for_the_backward_pass():
  length = 256
  arguments, _ = arrays(length)
  mask = LowerTriangular(packed(length))
  _, backward = jax.vjp(lambda q, k, v: dot_product_attention(q, k, v, mask), *arguments)
  held = [x for x in jax.tree.leaves(backward) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert held and max(x.size for x in held) == arguments[0].size
