"""AdamW, Adafactor, Lion and Muon on parameters whose layers are stacked.

All apply to the gradient, in this order: clipping of the norm over all parameters that are trained,
the optimizer's own rescaling, decoupled weight decay (so that decay is scaled by the rate and never
enters a moment), the learning rate, the multiplier of the parameter.

Kernels of scanned layers are stacked into [layers, in, out]. A statistic of one matrix (Adafactor's
factors, clipping and scale, Muon's orthogonalisation) never mixes layers.

Shared arguments:
  schedule: learning rate; see `flan_jax.training.schedules`.
  weight_decay: share of a parameter that a rate of 1 would take away in one update.
  decay: patterns of the parameters that decay; see `flan_jax.training.parameter_patterns`.
  clip_norm: largest norm of the whole gradient; None: no clipping.
  multipliers: pattern to a factor of the rate, such as {"*embed*": 0.1, "*norm*": 0.0}; of several that
    match, the last one counts. 0 freezes: no state, no decay, no share in the norm of the gradient.
  ema_decay: keep a moving average of the parameters; see `flan_jax.training.averages`.

All raise ConfigError where a number is out of range, and, once the parameters are seen, where a
pattern matches none of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from flan_jax.errors import ConfigError, UnknownName
from flan_jax.training.adafactor import Rule, by_adafactor
from flan_jax.training.averages import averaging
from flan_jax.training.parameter_patterns import matches, matching, require_matches
from flan_jax.training.partitioning import path_of

PyTree = Any
_KERNELS = ("*kernel",)
_UNBOUNDED = float("inf")


def adamw(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  bias_correction: str = "moments",
  weight_decay: float = 0.0,
  decay: Sequence[str] = _KERNELS,
  clip_norm: float | None = 1.0,
  multipliers: Mapping[str, float] | None = None,
  ema_decay: float | None = None,
) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter, arXiv 1711.05101).

  Args:
    bias_correction: "moments": both, before `eps` is added, as in PyTorch and in Algorithm 1 of Adam
      (arXiv 1412.6980); "rate": of the rate alone, as in TensorFlow 1, where `eps` is the "epsilon
      hat" of Adam's section 2; "none": as in BERT.
  """
  rescale = optax.chain(
    _by_adam(b1, b2, eps, bias_correction),
    _decay(weight_decay, decay),
    optax.scale_by_learning_rate(schedule),
  )
  patterns = _decay_patterns(weight_decay, decay)
  return _assembled(rescale, patterns, clip_norm, multipliers, ema_decay)


def adafactor(
  schedule: optax.Schedule,
  axes: Mapping[str, Any],
  *,
  beta1: float | None = None,
  decay_rate: float = 0.8,
  step_offset: int = 0,
  epsilon1: float = 1e-30,
  epsilon2: float = 1e-3,
  multiply_by_parameter_scale: bool = True,
  max_parameter_scale: float | None = None,
  clipping_threshold: float | None = 1.0,
  min_dim_size_to_factor: int = 128,
  weight_decay: float = 0.0,
  decay: Sequence[str] = _KERNELS,
  clip_norm: float | None = None,
  multipliers: Mapping[str, float] | None = None,
  ema_decay: float | None = None,
) -> optax.GradientTransformation:
  """Adafactor (Shazeer and Stern, arXiv 1804.04235) by the rule of T5X.

  T5X takes a weight decay off unscaled; ours is scaled by the rate, as T5X's with
  `weight_decay_rate_lr_exponent=1`.

  Args:
    axes: the model's logical axis names, a tuple for each parameter.
    beta1: of the momentum, which averages updates whose rate is already in; None: none is kept.
    decay_rate: of the second moments: at update n the old ones count 1 - n ** -decay_rate.
    step_offset: added to n, for tuning that goes on as if so many updates had been made. T5X counts on
      from its pretrained step and subtracts its own offset: this is the difference, 0 where the two
      are equal and the second moments begin anew.
    epsilon1: added to squared gradients.
    epsilon2, max_parameter_scale: least and largest scale.
    multiply_by_parameter_scale: the rate is relative to the root mean square of the matrix.
    clipping_threshold: largest root mean square of the update of one matrix; None: no clipping.
    min_dim_size_to_factor: matrices with a smaller side keep whole second moments. T5X asks this of
      what is not stacked alone; 1 factors every matrix.
  """
  _check_range("decay_rate", decay_rate, 0, 1)
  if beta1 is not None:
    _check_range("beta1", beta1, 0, 1)
  if clipping_threshold is not None and clipping_threshold < 1:
    raise ConfigError(f"clipping_threshold must be 1 or more, not {clipping_threshold}")
  if step_offset < 0:
    raise ConfigError(f"step_offset must be 0 or more, not {step_offset}")
  if max_parameter_scale is not None and not max_parameter_scale >= epsilon2:
    raise ConfigError(
      f"max_parameter_scale={max_parameter_scale} lies below the least scale, epsilon2={epsilon2}"
    )
  if not multiply_by_parameter_scale and (max_parameter_scale is not None or epsilon2 != 1e-3):
    raise ConfigError(
      "epsilon2 and max_parameter_scale bound the scale of a parameter, which multiply_by_parameter_scale=False "
      "leaves out: set neither, or have the rate multiplied by it."
    )
  _check_range("epsilon1", epsilon1, 0, _UNBOUNDED)
  _check_range("epsilon2", epsilon2, 0, _UNBOUNDED)
  _check_range("weight_decay", weight_decay, 0, _UNBOUNDED)
  rule = Rule(
    schedule,
    beta1=beta1,
    decay_rate=decay_rate,
    step_offset=step_offset,
    epsilon1=epsilon1,
    epsilon2=epsilon2,
    multiply_by_parameter_scale=multiply_by_parameter_scale,
    max_parameter_scale=max_parameter_scale,
    clipping_threshold=clipping_threshold,
    min_dim_size_to_factor=min_dim_size_to_factor,
    weight_decay=weight_decay,
    decay=tuple(decay),
  )
  patterns = _decay_patterns(weight_decay, decay)
  return _assembled(by_adafactor(rule, axes), patterns, clip_norm, multipliers, ema_decay)


