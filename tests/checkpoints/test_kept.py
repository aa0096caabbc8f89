"""Which checkpoints stay: the latest, some for ever, and the best, also after a restart."""

import numpy as np
import pytest

from flan_jax.checkpoints import Checkpoints, Keep
from flan_jax.errors import ConfigError, UnknownName

LOSSES = {1: 3.0, 2: 1.0, 3: 5.0, 4: 2.0, 5: 4.0, 6: None}


@pytest.mark.parametrize(
  ("keep", "stay"),
  [
    (Keep(2), {5, 6}),
    (Keep(None), {1, 2, 3, 4, 5, 6}),
    (Keep(1, every=2), {2, 4, 6}),
    (Keep(1, best=2), {2, 4, 6}),
    (Keep(1, best=2, by="highest loss"), {3, 5, 6}),
    (Keep(1, every=3, best=1), {2, 3, 6}),
    (Keep(2, best=9), {1, 2, 3, 4, 5, 6}),
  ],
)
def test_a_checkpoint_stays_that_any_of_them_wants(keep, stay):
  assert keep.steps(LOSSES) == stay


def test_of_equally_good_ones_the_later_stays():
  assert Keep(1, best=1).steps({1: 2.0, 2: 2.0, 3: 4.0}) == {2, 3}


def test_what_is_measured_is_named_by_its_path():
  measured = {"loss": 2.0, "tasks": {"boolq": 0.5}, "note": "text"}
  assert Keep(by="highest tasks/boolq").value(measured) == 0.5
  assert Keep().value(None) is None and Keep().value({"loss": float("nan")}) is None
  with pytest.raises(UnknownName, match="Did you mean 'tasks/boolq'"):
    Keep(by="lowest tasks/bolq").value(measured)


@pytest.mark.parametrize("settings", [{"latest": 0}, {"every": 0}, {"best": 0}, {"by": "loss"}])
def test_what_cannot_be_obeyed_is_refused(settings):
  with pytest.raises(ConfigError):
    Keep(**settings)


def test_the_best_are_known_after_a_restart_and_a_damaged_one_is_not_among_them(tmp_path):
  keep, state = Keep(1, best=2), {"params": {"kernel": np.zeros(3, np.float32)}}

  def save(*steps):
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
      for step in steps:
        value = LOSSES[step]
        checkpoints.save(step, state, {"step": step}, value and {"loss": value})

  save(1, 2, 3)
  assert Checkpoints(tmp_path).steps() == [1, 2, 3]
  best = min((1, 2, 3), key=lambda step: LOSSES[step] or float("inf"))
  assert Checkpoints(tmp_path).best("lowest loss") == best
  with pytest.raises(UnknownName, match="measurement"):
    Checkpoints(tmp_path).best("highest accuracy")
  save(4)
  assert Checkpoints(tmp_path).steps() == [2, 4]
  (tmp_path / "2/meta/metadata").write_text("{")
  save(5, 6)
  assert Checkpoints(tmp_path).steps() == [4, 5, 6]
