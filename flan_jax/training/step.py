"""One training step, made from any loss of the sums contract over any batch tree."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from flan_jax.training.losses import Loss
from flan_jax.training.partitioning import Layout, ShardedModel, param_shardings, state_shardings

PyTree = Any
Metrics = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes.

  Args:
    step: batches consumed.
    updates: updates made. A skipped step makes none, so optimizer and schedule stand still.
  """

  params: PyTree
  opt_state: optax.OptState
  step: Int[Array, ""]
  updates: Int[Array, ""]

  @classmethod
  def create(cls, params: PyTree, tx: optax.GradientTransformation) -> "TrainState":
    """The state before the first step."""
    with jax.numpy_dtype_promotion("standard"):
      opt_state = tx.init(params)
    return cls(params, opt_state, jnp.int32(0), jnp.int32(0))


def abstract_state(
  model: ShardedModel, tx: optax.GradientTransformation, layout: Layout
) -> tuple[TrainState, TrainState]:
  """Shapes and shardings of the state that training a model begins with; nothing is made."""
  shapes = jax.eval_shape(lambda key: TrainState.create(model.init(key), tx), jax.random.key(0))
  everywhere: Any = NamedSharding(layout.mesh, PartitionSpec())
  params = param_shardings(model, layout)
  opt_state = state_shardings(tx, shapes.params, params)
  return shapes, TrainState(params, opt_state, everywhere, everywhere)


def make_train_step(
  loss: Loss,
  tx: optax.GradientTransformation,
  *,
  trained: Callable[[PyTree], PyTree] = lambda gradients: gradients,
  accumulation: int = 1,
  schedule: optax.Schedule | None = None,
  shardings: TrainState | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """A jitted `step(state, batch, key, frozen=None) -> (state, metrics)`, which donates the state.

  The batch is cut into `accumulation` microbatches, each of which spans all devices, and gradients
  are summed in float32; the result is that of the whole batch at once, whatever weights the
  microbatches carry. Randomness comes from `fold_in(key, state.step)`, so a resumed run draws what
  the uninterrupted one would have drawn.

  A step whose loss or gradient is not finite, or whose batch weighs nothing, changes nothing but
  `state.step`.

  Metrics: "loss" (what is minimised), "terms" (each divided by its weight), "weights", "tallies",
  "grad_norm" (of what is trained, before clipping), "skipped" (0 or 1), "step" and "updates" (after
  this step), and with a schedule "learning_rate".

  Args:
    trained: from gradients to those that `tx` reads. The others are asked for by nobody, so that the
      compiler leaves them out.
    schedule: reported, not applied: `tx` has its own.
    shardings: of the state; None leaves the layout to the compiler.
  """

  def step(
    state: TrainState, batch: PyTree, key: jax.Array, frozen: PyTree = None
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(key, state.step)
    weights = {name: _f32(weight) for name, weight in loss.weights(batch).items()}
    total, gradients, report = _accumulate(
      loss, state.params, batch, key, frozen, weights, accumulation
    )
    norm = _norm(trained(gradients))
    weighs = functools.reduce(jnp.logical_or, (weight > 0 for weight in weights.values()))
    good = jnp.isfinite(total) & jnp.isfinite(norm) & weighs
    params, opt_state = jax.lax.cond(
      good,
      functools.partial(_update, tx),
      lambda gradients, opt_state, params: (params, opt_state),
      gradients,
      state.opt_state,
      state.params,
    )
    made = good.astype(jnp.int32)
    after = TrainState(params, opt_state, state.step + 1, state.updates + made)
    metrics = {
      "loss": total,
      "weights": weights,
      "grad_norm": norm,
      "skipped": 1 - made,
      "step": after.step,
      "updates": after.updates,
      **report,
    }
    if schedule is not None:
      metrics["learning_rate"] = _f32(schedule(state.updates))
    return after, metrics

  outputs = None if shardings is None else (shardings, None)
  return jax.jit(step, donate_argnums=(0,), out_shardings=outputs)


def _accumulate(
  loss: Loss,
  params: PyTree,
  batch: PyTree,
  key: jax.Array,
  frozen: PyTree,
  weights: Mapping[str, Float[Array, ""]],
  accumulation: int,
) -> tuple[Float[Array, ""], PyTree, dict[str, Any]]:
  """Loss, float32 gradients and report of the whole batch, one microbatch at a time."""

  def objective(params, rows, key):
    sums = loss.sums(params, rows, key, frozen)
    if set(sums.terms) != set(weights):
      raise ValueError(f"the loss weighs {sorted(weights)} and sums {sorted(sums.terms)}")
    terms = {name: _divide(term.sum, weights[name]) for name, term in sums.terms.items()}
    total = sum(
      (_f32(term.coefficient) * terms[name] for name, term in sums.terms.items()), jnp.float32(0)
    )
    return total, {"terms": terms, "tallies": dict(sums.tallies)}

  gradient = jax.value_and_grad(objective, has_aux=True)
  if accumulation == 1:
    (total, report), gradients = gradient(params, batch, jax.random.fold_in(key, 0))
    return total, jax.tree.map(_f32, gradients), report

  def add(carry, microbatch):
    index, rows = microbatch
    (total, report), gradients = gradient(params, rows, jax.random.fold_in(key, index))
    new = (total, jax.tree.map(_f32, gradients), report)
    return jax.tree.map(jnp.add, carry, new), None

  microbatches = jax.tree.map(lambda x: _microbatches(x, accumulation), batch)
  first = jax.tree.map(lambda x: x[0], microbatches)
  (total, report), gradients = jax.eval_shape(gradient, params, first, key)
  zeros = (
    jnp.zeros_like(total),
    jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), report),
  )
  del gradients
  indices = jnp.arange(accumulation, dtype=jnp.int32)
  return jax.lax.scan(add, zeros, (indices, microbatches))[0]


def _microbatches(x: jax.Array, count: int) -> jax.Array:
  """[B, ...] -> [count, B / count, ...].

  Microbatch j holds rows j, j + count, ..., so it spans every shard.
  """
  if x.shape[0] % count:
    raise ValueError(f"{x.shape[0]} rows do not divide into {count} microbatches")
  return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)


def _update(
  tx: optax.GradientTransformation, gradients: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
  # optax mixes dtypes that strict promotion refuses.
  with jax.numpy_dtype_promotion("standard"):
    updates, opt_state = tx.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _divide(total: jax.Array, weight: jax.Array) -> jax.Array:
  """The quotient; 0 for a term that weighs nothing in this batch."""
  some = weight > 0
  return jnp.where(some, _f32(total) / jnp.where(some, weight, np.float32(1)), np.float32(0))


def _norm(tree: PyTree) -> Float[Array, ""]:
  return jnp.sqrt(sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.float32(0)))


def _f32(x: jax.typing.ArrayLike) -> jax.Array:
  return jnp.asarray(x).astype(jnp.float32)
