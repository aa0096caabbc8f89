"""Learning rates, against optax's own schedules."""

import jax
import numpy as np
import optax
import pytest

from flan_jax.errors import ConfigError
from flan_jax.training import schedules


def rates(schedule, updates):
  with jax.numpy_dtype_promotion("strict"):
    return np.array([schedule(jax.numpy.int32(n)) for n in range(updates)])


def test_constant_warms_up_in_a_straight_line_and_stays():
  ours = rates(schedules.constant(0.4, warmup_steps=4), 8)
  np.testing.assert_allclose(ours, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)


def test_the_first_update_without_warmup_uses_the_peak():
  for schedule in (
    schedules.constant(0.3),
    schedules.linear(0.3, total_steps=5),
    schedules.cosine(0.3, total_steps=5),
  ):
    assert rates(schedule, 1)[0] == np.float32(0.3)


def test_linear_is_optax_linear_from_the_last_warmup_update_on():
  ours = rates(schedules.linear(0.5, total_steps=30, warmup_steps=10, final=0.05), 40)
  theirs = optax.linear_schedule(0.5, 0.05, transition_steps=20)
  np.testing.assert_allclose(ours[9:], [theirs(n) for n in range(31)], rtol=1e-5)
  assert ours[29] == pytest.approx(0.05)


def test_cosine_is_optax_cosine_from_the_last_warmup_update_on():
  ours = rates(schedules.cosine(0.5, total_steps=30, warmup_steps=10, final=0.05), 40)
  theirs = optax.cosine_decay_schedule(0.5, decay_steps=20, alpha=0.1)
  np.testing.assert_allclose(ours[9:], [theirs(n) for n in range(31)], rtol=1e-5)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: schedules.linear(1e-3, total_steps=10, warmup_steps=11), "longer than the whole run"),
    (lambda: schedules.cosine(1e-3, total_steps=0), "total_steps"),
    (lambda: schedules.constant(0.0), "peak"),
    (lambda: schedules.constant(float("nan")), "peak"),
    (lambda: schedules.constant(1e-3, warmup_steps=-1), "warmup_steps"),
    (lambda: schedules.linear(1e-3, total_steps=5, final=1.0), "final"),
  ],
)
def test_numbers_that_cannot_be_obeyed_are_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
