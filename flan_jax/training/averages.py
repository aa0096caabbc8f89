"""The exponential moving average of the parameters, kept beside the optimizer's own state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from flan_jax.errors import ConfigError

PyTree = Any


class AveragedState(NamedTuple):
  """The state of `averaging`.

  Args:
    inner: of the optimizer whose parameters are averaged.
    averages: of the parameters that are trained, in float32, as a nested dict like theirs.
  """

  inner: optax.OptState
  averages: PyTree


def averaging(
  tx: optax.GradientTransformation, decay: float, trained: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
  """`tx`, and after each of its updates average = decay * average + (1 - decay) * parameters.

  The average begins at the parameters before the first update, as in timm and diffusers.

  Args:
    trained: from the parameters to the nested dict of those that are averaged.
  """
  if not 0 < decay < 1:
    raise ConfigError(f"ema_decay must lie between 0 and 1, or be None for no average, not {decay}")

  def init(params: PyTree) -> AveragedState:
    # A copy: a step that donates its state must not find one buffer in it twice.
    averages = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), trained(params))
    return AveragedState(tx.init(params), averages)

  def update(
    gradients: PyTree, state: AveragedState, params: PyTree
  ) -> tuple[PyTree, AveragedState]:
    updates, inner = tx.update(gradients, state.inner, params)
    averages = jax.tree.map(
      lambda average, p: decay * average + (1 - decay) * p.astype(jnp.float32),
      state.averages,
      trained(optax.apply_updates(params, updates)),
    )
    return updates, AveragedState(inner, averages)

  return optax.GradientTransformation(init, update)


def averaged_params(opt_state: optax.OptState, params: PyTree) -> PyTree:
  """The averages in the places and dtypes of the parameters that have one.

  Without an average in the state, these are the parameters themselves.
  """
  found = traverse_util.flatten_dict(
    opt_state.averages if isinstance(opt_state, AveragedState) else {}
  )
  return traverse_util.unflatten_dict(
    {
      path: found[path].astype(leaf.dtype) if path in found else leaf
      for path, leaf in traverse_util.flatten_dict(params).items()
    }
  )
