"""Minutes between checkpoints, reached by asking the clock a few times."""

import pytest

from flan_jax.training.saving_times import SavingTimes


def saves(seconds_of_step, steps, every=1000, minutes=10.0):
  """The steps that are saved, and how often the clock was asked."""
  now, asked = 0.0, 0

  def clock():
    nonlocal asked
    asked += 1
    return now

  times, saved = SavingTimes(0, every, minutes, clock), []
  for step in range(1, steps + 1):
    now += seconds_of_step(step)
    if times.due(step):
      saved.append((step, now))
  return saved, asked


def test_without_minutes_only_steps_count():
  times = SavingTimes(7, 5)
  assert [step for step in range(8, 21) if times.due(step)] == [10, 15, 20]


@pytest.mark.parametrize("pace", [0.5, 7.0, 400.0, 900.0])
def test_the_first_step_after_the_minutes_is_saved(pace):
  saved, asked = saves(lambda step: pace, steps=4000, every=10**6)
  steps_between = -(-600 // pace)
  assert [step for step, _ in saved[:3]] == [steps_between * k for k in (1, 2, 3)]
  assert asked < 20 * (len(saved) + 1)


def test_a_checkpoint_of_a_step_starts_the_minutes_anew():
  saved, _ = saves(lambda step: 60.0, steps=40, every=7)
  assert [step for step, _ in saved] == [7, 14, 21, 28, 35]
  saved, _ = saves(lambda step: 60.0, steps=40, every=16)
  assert [step for step, _ in saved] == [10, 16, 26, 32]


def test_steps_that_become_slow_do_not_double_the_time():
  saved, _ = saves(lambda step: 1.0 if step < 100 else 30.0, steps=200)
  assert saved[0][1] < 2 * 600