def lion(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  weight_decay: float = 0.0,
  decay: Sequence[str] = _KERNELS,
  clip_norm: float | None = 1.0,
  multipliers: Mapping[str, float] | None = None,
  ema_decay: float | None = None,
) -> optax.GradientTransformation:
  """Lion (Chen et al., arXiv 2302.06675): the sign of a momentum.

  Its authors take a third to a tenth of AdamW's rate, and as many times its weight decay.
  """
  _check_range("b1", b1, 0, 1)
  _check_range("b2", b2, 0, 1)
  rescale = optax.chain(
    optax.scale_by_lion(b1=b1, b2=b2),
    _decay(weight_decay, decay),
    optax.scale_by_learning_rate(schedule),
  )
  patterns = _decay_patterns(weight_decay, decay)
  return _assembled(rescale, patterns, clip_norm, multipliers, ema_decay)


def muon(
  schedule: optax.Schedule,
  *,
  matrices: Sequence[str] = ("*layers/*kernel",),
  momentum: float = 0.95,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  decay: Sequence[str] = _KERNELS,
  clip_norm: float | None = 1.0,
  multipliers: Mapping[str, float] | None = None,
  ema_decay: float | None = None,
) -> optax.GradientTransformation:
  """Muon (Jordan et al., 2024) for the matrices of the layers, Adam for all else, at one rate.

  The Nesterov momentum of a matrix is orthogonalised by five Newton-Schulz steps and multiplied by
  0.2 sqrt(max(in, out)), which gives it the size of Adam's updates (Liu et al., arXiv 2502.16982).

  Args:
    matrices: patterns of the parameters that are Muon's.
    momentum: Muon's.
    b1, b2, eps: Adam's.
  """
  _check_range("momentum", momentum, 0, 1)

  def owners(params: PyTree) -> PyTree:
    chosen = matching(params, matrices)
    _require_matrices(params, chosen)
    return jax.tree.map(lambda mine: "muon" if mine else "adam", chosen)

  rescale = optax.chain(
    optax.partition({"muon": _by_muon(momentum), "adam": _by_adam(b1, b2, eps, "moments")}, owners),
    _decay(weight_decay, decay),
    optax.scale_by_learning_rate(schedule),
  )
  patterns = {"matrices": matrices, **_decay_patterns(weight_decay, decay)}
  return _assembled(rescale, patterns, clip_norm, multipliers, ema_decay)


def _assembled(
  rescale: optax.GradientTransformation,
  patterns: Mapping[str, Sequence[str]],
  clip_norm: float | None,
  multipliers: Mapping[str, float] | None,
  ema_decay: float | None,
) -> optax.GradientTransformation:
  """Clipping, `rescale` and multipliers on the parameters that are trained.

  Args:
    patterns: by setting; each of them has to match a parameter.
  """
  factors = dict(multipliers or {})
  for pattern, factor in factors.items():
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not number or not 0 <= factor < _UNBOUNDED or pattern[:1] == "!":
      raise ConfigError(
        f"multipliers: {pattern!r}: {factor} must be a pattern without '!' and a factor of 0 or more"
      )
  inner = optax.chain(_clipping(clip_norm), rescale)

  def init(params: PyTree) -> optax.OptState:
    for setting, each in {**patterns, "multipliers": tuple(factors)}.items():
      require_matches(params, setting, each)
    _require_effect(params, factors)
    trained = trained_part(params, factors)
    if not trained:
      raise ConfigError(f"multipliers={factors} freeze every parameter: nothing is left to train")
    return inner.init(trained)

  def update(
    gradients: PyTree, state: optax.OptState, params: PyTree
  ) -> tuple[PyTree, optax.OptState]:
    updates, state = inner.update(
      trained_part(gradients, factors), state, trained_part(params, factors)
    )
    made = traverse_util.flatten_dict(updates)
    # Minus zero: added to any number, it leaves every bit as it was.
    scaled = {
      path: made[path] * _factor(path, factors) if path in made else jnp.full_like(leaf, -0.0)
      for path, leaf in traverse_util.flatten_dict(gradients).items()
    }
    return traverse_util.unflatten_dict(scaled), state

  tx = optax.GradientTransformation(init, update)
  if ema_decay is None:
    return tx
  return averaging(tx, ema_decay, lambda params: trained_part(params, factors))


