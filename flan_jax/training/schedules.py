"""Learning rates: a linear warmup, then one of the field's decays.

A schedule maps the number of optimizer updates already made to the rate of the next one. The updates
carry numbers, and the curve is a function of the number n: it rises as n / `warmup_steps` to the peak
at `warmup_steps`, and its decay ends at `total_steps`, after which it stays.

The first update has the number 1, so that it already moves the parameters: at 40 updates in all, a
first rate of zero would throw one away. With `first_step=0` it has the number 0, as transformers, T5X
and BERT count, and every curve equals theirs, rates of zero included.

Skipped steps are no updates: they do not advance a schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from flan_jax.errors import ConfigError, UnknownName

_Curve = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Schedule:
  """A curve over the numbers of the updates, as a function of how many were made before."""

  curve: _Curve
  warmup_steps: int
  first_step: int

  def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
    return self.curve(_f32(count) + _f32(self.first_step))


def constant(
  peak: float, *, warmup_steps: int = 0, total_steps: int | None = None, first_step: int = 1
) -> optax.Schedule:
  """`peak` for ever, after the warmup.

  Args:
    total_steps: of the run, so that a warmup that is longer is refused; None: not checked.
    first_step: 1 or 0; see the top of this file.
  """
  _check(peak, warmup_steps, total_steps, first_step)
  return _warmed(peak, warmup_steps, first_step, lambda n: jnp.full_like(n, peak))


def linear(
  peak: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0, first_step: int = 1
) -> optax.Schedule:
  """A straight line from `peak` at the end of the warmup to `final` at update `total_steps`."""
  return polynomial(
    peak, total_steps=total_steps, warmup_steps=warmup_steps, final=final, first_step=first_step
  )


def cosine(
  peak: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0, first_step: int = 1
) -> optax.Schedule:
  """Half a cosine from `peak` at the end of the warmup to `final` at update `total_steps`.

  Loshchilov and Hutter, "SGDR" (arXiv 1608.03983), equation 5, without restarts.
  """
  _check(peak, warmup_steps, total_steps, first_step, final)
  progress = _progress(max(warmup_steps, first_step), total_steps)
  return _warmed(
    peak, warmup_steps, first_step, lambda n: _between(peak, final, _half_cosine(progress(n)))
  )


def polynomial(
  peak: float,
  *,
  total_steps: int,
  warmup_steps: int = 0,
  power: float = 1.0,
  final: float = 0.0,
  decay_from_start: bool = False,
  first_step: int = 1,
) -> optax.Schedule:
  """From `peak` to `final` at update `total_steps` as (1 - progress) ** power.

  Args:
    decay_from_start: progress is counted from update 0 rather than from the end of the warmup, as in
      BERT's `optimization.py`: there the warmup hides the curve, which then goes on below the peak.
    first_step: 1 or 0; see the top of this file.
  """
  _check(peak, warmup_steps, total_steps, first_step, final)
  if not power > 0:
    raise ConfigError(f"the power of the decay must be above 0, not {power}")
  progress = _progress(0 if decay_from_start else max(warmup_steps, first_step), total_steps)

  def decay(n: jax.Array) -> jax.Array:
    return _between(peak, final, (_f32(1.0) - progress(n)) ** _f32(power))

  return _warmed(peak, warmup_steps, first_step, decay)


def exponential(
  peak: float,
  *,
  decay_rate: float,
  decay_steps: int,
  warmup_steps: int = 0,
  staircase: bool = False,
  final: float = 0.0,
  total_steps: int | None = None,
  first_step: int = 1,
) -> optax.Schedule:
  """After the warmup the rate is multiplied by `decay_rate` in every `decay_steps` updates.

  Args:
    decay_rate: above 0, at most 1.
    staircase: all at once at their end, rather than a little at each update.
    final: never below this rate.
    total_steps, first_step: as in `constant`.
  """
  _check(peak, warmup_steps, total_steps, first_step, final)
  if not 0 < decay_rate <= 1:
    raise ConfigError(f"decay_rate must lie above 0 and be at most 1, not {decay_rate}")
  if decay_steps < 1:
    raise ConfigError(f"decay_steps must be 1 or more, not {decay_steps}")
  start = max(warmup_steps, first_step)

  def decay(n: jax.Array) -> jax.Array:
    times = (n - _f32(start)) / _f32(decay_steps)
    times = jnp.floor(times) if staircase else times
    return jnp.maximum(_f32(peak) * _f32(decay_rate) ** times, _f32(final))

  return _warmed(peak, warmup_steps, first_step, decay)


def inverse_square_root(
  peak: float,
  *,
  warmup_steps: int = 0,
  timescale: int | None = None,
  ramp: bool = True,
  total_steps: int | None = None,
  first_step: int = 1,
) -> optax.Schedule:
  """After the warmup `peak` / sqrt(1 + (n - warmup_steps) / timescale).

  With `ramp=False` and `peak` = warmup_steps ** -0.5 this is 1 / sqrt(max(n, warmup_steps)), by which
  T5 was pretrained (arXiv 1910.10683, section 3.1.2).

  Args:
    timescale: updates after the warmup at which the rate is peak / sqrt(2); None: those of the
      warmup, or 10,000 where there is none, as in transformers.
    ramp: rise to the peak during the warmup; False: be there from the start, and only hold it.
    total_steps, first_step: as in `constant`.
  """
  _check(peak, warmup_steps, total_steps, first_step)
  timescale = (warmup_steps or 10_000) if timescale is None else timescale
  if timescale < 1:
    raise ConfigError(f"timescale must be 1 or more, not {timescale}")

  def decay(n: jax.Array) -> jax.Array:
    after = jnp.maximum(n - _f32(warmup_steps), 0.0)
    return _f32(peak) * jax.lax.rsqrt(_f32(1.0) + after / _f32(timescale))

  return _warmed(peak, warmup_steps if ramp else 0, first_step, decay)


_SHAPES: dict[str, _Curve] = {
  "linear": lambda progress: _f32(1.0) - progress,
  "cosine": lambda progress: _half_cosine(progress),
  "1-sqrt": lambda progress: _f32(1.0) - jnp.sqrt(progress),
}


def warmup_stable_decay(
  peak: float,
  *,
  total_steps: int,
  decay_steps: int,
  warmup_steps: int = 0,
  shape: str = "linear",
  initial: float = 0.0,
  final: float = 0.0,
  first_step: int = 1,
) -> optax.Schedule:
  """Holds `peak` after the warmup and decays in the last `decay_steps` to `final` at `total_steps`.

  Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (arXiv
  2405.18392), who found "1-sqrt" to be the best shape.

  Args:
    shape: of the decay, "linear", "cosine" or "1-sqrt".
    initial: where the warmup begins; transformers begins at `final`.
    first_step: 1 or 0; see the top of this file.
  """
  _check(peak, warmup_steps, total_steps, first_step, final)
  if shape not in _SHAPES:
    raise UnknownName("shape of decay", shape, _SHAPES)
  if decay_steps < 1 or warmup_steps + decay_steps > total_steps:
    raise ConfigError(
      f"a warmup of {warmup_steps} updates and a decay of {decay_steps} do not fit into {total_steps}; "
      "decay_steps must be 1 or more, and both together at most total_steps"
    )
  if not 0 <= initial <= peak:
    raise ConfigError(
      f"the initial learning rate must lie between 0 and the peak {peak}, not {initial}"
    )
  progress = _progress(total_steps - decay_steps, total_steps)

  def decay(n: jax.Array) -> jax.Array:
    return _between(peak, final, _SHAPES[shape](progress(n)))

  return _warmed(peak, warmup_steps, first_step, decay, initial)


def _warmed(
  peak: float, warmup_steps: int, first_step: int, decay: _Curve, initial: float = 0.0
) -> optax.Schedule:
  """The schedule that rises to `peak` and then follows `decay`, a function of the update's number."""

  def curve(n: jax.Array) -> jax.Array:
    if warmup_steps == 0:
      return decay(n)
    risen = n / _f32(warmup_steps)
    return jnp.where(n < warmup_steps, _between(peak, initial, risen), decay(n))

  return Schedule(curve, warmup_steps, first_step)


