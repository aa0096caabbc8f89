"""Blockwise scores against optax on whole logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import DECODER

from flan_jax.models import LMHead
from flan_jax.training.cross_entropy import token_scores
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh


@pytest.fixture(autouse=True)
def strict():
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    yield


def problem(batch=3, length=7, width=5, words=23, seed=0):
  draw = np.random.default_rng(seed)
  return (
    draw.normal(size=(batch, length, width)).astype(np.float32),
    draw.normal(size=(width, words)).astype(np.float32) * 2,
    draw.integers(0, words, (batch, length)).astype(np.int32),
    draw.random((batch, length)) < 0.4,
    draw.normal(size=(4, batch, length)).astype(np.float32),
  )


def whole(hidden, unembedding, targets, asked, bias=None, softcap=None):
  """The four scores by optax and jax.nn, from all the logits at once."""
  logits = jnp.einsum("btd,dv->btv", hidden, unembedding)
  if bias is not None:
    logits = logits + bias[None, None, :]
  if softcap is not None:
    logits = jnp.tanh(logits / softcap) * softcap
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    logprob = -optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    log_probs = jax.nn.log_softmax(logits)
    best = jax.lax.stop_gradient(log_probs.max(axis=-1))
    scores = jnp.stack([logprob, jax.nn.logsumexp(logits, axis=-1), log_probs.mean(axis=-1), best])
    return jnp.where(asked, scores, 0.0)


@settings(deadline=None, max_examples=15)
@given(
  batch=st.integers(1, 3),
  length=st.integers(1, 9),
  words=st.integers(2, 30),
  token_block=st.integers(1, 30),
  vocabulary_block=st.integers(1, 40),
  seed=st.integers(0, 99),
  softcap=st.sampled_from([None, 1.5]),
)
def test_any_blocking_gives_the_values_and_gradients_of_the_whole(
  batch, length, words, token_block, vocabulary_block, seed, softcap
):
  hidden, unembedding, targets, asked, pulls = problem(batch, length, 4, words, seed)
  bias = np.random.default_rng(seed).normal(size=words).astype(np.float32)

  def ours(h, w, b):
    blocks = {"token_block": token_block, "vocabulary_block": vocabulary_block}
    scores = token_scores(h, LMHead(w, b, softcap), targets, asked, **blocks)
    return jnp.sum(jnp.stack(scores) * pulls), scores

  def theirs(h, w, b):
    scores = whole(h, w, targets, asked, b, softcap)
    return jnp.sum(scores * pulls), scores

  def values_and_gradients(scores):
    made = jax.jit(jax.value_and_grad(scores, (0, 1, 2), has_aux=True))
    (_, values), gradients = made(hidden, unembedding, bias)
    return values, gradients

  (got, got_gradients), (want, want_gradients) = map(values_and_gradients, (ours, theirs))
  np.testing.assert_allclose(jnp.stack(got), want, rtol=2e-5, atol=2e-5)
  for ours_, theirs_ in zip(got_gradients, want_gradients, strict=True):
    np.testing.assert_allclose(ours_, theirs_, rtol=1e-4, atol=5e-5)


def test_all_tokens_are_scored_when_nobody_says_which():
  hidden, unembedding, targets, _, _ = problem()
  got = token_scores(hidden, LMHead(unembedding), targets)
  want = whole(hidden, unembedding, targets, jnp.ones(targets.shape, bool))
  np.testing.assert_allclose(jnp.stack(got), want, rtol=2e-5, atol=2e-5)


def test_the_target_is_the_most_probable_word_where_it_scores_as_much():
  hidden, unembedding, targets, _, _ = problem(batch=8, length=16, width=2, words=6)
  best = jnp.argmax(jnp.einsum("btd,dv->btv", hidden, unembedding), axis=-1)
  got = token_scores(hidden, LMHead(unembedding), targets, vocabulary_block=4)
  found = got.logprob >= got.best_logprob
  np.testing.assert_array_equal(found, targets == best)
  assert 0 < found.sum() < found.size


def test_nothing_asked_is_nothing_scored_and_pulls_on_nothing():
  hidden, unembedding, targets, _, _ = problem()
  none = np.zeros(targets.shape, bool)
  total, gradients = jax.value_and_grad(
    lambda h, w: sum(x.sum() for x in token_scores(h, LMHead(w), targets, none)), (0, 1)
  )(hidden, unembedding)
  assert total == 0
  assert all(not np.any(gradient) for gradient in gradients)


@pytest.mark.parametrize("broken", ["hidden", "table"])
def test_what_is_no_number_is_no_score_and_tokens_that_nobody_asks_for_are_none(broken):
  hidden, unembedding, targets, asked, _ = problem(batch=4, length=16)
  arrays = {"hidden": hidden, "table": unembedding}
  arrays[broken].flat[0] = np.nan
  asked[0, 0] = True
  asked[:, 8:] = False
  got = token_scores(hidden, LMHead(unembedding), targets, asked, token_block=8)
  assert np.isnan(got.logprob[0, 0])
  assert not np.any(np.stack(got)[:, ~asked])


def test_logits_as_large_as_float32_holds_do_not_overflow():
  hidden, unembedding, targets, asked, _ = problem()
  got = token_scores(hidden * 1e18, LMHead(unembedding * 1e18), targets, asked, vocabulary_block=5)
  assert np.all(np.isfinite(np.stack(got)))


def test_bfloat16_gives_float32_scores_close_to_those_of_float32():
  hidden, unembedding, targets, asked, _ = problem()
  got = token_scores(hidden.astype(jnp.bfloat16), LMHead(unembedding), targets, asked)
  assert got.logprob.dtype == jnp.float32
  np.testing.assert_allclose(got.logprob, whole(hidden, unembedding, targets, asked)[0], atol=0.15)


def test_no_array_is_as_large_as_the_logits():
  batch, length, width, words = 4, 64, 8, 4096
  hidden, unembedding, targets, asked, _ = problem(batch, length, width, words)

  def total(h, w):
    scores = token_scores(h, LMHead(w), targets, asked, token_block=32, vocabulary_block=512)
    return scores.logprob.sum() + scores.log_normaliser.sum()

  compiled = jax.jit(jax.grad(total, (0, 1))).lower(hidden, unembedding).compile()
  logits = batch * length * words * 4
  assert compiled.memory_analysis().temp_size_in_bytes < logits / 4


def test_devices_exchange_nothing_while_they_go_over_blocks_of_tokens():
  layout = make_layout(DECODER, make_mesh(MeshConfig(data=1, fsdp=8), jax.devices()))
  shapes = [((16, 64, 16), "float32"), ((16, 512), "float32"), ((16, 64), "int32")]
  axes = [("batch", "length", None), ("embed", "vocab"), ("batch", "length")]
  hidden, table, targets = (
    jax.ShapeDtypeStruct(*shape, sharding=layout.sharding(*names))
    for shape, names in zip(shapes, axes, strict=True)
  )

  def total(h, w, t):
    return token_scores(h, LMHead(w), t, token_block=16, vocabulary_block=32).logprob.sum()

  with layout.active():
    gradient = jax.jit(jax.grad(total, (0, 1)), out_shardings=(hidden.sharding, table.sharding))
    program = gradient.lower(hidden, table, targets).compile().as_text()
  parts = {part.split(" ", 1)[0].strip("%"): part for part in re.split(r"\n(?=%)", program)}
  loops = [parts[name] for name in re.findall(r"body=%([\w.\-]+)", program)]
  over_tokens = [loop for loop in loops if "body=" not in loop]
  assert len(loops) == 4 and len(over_tokens) == 2
  assert any("all-reduce" in loop for loop in loops)
  assert not any(re.search("all-|scatter", loop) for loop in over_tokens)


def test_a_frozen_table_costs_no_gradient_of_its_size():
  hidden, unembedding, targets, asked, _ = problem(width=256, words=4096)

  def total(h, w):
    scores = token_scores(h, LMHead(w), targets, asked, token_block=4, vocabulary_block=512)
    return scores.logprob.sum()

  both = jax.jit(jax.grad(total, (0, 1))).lower(hidden, unembedding).compile()
  one = jax.jit(jax.grad(total)).lower(hidden, unembedding).compile()
  np.testing.assert_array_equal(one(hidden, unembedding), both(hidden, unembedding)[0])
  # One copy of the table, which the products want in another order, and nothing else of its size.
  assert one.memory_analysis().temp_size_in_bytes < 1.5 * unembedding.nbytes
