"""Adafactor (Shazeer and Stern, arXiv 1804.04235) by the rule of T5X's `adafactor.py`.

A matrix of one layer between "embed" and another axis keeps of its squared gradients only the means
over its rows and over its columns; whatever else there is keeps them whole. Layers are stacked on a
leading axis "layers", and no statistic mixes them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from flan_jax.training.parameter_patterns import matching

PyTree = Any
Names = tuple[str | None, ...]
Path = tuple[str, ...]

_STACKED = "layers"
_ACROSS_EMBED = ("vocab", "mlp", "heads", "kv")


class AdafactorState(NamedTuple):
  """Statistics by the paths of the parameters that have them.

  Args:
    made: so many updates.
    v_row, v_col: of factored matrices, [layers, in] and [layers, out].
    v: of all others, whole.
    m: momentum; empty without `beta1`.
  """

  made: jax.Array
  v_row: PyTree
  v_col: PyTree
  v: PyTree
  m: PyTree


class Rule(NamedTuple):
  """Numbers of the rule; see `flan_jax.training.optimizers.adafactor`."""

  schedule: optax.Schedule
  beta1: float | None
  decay_rate: float
  step_offset: int
  epsilon1: float
  epsilon2: float
  multiply_by_parameter_scale: bool
  max_parameter_scale: float | None
  clipping_threshold: float | None
  min_dim_size_to_factor: int
  weight_decay: float
  decay: tuple[str, ...]


def by_adafactor(rule: Rule, axes: Mapping[str, Any]) -> optax.GradientTransformation:
  """From gradients to the updates that are added to the parameters.

  Args:
    axes: a tuple of logical axis names for each parameter, in a nested dict like the parameters'; it
      may hold more than those that are trained.
  """
  names: dict[Path, Names] = traverse_util.flatten_dict(axes)

  def init(params: PyTree) -> AdafactorState:
    statistics: dict[str, dict[Path, jax.Array]] = {"v_row": {}, "v_col": {}, "v": {}, "m": {}}
    for path, leaf in traverse_util.flatten_dict(params).items():
      if _factored(names[path], leaf.shape, rule.min_dim_size_to_factor):
        statistics["v_row"][path] = jnp.zeros(leaf.shape[:-1], jnp.float32)
        statistics["v_col"][path] = jnp.zeros((*leaf.shape[:-2], leaf.shape[-1]), jnp.float32)
      else:
        statistics["v"][path] = jnp.zeros(leaf.shape, jnp.float32)
      if rule.beta1 is not None:
        statistics["m"][path] = jnp.zeros(leaf.shape, jnp.float32)
    return AdafactorState(jnp.zeros((), jnp.int32), **_nested(statistics))

  def update(
    gradients: PyTree, state: AdafactorState, params: PyTree
  ) -> tuple[PyTree, AdafactorState]:
    old = {name: traverse_util.flatten_dict(getattr(state, name)) for name in state._fields[1:]}
    new: dict[str, dict[Path, jax.Array]] = {name: {} for name in ("updates", *old)}
    parameters, decays = map(
      traverse_util.flatten_dict, (params, _decays(params, rule.weight_decay, rule.decay))
    )
    rate = jnp.asarray(rule.schedule(state.made), jnp.float32)
    for path, gradient in traverse_util.flatten_dict(gradients).items():
      before = {name: found[path] for name, found in old.items() if path in found}
      step, after = _step(
        rule, gradient, parameters[path], before, rate, state.made, _stacks(names[path])
      )
      new["updates"][path] = -step - rate * decays[path] * parameters[path]
      for name, statistic in after.items():
        new[name][path] = statistic
    updates = traverse_util.unflatten_dict(new.pop("updates"))
    return updates, AdafactorState(optax.safe_increment(state.made), **_nested(new))

  return optax.GradientTransformation(init, update)


def _step(
  rule: Rule,
  gradient: jax.Array,
  parameter: jax.Array,
  before: Mapping[str, jax.Array],
  rate: jax.Array,
  made: jax.Array,
  stacks: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """What is taken from one parameter, and its statistics after that.

  Args:
    stacks: leading axes along which nothing is averaged.
  """
  one_layer = tuple(range(stacks, gradient.ndim))
  gradient, parameter = gradient.astype(jnp.float32), parameter.astype(jnp.float32)
  number = made.astype(jnp.float32) + 1.0 + rule.step_offset
  kept = 1.0 - number**-rule.decay_rate
  after = _second_moments(jnp.square(gradient) + rule.epsilon1, before, kept)
  step = gradient * _inverse_root(after)
  if rule.clipping_threshold is not None:
    step = step / jnp.maximum(1.0, _rms(step, one_layer) / rule.clipping_threshold)
  step = step * rate
  if rule.multiply_by_parameter_scale:
    scale = jnp.maximum(_rms(parameter, one_layer), rule.epsilon2)
    if rule.max_parameter_scale is not None:
      scale = jnp.minimum(scale, rule.max_parameter_scale)
    step = step * scale
  if rule.beta1 is not None:
    step = after["m"] = rule.beta1 * before["m"] + (1.0 - rule.beta1) * step
  return step, after


def _second_moments(
  squares: jax.Array, before: Mapping[str, jax.Array], kept: jax.Array
) -> dict[str, jax.Array]:
  if "v" in before:
    return {"v": kept * before["v"] + (1.0 - kept) * squares}
  means = {"v_row": squares.mean(axis=-1), "v_col": squares.mean(axis=-2)}
  return {name: kept * before[name] + (1.0 - kept) * mean for name, mean in means.items()}


def _inverse_root(moments: Mapping[str, jax.Array]) -> jax.Array:
  """1 / sqrt of the second moments, which for a matrix are row x column / mean of the rows."""
  if "v" in moments:
    return jax.lax.rsqrt(moments["v"])
  row, column = moments["v_row"], moments["v_col"]
  rows = jax.lax.rsqrt(row / row.mean(axis=-1, keepdims=True))
  return rows[..., :, None] * jax.lax.rsqrt(column)[..., None, :]


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))


def _stacks(names: Names) -> int:
  return names.count(_STACKED)


def _factored(names: Names, shape: tuple[int, ...], least: int) -> bool:
  one_layer = names[_stacks(names) :]
  if len(one_layer) != 2 or min(shape[-2:]) < least:
    return False
  return "embed" in one_layer and any(name in _ACROSS_EMBED for name in one_layer)


def _decays(params: PyTree, weight_decay: float, decay: Iterable[str]) -> PyTree:
  """For each parameter the share of it that a rate of one would take away."""
  return jax.tree.map(lambda chosen: weight_decay if chosen else 0.0, matching(params, decay))


def _nested(statistics: Mapping[str, dict[Path, jax.Array]]) -> dict[str, PyTree]:
  return {name: traverse_util.unflatten_dict(found) for name, found in statistics.items()}
