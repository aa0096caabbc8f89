"""Learning rates: a linear warmup, then constant, linear or cosine decay.

A schedule maps the number of optimizer updates already made to the rate of the next one, so update
n (counted from 1) uses `schedule(n - 1)`. Warmup reaches the peak at update `warmup_steps`, and its
first update already moves the parameters: at 40 updates in all, a first rate of zero would throw
one away. The decay reaches its final rate at update `total_steps` and stays there. Skipped steps
are no updates: they do not advance a schedule.
"""

import jax
import jax.numpy as jnp
import optax

from flan_jax.errors import ConfigError


def constant(peak: float, *, warmup_steps: int = 0) -> optax.Schedule:
  """`peak` for ever, after the warmup."""
  _check(peak, warmup_steps)
  return lambda count: _f32(peak) * _warmup(count, warmup_steps)


def linear(
  peak: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
  """A straight line from `peak` at the end of the warmup to `final` at update `total_steps`."""
  _check(peak, warmup_steps, total_steps, final)

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    left = _f32(1.0) - _progress(count, warmup_steps, total_steps)
    return (_f32(final) + _f32(peak - final) * left) * _warmup(count, warmup_steps)

  return schedule


def cosine(
  peak: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
  """Half a cosine from `peak` at the end of the warmup to `final` at update `total_steps`.

  Loshchilov and Hutter, "SGDR" (arXiv 1608.03983), equation 5, without restarts.
  """
  _check(peak, warmup_steps, total_steps, final)

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    turn = _f32(jnp.pi) * _progress(count, warmup_steps, total_steps)
    left = _f32(0.5) * (_f32(1.0) + jnp.cos(turn))
    return (_f32(final) + _f32(peak - final) * left) * _warmup(count, warmup_steps)

  return schedule


def _f32(number: jax.typing.ArrayLike) -> jax.Array:
  return jnp.asarray(number, jnp.float32)


def _warmup(count: jax.typing.ArrayLike, warmup_steps: int) -> jax.Array:
  """The share of the full rate at this update; 1 once warm."""
  if warmup_steps == 0:
    return _f32(1.0)
  return jnp.minimum(_f32(1.0), (_f32(count) + _f32(1.0)) / _f32(warmup_steps))


def _progress(count: jax.typing.ArrayLike, warmup_steps: int, total_steps: int) -> jax.Array:
  """0 up to the last update of the warmup, or the first of all; 1 at update `total_steps`."""
  start = max(warmup_steps, 1)
  length = max(total_steps - start, 1)
  return jnp.clip((_f32(count) + _f32(1.0 - start)) / _f32(length), 0.0, 1.0)


def _check(
  peak: float, warmup_steps: int, total_steps: int | None = None, final: float = 0.0
) -> None:
  if not peak > 0:
    raise ConfigError(f"the peak learning rate must be above 0, not {peak}")
  if warmup_steps < 0:
    raise ConfigError(f"warmup_steps must be 0 or more, not {warmup_steps}")
  if total_steps is None:
    return
  if total_steps < 1:
    raise ConfigError(f"total_steps must be 1 or more, not {total_steps}")
  if warmup_steps > total_steps:
    raise ConfigError(
      f"the warmup of {warmup_steps} updates is longer than the whole run of {total_steps}; "
      "lower warmup_steps or raise total_steps"
    )
  if not 0 <= final <= peak:
    raise ConfigError(
      f"the final learning rate must lie between 0 and the peak {peak}, not {final}"
    )
