"""AdamW and Adafactor on parameters whose layers are stacked.

Both apply to the gradient, in this order: clipping of the norm over all parameters, the optimizer's
own rescaling, decoupled weight decay (so that decay is scaled by the rate and never enters a
moment), the learning rate.

Kernels of scanned layers are stacked into [layers, in, out]. A statistic of one matrix (Adafactor's
row and column factors, its clipping, its parameter scale) must not mix layers: `per_layer` computes
it for each layer apart.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from flax import traverse_util

from flan_jax.errors import ConfigError, nearest
from flan_jax.training.partitioning import path_of

PyTree = Any

STACKED_AXIS = "layers"


def adamw(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  decay: Sequence[str] = ("*kernel",),
  clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter, arXiv 1711.05101): clip, Adam, decay, rate.

  Args:
    decay: patterns of the parameters that decay, such as "*kernel" or "decoder/layers/*"; `*` also
      crosses slashes.
    clip_norm: largest norm of the whole gradient; None: no clipping.

  Raises:
    ConfigError: a number is out of range, or, once the parameters are seen, a pattern matches none
    of them.
  """
  _check_range("b1", b1, 0, 1)
  _check_range("b2", b2, 0, 1)
  return optax.chain(
    _clipping(clip_norm),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    _decay(weight_decay, decay),
    optax.scale_by_learning_rate(schedule),
  )


def adafactor(
  schedule: optax.Schedule,
  *,
  decay_rate: float = 0.8,
  min_dim_size_to_factor: int = 128,
  multiply_by_parameter_scale: bool = True,
  clipping_threshold: float | None = 1.0,
  momentum: float | None = None,
  weight_decay: float = 0.0,
  decay: Sequence[str] = ("*kernel",),
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """Adafactor (Shazeer and Stern, arXiv 1804.04235), each layer of a stack for itself.

  Args:
    decay_rate: of the second moments: after n updates the old ones count 1 - n ** -decay_rate.
    min_dim_size_to_factor: matrices with a smaller side keep whole second moments.
    multiply_by_parameter_scale: the rate is relative to the root mean square of the matrix.
    clipping_threshold: largest root mean square of the update of one matrix; None: no clipping.
    momentum: of the updates; None: none is kept.
    weight_decay, decay, clip_norm: as in `adamw`.

  Raises:
    ConfigError: as in `adamw`.
  """
  _check_range("decay_rate", decay_rate, 0, 1)
  if clipping_threshold is not None and clipping_threshold < 1:
    raise ConfigError(f"clipping_threshold must be 1 or more, not {clipping_threshold}")
  rescale = optax.adafactor(
    learning_rate=None,
    min_dim_size_to_factor=min_dim_size_to_factor,
    decay_rate=decay_rate,
    multiply_by_parameter_scale=multiply_by_parameter_scale,
    clipping_threshold=clipping_threshold,
    momentum=momentum,
  )
  return optax.chain(
    _clipping(clip_norm),
    per_layer(rescale),
    # optax.adafactor already points downhill; decay and rate want the uphill direction.
    optax.scale(-1.0),
    _decay(weight_decay, decay),
    optax.scale_by_learning_rate(schedule),
  )


class PerLayerState(NamedTuple):
  """The states of `per_layer`: one for what is not stacked, one with a leading axis for every stack.

  Args:
    groups: by the path of the stack, such as "encoder/layers"; "" for the rest.
  """

  groups: dict[str, optax.OptState]


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """Applies `tx` to each layer of a stack as if the layers were separate parameters.

  Everything under a key named "layers" has its layers on the leading axis. Parameters are plain
  nested dicts.
  """

  def init(params: PyTree) -> PerLayerState:
    return PerLayerState(
      {
        name: (jax.vmap(tx.init) if name else tx.init)(group)
        for name, group in _groups(params).items()
      }
    )

  def update(
    gradients: PyTree, state: PerLayerState, params: PyTree | None = None
  ) -> tuple[PyTree, PerLayerState]:
    parameters = _groups(params)
    updates, groups = {}, {}
    for name, group in _groups(gradients).items():
      one = jax.vmap(tx.update) if name else tx.update
      new, groups[name] = one(group, state.groups[name], parameters[name])
      updates.update(traverse_util.flatten_dict(new))
    ordered = {path: updates[path] for path in traverse_util.flatten_dict(gradients)}
    return traverse_util.unflatten_dict(ordered), PerLayerState(groups)

  return optax.GradientTransformation(init, update)


def matching(params: PyTree, patterns: Sequence[str]) -> PyTree:
  """A tree of booleans: which parameters one of the patterns matches.

  Raises:
    ConfigError: a pattern matches nothing.
  """
  paths = ["/".join(path_of(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in patterns:
    if not fnmatch.filter(paths, pattern):
      close = nearest(pattern.strip("*/"), paths, count=2) or sorted(paths)[:6]
      raise ConfigError(
        f"the parameter pattern {pattern!r} matches no parameter; parameters are named like "
        + ", ".join(map(repr, close))
      )
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(fnmatch.fnmatchcase("/".join(path_of(path)), p) for p in patterns), params
  )


def _groups(params: PyTree) -> dict[str, PyTree]:
  """The parameters apart by stack, each group a nested dict with their whole paths."""
  groups: dict[str, dict[tuple[str, ...], jax.Array]] = {}
  for path, leaf in traverse_util.flatten_dict(params).items():
    stacked = STACKED_AXIS in path
    name = "/".join(path[: path.index(STACKED_AXIS) + 1]) if stacked else ""
    groups.setdefault(name, {})[path] = leaf
  return {name: traverse_util.unflatten_dict(groups[name]) for name in sorted(groups)}


def _clipping(clip_norm: float | None) -> optax.GradientTransformation:
  if clip_norm is None:
    return optax.identity()
  if not clip_norm > 0:
    raise ConfigError(f"clip_norm must be above 0, or None for no clipping, not {clip_norm}")
  return optax.clip_by_global_norm(clip_norm)


def _decay(weight_decay: float, patterns: Sequence[str]) -> optax.GradientTransformation:
  if weight_decay < 0:
    raise ConfigError(f"weight_decay must be 0 or more, not {weight_decay}")
  if weight_decay == 0:
    return optax.identity()
  return optax.add_decayed_weights(weight_decay, mask=lambda params: matching(params, patterns))


def _check_range(name: str, value: float, low: float, high: float) -> None:
  if not low <= value < high:
    raise ConfigError(f"{name} must lie in [{low}, {high}), not {value}")