def trained_part(tree: PyTree, multipliers: Mapping[str, float] | None) -> PyTree:
  """Of a nested dict like that of the parameters, what belongs to those that are not frozen."""
  factors = multipliers or {}
  leaves = traverse_util.flatten_dict(tree)
  return traverse_util.unflatten_dict(
    {path: leaf for path, leaf in leaves.items() if _factor(path, factors) > 0}
  )


def _factor(path: tuple[str, ...], factors: Mapping[str, float]) -> float:
  name = "/".join(path)
  return [1.0, *(factor for pattern, factor in factors.items() if matches(name, pattern))][-1]


def _require_effect(params: PyTree, factors: Mapping[str, float]) -> None:
  """Raises ConfigError for a multiplier that later ones overrule everywhere."""
  names = ["/".join(path) for path in traverse_util.flatten_dict(params)]
  spoken = [[pattern for pattern in factors if matches(name, pattern)] for name in names]
  for pattern in factors:
    if all(each[-1:] != [pattern] for each in spoken):
      raise ConfigError(
        f"multipliers: {pattern!r} has no effect, since a later pattern matches whatever it matches: the last one "
        "counts, so put it after the wider ones"
      )


def _by_adam(b1: float, b2: float, eps: float, correction: str) -> optax.GradientTransformation:
  for name, value, high in (("b1", b1, 1), ("b2", b2, 1), ("eps", eps, _UNBOUNDED)):
    _check_range(name, value, 0, high)
  if correction == "moments":
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  if correction not in ("rate", "none"):
    raise UnknownName("bias_correction", correction, ("moments", "rate", "none"))

  def init(params: PyTree) -> optax.ScaleByAdamState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

  def update(
    gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None
  ) -> tuple[PyTree, optax.ScaleByAdamState]:
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2)
    rate = jnp.sqrt(1 - b2**count) / (1 - b1**count) if correction == "rate" else 1.0
    updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps), mu, nu)
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def _by_muon(momentum: float) -> optax.GradientTransformation:
  """Of [layers, in, out] each layer for itself."""
  last_two = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

  def sized(update: jax.Array) -> jax.Array:
    return update * (0.2 * max(update.shape[-2:]) ** 0.5)

  return optax.chain(
    optax.contrib.scale_by_muon(
      beta=momentum,
      weight_dimension_numbers=lambda params: jax.tree.map(lambda _: last_two, params),
    ),
    optax.stateless(lambda updates, params: jax.tree.map(sized, updates)),
  )


def _require_matrices(params: PyTree, chosen: PyTree) -> None:
  mine = jax.tree.leaves(chosen)
  for (path, leaf), is_mine in zip(jax.tree_util.tree_leaves_with_path(params), mine, strict=True):
    names = path_of(path)
    if is_mine and leaf.ndim != 2 + ("layers" in names):
      raise ConfigError(
        f"matrices chooses {'/'.join(names)!r}, which is no matrix: take it out with a pattern "
        "that begins with '!', such as '!*norm*'"
      )


def _clipping(clip_norm: float | None) -> optax.GradientTransformation:
  if clip_norm is None:
    return optax.identity()
  if not clip_norm > 0:
    raise ConfigError(f"clip_norm must be above 0, or None for no clipping, not {clip_norm}")
  return optax.clip_by_global_norm(clip_norm)


def _decay(weight_decay: float, patterns: Sequence[str]) -> optax.GradientTransformation:
  _check_range("weight_decay", weight_decay, 0, _UNBOUNDED)
  if weight_decay == 0:
    return optax.identity()
  return optax.add_decayed_weights(weight_decay, mask=lambda params: matching(params, patterns))


def _decay_patterns(weight_decay: float, decay: Sequence[str]) -> dict[str, Sequence[str]]:
  """What has to match a parameter: not the default patterns of a decay that is not asked for."""
  return {"decay": decay} if weight_decay or decay != _KERNELS else {}


def _check_range(name: str, value: float, low: float, high: float) -> None:
  if not low <= value < high:
    raise ConfigError(f"{name} must lie in [{low}, {high}), not {value}")
