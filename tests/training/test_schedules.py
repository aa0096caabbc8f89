"""Learning rates, against the curves of optax, transformers, T5X and BERT."""

import inspect

import jax
import numpy as np
import optax
import pytest

from flan_jax.errors import ConfigError, UnknownName
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


@pytest.mark.parametrize("total", [9, 250, 900, 12345])
def test_the_last_rate_is_the_final_one_to_the_bit_when_compiled(total):
  for make in (schedules.linear, schedules.cosine):
    ours = jax.jit(make(1e-3, total_steps=total, warmup_steps=total // 9))
    assert ours(np.int32(total - 1)) == ours(np.int32(total + 5)) == 0


def test_inverse_square_root_is_one_over_the_root_of_the_update():
  # T5's 1 / sqrt(max(n, k)), arXiv 1910.10683, section 3.1.2
  ours = rates(schedules.inverse_square_root(40**-0.5, warmup_steps=40, ramp=False), 200)
  np.testing.assert_allclose(ours, np.maximum(np.arange(1, 201), 40) ** -0.5, rtol=1e-6)


def test_exponential_is_optax_exponential():
  for staircase in (False, True):
    settings = {"decay_rate": 0.7, "staircase": staircase}
    ours = schedules.exponential(0.5, decay_steps=6, warmup_steps=5, final=0.1, **settings)
    theirs = optax.exponential_decay(0.5, transition_steps=6, end_value=0.1, **settings)
    np.testing.assert_allclose(rates(ours, 44)[4:], [theirs(n) for n in range(40)], rtol=1e-5)


def test_polynomial_is_optax_polynomial():
  ours = schedules.polynomial(0.5, total_steps=30, warmup_steps=10, power=2.5, final=0.05)
  theirs = optax.polynomial_schedule(0.5, 0.05, power=2.5, transition_steps=20)
  np.testing.assert_allclose(rates(ours, 40)[9:], [theirs(n) for n in range(31)], rtol=1e-5)


def test_the_first_update_counted_as_zero_is_one_place_later_on_the_same_curve():
  settings = {"total_steps": 20, "warmup_steps": 4}
  ours = rates(schedules.cosine(0.5, **settings), 25)
  np.testing.assert_array_equal(
    rates(schedules.cosine(0.5, first_step=0, **settings), 26), [0, *ours]
  )


WARMUP, TOTAL, PEAK, FINAL = 7, 50, 3e-3, 1e-4


def t5x(*factors, base=1.0, warmup=WARMUP, decay_factor=0.5, steps_per_decay=9, steps_per_cycle=43):
  """What T5X's `create_learning_rate_scheduler` gives for these factors, without its floor of 1e-8."""
  n = np.arange(TOTAL)
  curves = {
    "constant": base,
    "linear_warmup": np.minimum(1, n / warmup),
    "rsqrt_decay": np.maximum(n, warmup) ** -0.5,
    "linear_decay": base * np.minimum(n / warmup, 1 + decay_factor * (warmup - n)),
    "decay_every": decay_factor ** (n // steps_per_decay),
    "cosine_decay": 0.5 * (1 + np.cos(np.pi * (np.maximum(0, n - warmup) / steps_per_cycle % 1))),
  }
  return np.prod([curves[factor] * np.ones(TOTAL) for factor in factors], axis=0)


def bert():
  """The rate of BERT's `optimization.py`: all of the decay from step 0, hidden by the warmup."""
  n = np.arange(TOTAL)
  return np.where(n < WARMUP, PEAK * n / WARMUP, PEAK * (1 - n / TOTAL))


COUNTED_FROM_ZERO = {
  "T5X constant": (
    schedules.constant(PEAK, warmup_steps=WARMUP, first_step=0),
    t5x("constant", "linear_warmup", base=PEAK),
  ),
  "T5X rsqrt": (
    schedules.inverse_square_root(
      0.5 * WARMUP**-0.5, warmup_steps=WARMUP, first_step=0, ramp=False
    ),
    t5x("constant", "rsqrt_decay", base=0.5),
  ),
  "T5X warm rsqrt": (
    schedules.inverse_square_root(0.5 * WARMUP**-0.5, warmup_steps=WARMUP, first_step=0),
    t5x("constant", "linear_warmup", "rsqrt_decay", base=0.5),
  ),
  "T5X linear": (
    schedules.linear(PEAK, total_steps=TOTAL, warmup_steps=WARMUP, first_step=0),
    t5x("linear_decay", base=PEAK, decay_factor=1 / (TOTAL - WARMUP)),
  ),
  "T5X decay_every": (
    schedules.exponential(PEAK, decay_rate=0.5, decay_steps=9, staircase=True, first_step=0),
    t5x("constant", "decay_every", base=PEAK),
  ),
  "T5X cosine": (
    schedules.cosine(PEAK, total_steps=TOTAL, warmup_steps=WARMUP, first_step=0),
    t5x("constant", "linear_warmup", "cosine_decay", base=PEAK),
  ),
  "BERT": (
    schedules.polynomial(
      PEAK, total_steps=TOTAL, warmup_steps=WARMUP, decay_from_start=True, first_step=0
    ),
    bert(),
  ),
}


@pytest.mark.parametrize("name", COUNTED_FROM_ZERO)
def test_counted_from_zero_a_curve_is_its_reference(name):
  ours, theirs = COUNTED_FROM_ZERO[name]
  np.testing.assert_allclose(rates(ours, TOTAL), theirs, rtol=2e-6, atol=1e-9)


def test_the_decay_of_bert_jumps_down_at_the_end_of_its_warmup():
  ours, _ = COUNTED_FROM_ZERO["BERT"]
  before, after = rates(ours, TOTAL)[WARMUP - 1 : WARMUP + 1]
  assert before == pytest.approx(PEAK * 6 / 7) and after == pytest.approx(PEAK * 43 / 50)


def shelf(warmup):
  """By the name of transformers' function: our schedule, and what theirs is called with."""
  ours = {"warmup_steps": warmup, "first_step": 0}
  whole = {**ours, "total_steps": TOTAL}
  theirs = {"num_warmup_steps": warmup}
  all_of_it = {**theirs, "num_training_steps": TOTAL}
  yield "constant_schedule_with_warmup", schedules.constant(PEAK, **ours), theirs
  yield "linear_schedule_with_warmup", schedules.linear(PEAK, **whole), all_of_it
  yield "cosine_schedule_with_warmup", schedules.cosine(PEAK, **whole), all_of_it
  yield (
    "polynomial_decay_schedule_with_warmup",
    schedules.polynomial(PEAK, power=2.0, final=FINAL, **whole),
    {**all_of_it, "power": 2.0, "lr_end": FINAL},
  )
  yield "inverse_sqrt_schedule", schedules.inverse_square_root(PEAK, **ours), theirs
  yield (
    "inverse_sqrt_schedule",
    schedules.inverse_square_root(PEAK, timescale=20, **ours),
    {**theirs, "timescale": 20},
  )
  for shape in ("linear", "cosine", "1-sqrt"):
    bounds = {"initial": FINAL, "final": FINAL}
    yield (
      "wsd_schedule",
      schedules.warmup_stable_decay(PEAK, decay_steps=15, shape=shape, **bounds, **whole),
      {**all_of_it, "num_decay_steps": 15, "decay_type": shape, "min_lr_ratio": FINAL / PEAK},
    )


@pytest.mark.oracle
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_counted_from_zero_every_curve_is_that_of_transformers(warmup):
  import torch
  from transformers import optimization

  for name, ours, settings in shelf(warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = getattr(optimization, f"get_{name}")(optimizer, **settings)
    theirs = []
    for _ in range(TOTAL):
      theirs.append(scheduler.get_last_lr()[0])
      optimizer.step()
      scheduler.step()
    np.testing.assert_allclose(rates(ours, TOTAL), theirs, rtol=2e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_a_warmup_as_long_as_the_run_ends_at_the_peak(make):
  np.testing.assert_allclose(rates(make(0.3, total_steps=3, warmup_steps=3), 3), [0.1, 0.2, 0.3])
  np.testing.assert_allclose(rates(make(0.3, total_steps=1), 1), [0.3])


SHELF = {
  "constant": {},
  "linear": {},
  "cosine": {},
  "polynomial": {},
  "exponential": {"decay_rate": 0.5, "decay_steps": 10},
  "inverse_square_root": {},
  "warmup_stable_decay": {"decay_steps": 1},
}


def test_a_warmup_that_exceeds_the_run_is_refused_by_every_schedule():
  public = {
    name
    for name, function in vars(schedules).items()
    if inspect.isfunction(function) and function.__module__ == schedules.__name__ and name[0] != "_"
  }
  assert public == set(SHELF)
  for name, settings in SHELF.items():
    with pytest.raises(ConfigError, match="longer than the whole run of 10"):
      getattr(schedules, name)(1e-3, warmup_steps=11, total_steps=10, **settings)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: schedules.linear(1e-3, total_steps=10, warmup_steps=11), "longer than the whole run"),
    (lambda: schedules.cosine(1e-3, total_steps=0), "total_steps"),
    (lambda: schedules.constant(0.0), "peak"),
    (lambda: schedules.constant(float("nan")), "peak"),
    (lambda: schedules.constant(1e-3, warmup_steps=-1), "warmup_steps"),
    (lambda: schedules.linear(1e-3, total_steps=5, final=1.0), "final"),
    (lambda: schedules.linear(1e-3, total_steps=5, first_step=2), "first_step"),
    (lambda: schedules.polynomial(1e-3, total_steps=5, power=0), "power"),
    (lambda: schedules.exponential(1e-3, decay_rate=1.5, decay_steps=3), "decay_rate"),
    (lambda: schedules.exponential(1e-3, decay_rate=0.5, decay_steps=0), "decay_steps"),
    (lambda: schedules.inverse_square_root(1e-3, timescale=0), "timescale"),
    (
      lambda: schedules.warmup_stable_decay(1e-3, total_steps=9, warmup_steps=5, decay_steps=5),
      "do not fit into 9",
    ),
  ],
)
def test_numbers_that_cannot_be_obeyed_are_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_an_unknown_shape_is_named_with_the_nearest():
  with pytest.raises(UnknownName, match="'cosin'.*'cosine'"):
    schedules.warmup_stable_decay(1e-3, total_steps=9, decay_steps=5, shape="cosin")
