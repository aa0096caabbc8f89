"""The watchdog of one process: it speaks when a step is slow, and ends a run whose step hangs."""

import threading
import time

import pytest

from flan_jax.errors import ConfigError
from flan_jax.training.watchdog import Watchdog, WatchdogConfig


def watched(config: WatchdogConfig) -> tuple[Watchdog, list[str], threading.Event]:
  reasons, ended = [], threading.Event()

  def end(reason: str) -> None:
    reasons.append(reason)
    ended.set()

  return Watchdog(config, end=end), reasons, ended


def test_a_step_that_hangs_ends_the_run():
  watchdog, reasons, ended = watched(WatchdogConfig(step_timeout=0.2))
  with watchdog:
    watchdog.beat(1)
    watchdog.beat(2)
    assert ended.wait(30)
  assert "watchdog.step_timeout is 0.2 s" in reasons[0] and "in step 2" in reasons[0]


def test_compiling_saving_and_a_run_without_limit_take_as_long_as_they_take():
  watchdog, reasons, _ = watched(WatchdogConfig(step_timeout=0.5))
  with watchdog:
    time.sleep(0.8)
    watchdog.beat(1)
    time.sleep(0.8)
    watchdog.beat(2)
    with watchdog.pause("saving step"):
      time.sleep(0.8)
  watchdog, unlimited, _ = watched(WatchdogConfig(heartbeat=0.2))
  with watchdog:
    watchdog.beat(1)
    watchdog.beat(2)
    time.sleep(0.8)
  assert reasons == unlimited == []


def test_one_process_speaks_only_when_a_step_is_slow(capsys):
  watchdog, _, _ = watched(WatchdogConfig(heartbeat=1.0))
  with watchdog:
    for step in range(1, 9):
      watchdog.beat(step)
      time.sleep(0.05)
    quick = capsys.readouterr().err
    deadline, slow = time.monotonic() + 30, ""
    while not slow and time.monotonic() < deadline:
      time.sleep(0.05)
      slow = capsys.readouterr().err
  assert quick == "" and "heartbeat: in step 8 for" in slow


def test_a_time_of_nothing_is_refused():
  with pytest.raises(ConfigError, match="watchdog.heartbeat=0"):
    WatchdogConfig(heartbeat=0)
