"""The supervised loss against optax on the whole logits of both families."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import FAMILIES, TABLE, assert_trees_close, batch_of

from flan_jax.errors import ConfigError
from flan_jax.training.losses import SupervisedLoss, token_logprobs

BATCH = batch_of()


@pytest.fixture(autouse=True)
def strict():
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    yield


@pytest.fixture(params=FAMILIES)
def model(request):
  return FAMILIES[request.param]


@functools.cache
def params_of(model):
  return jax.jit(model.init)(jax.random.key(1))


def sums_of(loss, batch=BATCH):
  return jax.jit(loss.sums)(params_of(loss.model), batch)


def by_optax(model, params, smoothing=0.0, z_loss=0.0):
  """Summed loss by optax from whole logits."""
  logits, weights = model.logits(params, BATCH), BATCH["decoder_loss_weights"]
  targets = BATCH["decoder_target_tokens"]
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    if smoothing:
      labels = optax.smooth_labels(jax.nn.one_hot(targets, 64), smoothing)
      losses = optax.softmax_cross_entropy(logits, labels)
    else:
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum((losses + z_loss * jax.nn.logsumexp(logits, -1) ** 2) * weights)


def assert_as_optax(model, params, smoothing, z_loss):
  loss = SupervisedLoss(
    model, z_loss=z_loss, label_smoothing=smoothing, token_block=16, vocabulary_block=24
  )

  def ours(params):
    return sum(t.sum * np.float32(t.coefficient) for t in loss.sums(params, BATCH).terms.values())

  def theirs(params):
    return by_optax(model, params, smoothing, z_loss)

  got, want = (jax.jit(jax.value_and_grad(f))(params) for f in (ours, theirs))
  assert_trees_close(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_summed_loss_and_gradients_are_those_of_optax_on_whole_logits(smoothing, z_loss):
  assert_as_optax(TABLE, params_of(TABLE), smoothing, z_loss)


def test_loss_and_gradients_of_both_families_are_those_of_optax_on_whole_logits(model):
  assert_as_optax(model, params_of(model), smoothing=0.1, z_loss=0.01)


def test_token_logprobs_are_those_of_optax(model):
  params = params_of(model)
  logprobs = jax.jit(lambda params: token_logprobs(model, params, BATCH))(params)
  logits = jax.jit(model.logits)(params, BATCH)
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    want = -optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["decoder_target_tokens"])
  np.testing.assert_allclose(logprobs, want, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_weighted_sum_of_the_token_logprobs():
  terms = sums_of(SupervisedLoss(TABLE)).terms
  logprobs = token_logprobs(TABLE, params_of(TABLE), BATCH)
  weighted = -np.sum(logprobs * BATCH["decoder_loss_weights"])
  np.testing.assert_allclose(terms["cross_entropy"].sum, weighted, rtol=1e-5)


def test_weights_are_the_target_weights_or_the_factor():
  total = BATCH["decoder_loss_weights"].sum()
  assert SupervisedLoss(TABLE).weights(BATCH) == {"cross_entropy": total}
  fixed = SupervisedLoss(TABLE, normalising_factor=500.0, z_loss=1e-4).weights(BATCH)
  assert fixed == {"cross_entropy": 500.0, "z_loss": 500.0}


def test_tallies_keep_account_of_every_task_and_token():
  sums = sums_of(SupervisedLoss(TABLE, tasks=4))
  for task in range(4):
    only = {
      **BATCH,
      "decoder_loss_weights": BATCH["decoder_loss_weights"] * (BATCH["task_ids"] == task),
    }
    alone = sums_of(SupervisedLoss(TABLE), only).terms["cross_entropy"]
    np.testing.assert_allclose(sums.tallies["task_loss"][task], alone.sum, rtol=1e-5)
    assert sums.tallies["task_weight"][task] == alone.weight
  assert sums.tallies["targets"] == np.count_nonzero(BATCH["decoder_loss_weights"])
  segments = ("encoder_segment_ids", "decoder_segment_ids")
  assert sums.tallies["tokens"] == sum(np.count_nonzero(BATCH[name]) for name in segments)


def test_weights_of_any_size_count_as_that_many_tokens():
  halves = {**BATCH, "decoder_loss_weights": BATCH["decoder_loss_weights"] * np.float32(0.5)}
  whole = sums_of(SupervisedLoss(TABLE)).terms["cross_entropy"]
  half = sums_of(SupervisedLoss(TABLE), halves).terms["cross_entropy"]
  np.testing.assert_allclose(half.sum * 2, whole.sum, rtol=1e-6)
  np.testing.assert_allclose(half.weight * 2, whole.weight)


@pytest.mark.parametrize(
  "settings", [{"z_loss": -1.0}, {"label_smoothing": 1.0}, {"normalising_factor": 0.0}]
)
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(ConfigError):
    SupervisedLoss(TABLE, **settings)
