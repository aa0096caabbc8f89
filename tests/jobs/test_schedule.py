"""`flan-jax schedule` tells the rates that training would take."""

import json

import numpy as np
import pytest

COLD = """
include "check.gin"
include "optimizers/bert.gin"
STEPS = 40
WARMUP_STEPS = 10
"""


def at(points):
  """The words of "RATE @ NUMBER, ..."."""
  return points.replace(",", "").split()


def test_each_gin_file_is_a_line_with_the_rates_of_its_updates(flan_jax, folder):
  (folder / "bert.gin").write_text(COLD)
  table = flan_jax("schedule", "--gin_file=check.gin", "--gin_file=bert.gin").stdout.splitlines()
  assert [line.split() for line in table[:3]] == [
    ["rate", "@", "update", "updates", "first", "warmed", "up", "middle", "last", "peak"],
    ["check.gin", "6", *at("0.0005 @ 0, 0.001 @ 1, 0.00075 @ 2, 0 @ 5, 0.001 @ 1")],
    ["bert.gin", "40", *at("0 @ 0, 0.0009 @ 9, 0.000525 @ 19, 2.5e-05 @ 39, 0.0009 @ 9")],
  ]
  bars = [line.split()[-1] for line in table[4:]]
  assert bars[0] == "▅█▆▅▃▁" and bars[1].startswith("▁") and len(bars[1]) == 40


def test_the_rates_shown_are_those_that_training_logs(flan_jax, folder):
  from flan_jax.jobs.schedule import _curves

  flan_jax("train", "--module", "tasks.py", "--gin_file=check.gin")
  [curve] = _curves("check.gin", ())
  lines = (folder / "runs/tuned/metrics.jsonl").read_text().splitlines()
  logged = [json.loads(line)["learning_rate"] for line in lines]
  np.testing.assert_allclose(curve.rates, logged, rtol=1e-6, atol=1e-12)


def test_every_phase_is_a_line(flan_jax, folder):
  (folder / "phases.gin").write_text(
    'include "check.gin"\n'
    'PHASES = ("pretrain", "tune")\n'
    "pretrain/schedule.steps = 3\n"
    "tune/linear_schedule.peak = 0.5\n"
  )
  table = flan_jax("schedule", "--gin_file=phases.gin").stdout.splitlines()
  assert table[1].split()[:3] == ["phases.gin", "pretrain", "3"]
  assert table[2].split()[:3] == ["phases.gin", "tune", "6"] and table[2].endswith("0.5 @ 1")


def test_the_curves_are_drawn_with_a_legend_by_file(flan_jax, folder, monkeypatch):
  from matplotlib.figure import Figure

  saved, save = [], Figure.savefig
  monkeypatch.setattr(
    Figure, "savefig", lambda self, *args, **kw: (saved.append(self), save(self, *args, **kw))
  )
  (folder / "bert.gin").write_text(COLD)
  both = ("--gin_file=check.gin", "--gin_file=bert.gin")
  flan_jax("schedule", *both, "--out", "plots/rates.png")
  assert (folder / "plots/rates.png").read_bytes().startswith(b"\x89PNG")
  [axes] = saved[0].axes
  assert [text.get_text() for text in axes.get_legend().get_texts()] == ["check.gin", "bert.gin"]
  assert [len(line.get_ydata()) for line in axes.lines] == [6, 40]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ((), "nothing to show"),
    (("--gin_file=check.gin", "--out=rates.pdf"), "ends with .png"),
    (("--gin_file=check.gin", "--gin.WARMUP_STEPS=7"), "the warmup of 7 updates is longer"),
    (("--gin_file=check.gin", "--gin.STEP=7"), "Did you mean 'STEPS'"),
    (("--gin_file=check.gin", "--gin.BATCH_SIZE=8"), "uses the macro 'BATCH_SIZE'"),
    (("--gin_file=empty.gin",), "schedule.optimizer"),
  ],
)
def test_what_cannot_be_shown_is_refused(flan_jax, folder, arguments, words):
  (folder / "empty.gin").touch()
  assert words in flan_jax("schedule", *arguments, status=2).stderr
