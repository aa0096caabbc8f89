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
from jaxtyping import Array, Bool, Float, Int

from flan_jax.errors import ConfigError, UnknownName
from flan_jax.models.layers import platform
from flan_jax.training.losses import Loss
from flan_jax.training.partitioning import Layout, ShardedModel, param_shardings, state_shardings

PyTree = Any
Metrics = Mapping[str, Any]
ACCUMULATOR_DTYPES = ("float32", "bfloat16")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes.

  Args:
    step: batches consumed.
    updates: updates made. A skipped step makes none, so optimizer and schedule stand still.
    recent: losses of the last updates, oldest first, NaN where there was none yet; None: nobody asks.
  """

  params: PyTree
  opt_state: optax.OptState
  step: Int[Array, ""]
  updates: Int[Array, ""]
  recent: Float[Array, " window"] | None = None

  @classmethod
  def create(
    cls, params: PyTree, tx: optax.GradientTransformation, window: int | None = None
  ) -> "TrainState":
    """The state before the first step, which remembers the losses of `window` updates."""
    with jax.numpy_dtype_promotion("standard"):
      opt_state = tx.init(params)
    recent = None if window is None else jnp.full(window, jnp.nan, jnp.float32)
    return cls(params, opt_state, jnp.int32(0), jnp.int32(0), recent)


def abstract_state(
  model: ShardedModel,
  tx: optax.GradientTransformation,
  layout: Layout,
  window: int | None = None,
) -> tuple[TrainState, TrainState]:
  """Shapes and shardings of the state that training a model begins with; nothing is made."""
  shapes = jax.eval_shape(lambda params: TrainState.create(params, tx, window), model.shapes())
  everywhere: Any = NamedSharding(layout.mesh, PartitionSpec())
  params = param_shardings(model, layout)
  opt_state = state_shardings(tx, shapes.params, params)
  recent = None if window is None else everywhere
  return shapes, TrainState(params, opt_state, everywhere, everywhere, recent)


def make_train_step(
  loss: Loss,
  tx: optax.GradientTransformation,
  *,
  trained: Callable[[PyTree], PyTree] = lambda gradients: gradients,
  accumulation: int = 1,
  accumulator_dtype: str = "float32",
  schedule: optax.Schedule | None = None,
  spike_sigmas: float | None = None,
  shardings: TrainState | None = None,
  deterministic: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """A jitted `step(state, batch, key, frozen=None) -> (state, metrics)`, which donates the state.

  The batch is cut into `accumulation` microbatches, each of which spans all devices, and gradients
  are summed over them; the result is that of the whole batch at once, whatever weights the
  microbatches carry. Randomness comes from `fold_in(key, state.step)`, so a resumed run draws what
  the uninterrupted one would have drawn.

  A step whose loss or gradient is not finite, whose batch weighs nothing, or whose loss is a spike
  changes nothing but `state.step`.

  Metrics: "loss" (what is minimised), "terms" (each divided by its weight), "weights", "tallies",
  "grad_norm" (of what is trained, before clipping), "finite" ("loss", and "gradients": [leaves] of
  what is trained), "spike" and "skipped" (0 or 1), "step" and "updates" (after this step), and with a
  schedule "learning_rate".

  Args:
    trained: from gradients to those that `tx` reads. The others are asked for by nobody, so that the
      compiler leaves them out.
    accumulator_dtype: of the sums of gradients that wait for the next microbatch. bfloat16 halves their
      bytes and rounds them once a microbatch; `tx` sees float32 either way.
    schedule: reported, not applied: `tx` has its own.
    spike_sigmas: a loss is a spike that lies more than so many standard deviations above the mean of
      `state.recent`, once that is full; None: none is.
    shardings: of the state; None leaves the layout to the compiler.
    deterministic: GPUs add up in the same order every time; others do so anyway.
  """

  def step(
    state: TrainState, batch: PyTree, key: jax.Array, frozen: PyTree = None
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(key, state.step)
    weights = {name: _f32(weight) for name, weight in loss.weights(batch).items()}
    total, gradients, report = _accumulate(
      loss, state.params, batch, key, frozen, weights, accumulation, accumulator_dtype
    )
    squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(trained(gradients))]
    norm = jnp.sqrt(sum(squares, jnp.float32(0)))
    weighs = functools.reduce(jnp.logical_or, (weight > 0 for weight in weights.values()))
    good = jnp.isfinite(total) & jnp.isfinite(norm) & weighs
    recent, spike = state.recent, jnp.bool_(False)
    if spike_sigmas is not None and recent is not None:
      spike = good & _is_spike(total, recent, spike_sigmas)
      good &= ~spike
      recent = jnp.where(good, jnp.append(recent[1:], total), recent)
    params, opt_state = _updated_if(good, tx, gradients, state.opt_state, state.params)
    made = good.astype(jnp.int32)
    after = TrainState(params, opt_state, state.step + 1, state.updates + made, recent)
    metrics = {
      "loss": total,
      "weights": weights,
      "grad_norm": norm,
      "finite": {
        "loss": jnp.isfinite(total),
        "gradients": jnp.stack([jnp.isfinite(square) for square in squares]),
      },
      "spike": spike.astype(jnp.int32),
      "skipped": 1 - made,
      "step": after.step,
      "updates": after.updates,
      **report,
    }
    if schedule is not None:
      metrics["learning_rate"] = _f32(schedule(state.updates))
    return after, metrics

  outputs = None if shardings is None else (shardings, None)
  options: dict[str, Any] | None = {"xla_gpu_deterministic_ops": True} if deterministic else None
  return jax.jit(step, donate_argnums=(0,), out_shardings=outputs, compiler_options=options)


def check_accumulator(dtype: str, accumulation: int) -> None:
  """Raises ConfigError for another dtype than the two, or one that nothing is summed in."""
  if dtype not in ACCUMULATOR_DTYPES:
    raise UnknownName("accumulator_dtype", dtype, ACCUMULATOR_DTYPES)
  if dtype != "float32" and accumulation == 1:
    raise ConfigError(
      f"accumulator_dtype={dtype} is of sums over microbatches, and accumulation=1 makes one: leave it out, or "
      "ask for more"
    )


def gradients_of(
  loss: Loss,
  accumulation: int,
  accumulator_dtype: str,
  params: PyTree,
  batch: PyTree,
  key: jax.Array,
  step: int,
  frozen: PyTree = None,
) -> PyTree:
  """The gradients that `make_train_step` takes in the step after `step` others, to be jitted."""
  weights = {name: _f32(weight) for name, weight in loss.weights(batch).items()}
  key = jax.random.fold_in(key, step)
  return _accumulate(loss, params, batch, key, frozen, weights, accumulation, accumulator_dtype)[1]


def _accumulate(
  loss: Loss,
  params: PyTree,
  batch: PyTree,
  key: jax.Array,
  frozen: PyTree,
  weights: Mapping[str, Float[Array, ""]],
  accumulation: int,
  accumulator_dtype: str,
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
    before, sums, reported = carry
    sums = jax.tree.map(lambda x, g: (_f32(x) + _f32(g)).astype(x.dtype), sums, gradients)
    return (before + total, sums, jax.tree.map(jnp.add, reported, report)), None

  microbatches = in_microbatches(batch, accumulation)
  first = jax.tree.map(lambda x: x[0], microbatches)
  (total, report), gradients = jax.eval_shape(gradient, params, first, key)
  zeros = (
    jnp.zeros_like(total),
    jax.tree.map(lambda p: jnp.zeros_like(p, jnp.dtype(accumulator_dtype)), params),
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), report),
  )
  del gradients
  indices = jnp.arange(accumulation, dtype=jnp.int32)
  (total, sums, report), _ = jax.lax.scan(add, zeros, (indices, microbatches))
  return total, jax.tree.map(_f32, sums), report


def in_microbatches(batch: PyTree, count: int) -> PyTree:
  """[B, ...] -> [count, B / count, ...].

  Microbatch j holds rows j, j + count, ..., so it spans every shard.
  """

  def cut(x: jax.Array) -> jax.Array:
    if x.shape[0] % count:
      raise ValueError(f"{x.shape[0]} rows do not divide into {count} microbatches")
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(cut, batch)


def _updated_if(
  good: Bool[Array, ""],
  tx: optax.GradientTransformation,
  gradients: PyTree,
  opt_state: PyTree,
  params: PyTree,
) -> tuple[PyTree, PyTree]:
  """Parameters and optimizer state after the update, or as they were."""
  arrays = (gradients, opt_state, params)
  if platform() == "gpu":
    # A branch would write its results elsewhere, to be copied: the state would be there twice.
    after = _update(tx, *arrays)
    return jax.tree.map(functools.partial(jnp.where, good), after, (params, opt_state))
  update = functools.partial(_update, tx)
  return jax.lax.cond(good, update, lambda _, opt_state, params: (params, opt_state), *arrays)


def _update(
  tx: optax.GradientTransformation, gradients: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
  # optax mixes dtypes that strict promotion refuses.
  with jax.numpy_dtype_promotion("standard"):
    updates, opt_state = tx.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _divide(total: jax.Array, weight: jax.Array) -> jax.Array:
  """The quotient; 0 for a term that weighs nothing in this batch, NaN where its weight is."""
  some = ~(weight <= 0)
  return jnp.where(some, _f32(total) / jnp.where(some, weight, np.float32(1)), np.float32(0))


def _is_spike(
  loss: Float[Array, ""], recent: Float[Array, " window"], sigmas: float
) -> Bool[Array, ""]:
  """False as long as the window is not full: no number is above NaN."""
  mean = jnp.mean(recent)
  return loss > mean + np.float32(sigmas) * jnp.sqrt(jnp.mean(jnp.square(recent - mean)))


def _f32(x: jax.typing.ArrayLike) -> jax.Array:
  return jnp.asarray(x).astype(jnp.float32)
