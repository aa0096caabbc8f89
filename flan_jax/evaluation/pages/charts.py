"""The course of a training run, and checkpoints beside one another, in figures."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from flan_jax.evaluation.explanation import PARTS
from flan_jax.evaluation.pages.canvas import COLOURS, as_svg, new_figure


def loss_curve(
  points: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]] = ()
) -> str:
  """Training loss by step, with a running mean where there are many points, and the held-out loss."""
  figure, axes = new_figure(2.6)
  steps, losses = [step for step, _ in points], [loss for _, loss in points]
  window = len(points) // 20
  if window > 1:
    axes.plot(steps, losses, color=COLOURS["muted"], linewidth=0.6, alpha=0.6)
    axes.plot(*_running_mean(steps, losses, window), color=COLOURS["after"], linewidth=1.8)
  else:
    axes.plot(steps, losses, color=COLOURS["after"], linewidth=1.8, marker="o", markersize=2.5)
  axes.set_xlabel("step")
  axes.set_ylabel("training loss")
  if held_out:
    axes.plot(
      *zip(*held_out, strict=True),
      color=COLOURS["ink"],
      linewidth=1.2,
      linestyle=":",
      marker="o",
      markersize=3,
    )
    axes.set_ylabel("training loss (dotted: held out)")
  axes.set_ylim(bottom=0)
  axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.6)
  return as_svg(figure, "Training loss by step")


def means_by_step(groups: Mapping[str, Sequence[tuple[int, float]]]) -> str:
  """The mean of each group of tasks, each time that a run was judged."""
  figure, axes = new_figure(2.6)
  for i, (name, points) in enumerate(groups.items()):
    steps, means = zip(*points, strict=True)
    colour = COLOURS["ink" if name.startswith("training") else "after"]
    axes.plot(steps, means, color=colour, linewidth=1.4, marker="osD^v<>"[i % 7], markersize=4)
    axes.annotate(
      name,
      (steps[-1], means[-1]),
      (6, 0),
      textcoords="offset points",
      va="center",
      size=8,
      color=COLOURS["ink"],
    )
  axes.set_xlabel("step")
  axes.set_ylabel("mean over tasks")
  axes.set_ylim(min(0, axes.dataLim.y0), 1)  # a correlation may be below 0
  axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.6)
  return as_svg(figure, "Means of tasks by step")


def time_bars(seconds: Mapping[str, float]) -> str:
  """What the time of a run went into, the largest share first."""
  whole = sum(seconds.values())
  kinds = sorted(seconds, key=lambda kind: -seconds[kind])
  figure, axes = new_figure(0.7 + 0.26 * len(kinds))
  for y, kind in enumerate(kinds):
    share = seconds[kind] / whole
    colour = COLOURS["after" if kind == "step" else "before"]
    axes.barh(y, share, height=0.66, color=colour, linewidth=0)
    label = f"{share:.0%}, {datetime.timedelta(seconds=round(seconds[kind]))}"
    axes.annotate(
      label,
      (share, y),
      (4, 0),
      textcoords="offset points",
      va="center",
      size=8,
      color=COLOURS["ink"],
    )
  axes.set_yticks(range(len(kinds)), kinds)
  axes.set_ylim(len(kinds) - 0.4, -0.6)
  axes.tick_params(axis="y", length=0)
  axes.set_xlim(0, 1.15)
  axes.set_xlabel(f"share of {datetime.timedelta(seconds=round(whole))}")
  return as_svg(figure, "What the time of the run went into")


def means_by_checkpoint(
  labels: Sequence[str], groups: Mapping[str, Sequence[tuple[float, float, float]]]
) -> str:
  """The mean of each group of tasks, checkpoint by checkpoint: (mean, lower end, upper end)."""
  figure, axes = new_figure(3.0)
  for i, (name, points) in enumerate(groups.items()):
    colour = COLOURS["ink" if name.startswith("training") else "after"]
    shift = 0.06 * (i - (len(groups) - 1) / 2)
    places = [x + shift for x in range(len(labels))]
    means = [mean for mean, _, _ in points]
    style = {"color": colour, "marker": "osD^v<>"[i % 7], "markersize": 4}
    axes.plot(places, means, linewidth=1.4, label=name, **style)
    for x, (_, low, high) in zip(places, points, strict=True):
      axes.plot([x, x], [low, high], color=colour, linewidth=1.0, alpha=0.6)
  axes.set_xticks(range(len(labels)), labels)
  if sum(map(len, labels)) > 50:
    axes.tick_params(axis="x", rotation=30)
  axes.set_xlim(-0.4, len(labels) - 0.6)
  axes.set_ylim(min(0, axes.dataLim.y0), 1)
  axes.set_ylabel("mean over tasks")
  axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.6)
  figure.legend(
    loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=COLOURS["ink"]
  )
  return as_svg(figure, "Means of groups of tasks by checkpoint")


def parts_by_rung(ladder: Sequence[Mapping[str, Any]]) -> str:
  """On each rung the whole change, and below it the parts that it is the sum of, with 95 % intervals."""
  parts = list(ladder[0]["parts"])
  colours = dict(zip(PARTS, ("ink", "before", "collapsed", "after"), strict=True))
  figure, axes = new_figure(0.8 + 0.2 * len(ladder) * (len(parts) + 1))
  for i, row in enumerate(ladder):
    for k, part in enumerate(parts):
      value, ends = row["parts"][part]["value"], row["parts"][part]["interval"]
      y = i * (len(parts) + 1) + k
      axes.barh(
        y, value, height=0.8, color=COLOURS[colours[part]], linewidth=0, label=None if i else part
      )
      axes.plot(ends, [y, y], color=COLOURS["muted"], linewidth=1.1, solid_capstyle="butt")
  axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
  places = [i * (len(parts) + 1) + (len(parts) - 1) / 2 for i in range(len(ladder))]
  axes.set_yticks(places, [row["rung"] for row in ladder])
  axes.set_ylim(len(ladder) * (len(parts) + 1) - 1.4, -0.6)
  axes.tick_params(axis="y", length=0)
  axes.set_axisbelow(True)
  axes.grid(axis="x", color=COLOURS["grid"], linewidth=0.6)
  axes.set_xlabel("difference of the mean over tasks")
  figure.legend(
    loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=COLOURS["ink"]
  )
  return as_svg(figure, "What each part of the change comes to, rung by rung")


def _running_mean(
  steps: Sequence[int], losses: Sequence[float], window: int
) -> tuple[list[int], list[float]]:
  means, total = [], 0.0
  for i, loss in enumerate(losses):
    total += loss - (losses[i - window] if i >= window else 0.0)
    means.append(total / min(i + 1, window))
  return list(steps[window - 1 :]), means[window - 1 :]