def _progress(start: int, end: int) -> _Curve:
  """From an update's number to 0 up to `start` and 1 from `end` on, straight between them."""
  length = max(end - start, 1)

  def progress(n: jax.Array) -> jax.Array:
    share = jnp.maximum((n - _f32(start)) / _f32(length), 0.0)
    # Compiled, the share may fall a bit short of 1. A warmup as long as the run ends at its peak.
    return jnp.where((n < end) | (n <= start), share, 1.0)

  return progress


def _between(peak: float, final: float, share: jax.Array) -> jax.Array:
  return _f32(final) + _f32(peak - final) * share


def _half_cosine(progress: jax.Array) -> jax.Array:
  return _f32(0.5) * (_f32(1.0) + jnp.cos(_f32(jnp.pi) * progress))


def _f32(number: jax.typing.ArrayLike) -> jax.Array:
  return jnp.asarray(number, jnp.float32)


def _check(
  peak: float, warmup_steps: int, total_steps: int | None, first_step: int, final: float = 0.0
) -> None:
  if not 0 < peak < float("inf"):
    raise ConfigError(f"the peak learning rate must be above 0, not {peak}")
  if warmup_steps < 0:
    raise ConfigError(f"warmup_steps must be 0 or more, not {warmup_steps}")
  if first_step not in (0, 1):
    raise ConfigError(
      f"first_step is the number of the first update, 1 or (as transformers counts) 0, not {first_step}"
    )
  if not 0 <= final <= peak:
    raise ConfigError(
      f"the final learning rate must lie between 0 and the peak {peak}, not {final}"
    )
  if total_steps is None:
    return
  if total_steps < 1:
    raise ConfigError(f"total_steps must be 1 or more, not {total_steps}")
  if warmup_steps > total_steps:
    raise ConfigError(
      f"the warmup of {warmup_steps} updates is longer than the whole run of {total_steps}; "
      "lower warmup_steps or raise total_steps"
    )
