"""A training step, against the gradient of the whole batch and optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import DECODER, assert_trees_close, assert_trees_equal, batch_of

import flan_jax.training.step as step_module
from flan_jax.errors import ConfigError, UnknownName
from flan_jax.training import optimizers, schedules
from flan_jax.training.losses import LossSums, SupervisedLoss, Term
from flan_jax.training.step import TrainState, check_accumulator, make_train_step

KEY = jax.random.key(7)
SCHEDULE = schedules.linear(1e-2, total_steps=10, warmup_steps=2)


@pytest.fixture(autouse=True)
def strict():
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    yield


class Line:
  """Weighted squared error of w * x, plus the mean of w: two terms with weights of their own."""

  def weights(self, batch):
    return {"error": jnp.sum(batch["weight"]), "size": jnp.float32(batch["x"].shape[0])}

  def sums(self, params, batch, key, frozen=None):
    target = batch["y"] if frozen is None else batch["x"] * frozen["w"]
    error = jnp.sum(jnp.square(params["w"] * batch["x"] - target) * batch["weight"])
    weights = self.weights(batch)
    size = params["w"] * weights["size"]
    noise = jnp.zeros(()) if key is None else jax.random.normal(key)
    terms = {"error": Term(error, weights["error"]), "size": Term(size, weights["size"], 0.1)}
    return LossSums(terms, {"rows": weights["size"], "noise": noise})


def line_batch(rows=8):
  draw = np.random.default_rng(0)
  x, y, weight = draw.normal(size=(3, rows)).astype(np.float32)
  return {"x": x, "y": y, "weight": np.where(weight > 0, weight, 0)}


def line_state(tx, w=0.5):
  return TrainState.create({"w": jnp.float32(w)}, tx)


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_any_accumulation_is_one_step_on_the_closed_form_gradient(accumulation):
  tx, batch, w = optax.sgd(0.1), line_batch(), np.float32(0.5)
  step = make_train_step(Line(), tx, accumulation=accumulation)
  state, metrics = step(line_state(tx, w), batch, KEY)
  x, y, weight = batch["x"], batch["y"], batch["weight"]
  gradient = (2 * (w * x - y) * x * weight).sum() / weight.sum() + 0.1
  assert state.params["w"] == pytest.approx(w - 0.1 * gradient, rel=1e-5)
  loss = ((w * x - y) ** 2 * weight).sum() / weight.sum() + 0.1 * w
  assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
  assert metrics["grad_norm"] == pytest.approx(abs(gradient), rel=1e-5)
  assert metrics["tallies"]["rows"] == 8


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_over_uneven_targets_is_the_whole_batch(accumulation):
  loss, batch = SupervisedLoss(DECODER, z_loss=1e-3, tasks=3), batch_of()
  # The gradient itself becomes the parameters, so that nothing hides behind a learning rate.
  tx = optax.sgd(1.0)
  start = functools.partial(TrainState.create, DECODER.init(jax.random.key(1)), tx)
  whole, whole_metrics = make_train_step(loss, tx)(start(), batch, KEY)
  start = functools.partial(TrainState.create, DECODER.init(jax.random.key(1)), tx)
  parts, metrics = make_train_step(loss, tx, accumulation=accumulation)(start(), batch, KEY)
  assert_trees_close(parts.params, whole.params, rtol=1e-5, atol=1e-7)
  assert_trees_close(metrics, whole_metrics, rtol=1e-5)


def test_sums_in_bfloat16_are_rounded_and_no_more():
  loss, batch, tx = SupervisedLoss(DECODER), batch_of(), optax.sgd(1.0)
  start = jax.tree.map(np.asarray, DECODER.init(jax.random.key(1)))

  def gradients(**settings):
    state = TrainState.create(jax.tree.map(jnp.asarray, start), tx)
    after, _ = make_train_step(loss, tx, **settings)(state, batch, KEY)
    return jax.tree.map(np.subtract, start, after.params)

  whole, rounded = gradients(), gradients(accumulation=4, accumulator_dtype="bfloat16")
  for ours, theirs in zip(jax.tree.leaves(rounded), jax.tree.leaves(whole), strict=True):
    distance = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert 1e-5 < distance < 4 * 2.0**-9  # four roundings to 8 bits


def test_an_accumulator_that_cannot_be_obeyed_is_refused():
  check_accumulator("bfloat16", 2)
  with pytest.raises(UnknownName, match="'bfloat'.*'bfloat16'"):
    check_accumulator("bfloat", 2)
  with pytest.raises(ConfigError, match="accumulation=1 makes one"):
    check_accumulator("bfloat16", 1)


def test_the_loss_in_the_metrics_is_the_weighted_mean_of_the_tasks():
  batch, tx = batch_of(), optax.sgd(0.1)
  step = make_train_step(SupervisedLoss(DECODER, tasks=3), tx)
  _, metrics = step(TrainState.create(DECODER.init(jax.random.key(1)), tx), batch, KEY)
  tallies = metrics["tallies"]
  mean = tallies["task_loss"].sum() / tallies["task_weight"].sum()
  np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_a_step_that_is_not_finite_advances_the_step_alone(poison, platform, monkeypatch):
  monkeypatch.setattr(step_module, "platform", lambda: platform)
  tx, bad = optimizers.adamw(SCHEDULE, ema_decay=0.9), line_batch()
  bad["y"] = bad["y"].copy()
  bad["y"][3], bad["weight"][3] = poison, 1
  step = make_train_step(Line(), tx, schedule=SCHEDULE)
  before = jax.tree.map(np.asarray, line_state(tx))
  state, metrics = step(line_state(tx), bad, KEY)
  assert (int(state.step), int(state.updates), int(metrics["skipped"])) == (1, 0, 1)
  assert_trees_equal(state.params, before.params)
  assert_trees_equal(state.opt_state, before.opt_state)
  skipped_first, second = step(state, line_batch(), KEY)
  never_bad, first = step(line_state(tx), line_batch(), KEY)
  assert second["learning_rate"] == first["learning_rate"] == SCHEDULE(0)
  assert_trees_equal(skipped_first.params, never_bad.params)
  assert (int(skipped_first.step), int(skipped_first.updates)) == (2, 1)


def test_a_batch_that_weighs_nothing_changes_nothing():
  tx, batch = optimizers.adamw(SCHEDULE, weight_decay=0.1), batch_of()
  batch["decoder_loss_weights"] = np.zeros_like(batch["decoder_loss_weights"])
  start = DECODER.init(jax.random.key(1))
  before = jax.tree.map(np.asarray, start)
  state, metrics = make_train_step(SupervisedLoss(DECODER), tx)(
    TrainState.create(start, tx), batch, KEY
  )
  assert (int(metrics["skipped"]), float(metrics["loss"])) == (1, 0)
  assert_trees_equal(state.params, before)


def test_frozen_parameters_are_read_and_not_trained():
  tx, batch = optax.sgd(0.1), line_batch()
  frozen = {"w": jnp.float32(0.5)}
  _, metrics = make_train_step(Line(), tx)(line_state(tx, 0.5), batch, KEY, frozen)
  assert metrics["terms"]["error"] == 0
  assert not frozen["w"].is_deleted()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_frozen_by_its_path_has_no_gradient_in_the_norm_and_in_memory(accumulation):
  loss, batch, factors = SupervisedLoss(DECODER), batch_of(), {"*": 0.0, "*attention*kernel": 1.0}
  start = DECODER.init(jax.random.key(1))
  plain = optax.sgd(1.0)
  moved, _ = make_train_step(loss, plain)(
    TrainState.create(jax.tree.map(jnp.copy, start), plain), batch, KEY
  )
  gradients = jax.tree.map(jnp.subtract, start, moved.params)

  tx = optimizers.adamw(SCHEDULE, multipliers=factors)
  trained = functools.partial(optimizers.trained_part, multipliers=factors)

  def norm_and_bytes(**settings):
    state = TrainState.create(jax.tree.map(jnp.copy, start), tx)
    step = make_train_step(loss, tx, accumulation=accumulation, **settings)
    memory = step.lower(state, batch, KEY).compile().memory_analysis()
    return step(state, batch, KEY)[1]["grad_norm"], memory.temp_size_in_bytes

  norm, less = norm_and_bytes(trained=trained)
  np.testing.assert_allclose(norm, optax.tree.norm(trained(gradients)), rtol=1e-4)
  norm, more = norm_and_bytes()
  np.testing.assert_allclose(norm, optax.tree.norm(gradients), rtol=1e-4)
  size = sum(x.nbytes for x in jax.tree.leaves(start))
  frozen = size - sum(x.nbytes for x in jax.tree.leaves(trained(start)))
  assert more - less > frozen / 2


def test_randomness_is_a_function_of_key_step_and_microbatch():
  tx, batch = optax.sgd(0.0), line_batch()
  step = make_train_step(Line(), tx)
  state, first = step(line_state(tx), batch, KEY)
  _, second = step(state, batch, KEY)
  _, again = step(line_state(tx), batch, KEY)
  assert first["tallies"]["noise"] == again["tallies"]["noise"] != second["tallies"]["noise"]
  want = jax.random.normal(jax.random.fold_in(jax.random.fold_in(KEY, 1), 0))
  assert second["tallies"]["noise"] == want


def test_the_state_is_donated():
  tx = optax.sgd(0.1)
  state = line_state(tx)
  make_train_step(Line(), tx)(state, line_batch(), KEY)
  assert state.params["w"].is_deleted()


def test_a_loss_that_sums_other_terms_than_it_weighs_is_a_bug_that_is_named():
  class Odd(Line):
    def weights(self, batch):
      return {**super().weights(batch), "other": jnp.float32(1)}

    def sums(self, params, batch, key, frozen=None):
      return LossSums({"error": Term(params["w"], jnp.float32(1))}, {})

  tx = optax.sgd(0.1)
  with pytest.raises(ValueError, match=r"weighs .*'other'.* sums \['error'\]"):
    make_train_step(Odd(), tx)(line_state(tx), line_batch(), KEY)
