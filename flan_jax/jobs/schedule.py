"""`flan-jax schedule`: the learning rates of several launches side by side, without running any."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flan_jax.errors import ConfigError
from flan_jax.jobs.launch import CONFIGURABLES, configure
from flan_jax.jobs.optimizer import Optimizer
from flan_jax.training.schedules import Schedule

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 48  # characters of a curve on the terminal


def schedule(optimizer: Optimizer, steps: int) -> np.ndarray:
  """The rate of each update of a run; the first has the number 0.

  Raises:
    ConfigError: the run ends before its warmup does, or no update has a rate above 0.
  """
  if steps < 1:
    raise ConfigError(f"schedule.steps={steps} must be 1 or more")
  curve = optimizer.schedule
  if isinstance(curve, Schedule) and curve.warmup_steps > steps:
    raise ConfigError(
      f"the warmup of {curve.warmup_steps:,} updates is longer than the whole run of {steps:,}; lower warmup_steps "
      "or raise the steps"
    )
  rates = np.asarray(jax.jit(jax.vmap(curve))(jnp.arange(steps, dtype=jnp.int32)), np.float64)
  if not (rates > 0).any():
    raise ConfigError(
      f"the learning rate of all {steps:,} updates is 0; raise the steps, or the schedule's total_steps"
    )
  return rates


class Curve(NamedTuple):
  """What one launch, or one phase of it, does."""

  name: str
  rates: np.ndarray

  def points(self) -> dict[str, int]:
    """The numbers of the updates that are worth telling. The warmup ends where no higher rate follows."""
    falls = np.diff(self.rates) <= 0
    warm = int(np.argmax(falls)) if falls.any() else len(self.rates) - 1
    last = len(self.rates) - 1
    peak = int(np.argmax(self.rates))
    return {"first": 0, "warmed up": warm, "middle": last // 2, "last": last, "peak": peak}


def compare_schedules(files: Sequence[str], bindings: Sequence[str], out: str | None) -> str:
  """Each gin file as a launch of its own, and the same bindings for all of them.

  Args:
    out: a .png that the curves are drawn into; None: none is drawn.

  Returns:
    A table and a picture of letters.

  Raises:
    ConfigError: a launch is refused, or there is none.
  """
  if not files:
    raise ConfigError("nothing to show; name a recipe, as in --gin_file=recipes/quickstart.gin.")
  if out is not None and Path(out).suffix != ".png":
    raise ConfigError(f"--out={out}: the picture is a PNG; name a file that ends with .png.")
  curves = [curve for file in files for curve in _curves(file, bindings)]
  if out is not None:
    _draw(curves, Path(out))
  return "\n".join([*_table(curves), "", *_sparklines(curves)])


def _curves(file: str, bindings: Sequence[str]) -> list[Curve]:
  curves = []
  for phase in configure("schedule", [file], bindings):
    with phase:
      rates = CONFIGURABLES["schedule"]()
    curves.append(Curve(f"{file} {phase.name}".strip(), rates))
  return curves


def _table(curves: Sequence[Curve]) -> list[str]:
  """One line a curve: rate @ number of the update."""
  lines = [("rate @ update", "updates", *curves[0].points())]
  for curve in curves:
    told = (f"{curve.rates[n]:.3g} @ {n:,}" for n in curve.points().values())
    lines.append((curve.name, f"{len(curve.rates):,}", *told))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return [
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in lines
  ]


def _sparklines(curves: Sequence[Curve]) -> list[str]:
  """The shape of each: over its own updates, and from zero to its own peak."""
  names = max(len(curve.name) for curve in curves)
  lines = []
  for curve in curves:
    places = np.linspace(0, len(curve.rates) - 1, min(_WIDTH, len(curve.rates))).round().astype(int)
    levels = curve.rates[places] / (curve.rates.max() or 1.0) * (len(_BARS) - 1)
    bars = "".join(_BARS[round(float(level))] for level in levels)
    lines.append(f"{curve.name.ljust(names)}  {bars}")
  return lines


def _draw(curves: Sequence[Curve], path: Path) -> None:
  # Its own canvas, without pyplot: nothing global is touched and no display is looked for.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6.4, 3.6), layout="constrained")
  axes = figure.add_subplot()
  for curve in curves:
    axes.plot(curve.rates, linewidth=1.8, label=curve.name)
  axes.set_xlabel("update")
  axes.set_ylabel("learning rate")
  axes.set_ylim(bottom=0)
  axes.grid(axis="y", linewidth=0.6, alpha=0.5)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  axes.legend(frameon=False, fontsize="small")
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=160)
