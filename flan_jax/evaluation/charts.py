"""The report's plots as SVG that takes its colours from the page it stands in."""

import datetime
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Stand-ins that matplotlib draws with; the page's own colours replace them, light or dark.
_COLOURS = {
  "ink": "#0a0b01",
  "muted": "#0a0b02",
  "grid": "#0a0b03",
  "before": "#0a0b04",
  "after": "#0a0b05",
  "collapsed": "#0a0b06",
  "paper": "#0a0b07",
}
_WIDTH = 5.2  # inches; shown about as wide as a phone, so that its letters stay legible there
_FONT_SIZE = 9.5


def loss_curve(
  points: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]] = ()
) -> str:
  """Training loss by step, with a running mean where there are many points, and the held-out loss."""
  figure, axes = _figure(2.6)
  steps, losses = [step for step, _ in points], [loss for _, loss in points]
  window = len(points) // 20
  if window > 1:
    axes.plot(steps, losses, color=_COLOURS["muted"], linewidth=0.6, alpha=0.6)
    axes.plot(*_running_mean(steps, losses, window), color=_COLOURS["after"], linewidth=1.8)
  else:
    axes.plot(steps, losses, color=_COLOURS["after"], linewidth=1.8, marker="o", markersize=2.5)
  axes.set_xlabel("step")
  axes.set_ylabel("training loss")
  if held_out:
    axes.plot(
      *zip(*held_out, strict=True),
      color=_COLOURS["ink"],
      linewidth=1.2,
      linestyle=":",
      marker="o",
      markersize=3,
    )
    axes.set_ylabel("training loss (dotted: held out)")
  axes.set_ylim(bottom=0)
  axes.grid(axis="y", color=_COLOURS["grid"], linewidth=0.6)
  return _svg(figure, "Training loss by step")


def means_by_step(groups: Mapping[str, Sequence[tuple[int, float]]]) -> str:
  """The mean of each group of tasks, each time that a run was judged."""
  figure, axes = _figure(2.6)
  for i, (name, points) in enumerate(groups.items()):
    steps, means = zip(*points, strict=True)
    colour = _COLOURS["ink" if name.startswith("training") else "after"]
    axes.plot(steps, means, color=colour, linewidth=1.4, marker="osD^v<>"[i % 7], markersize=4)
    axes.annotate(
      name, (steps[-1], means[-1]), (6, 0), textcoords="offset points", va="center", size=8
    )
  axes.set_xlabel("step")
  axes.set_ylabel("mean over tasks")
  axes.set_ylim(min(0, axes.dataLim.y0), 1)  # a correlation may be below 0
  axes.grid(axis="y", color=_COLOURS["grid"], linewidth=0.6)
  return _svg(figure, "Means of tasks by step")


def time_bars(seconds: Mapping[str, float]) -> str:
  """What the time of a run went into, the largest share first."""
  whole = sum(seconds.values())
  kinds = sorted(seconds, key=lambda kind: -seconds[kind])
  figure, axes = _figure(0.7 + 0.26 * len(kinds))
  for y, kind in enumerate(kinds):
    share = seconds[kind] / whole
    colour = _COLOURS["after" if kind == "step" else "before"]
    axes.barh(y, share, height=0.66, color=colour, linewidth=0)
    label = f"{share:.0%}, {datetime.timedelta(seconds=round(seconds[kind]))}"
    axes.annotate(label, (share, y), (4, 0), textcoords="offset points", va="center", size=8)
  axes.set_yticks(range(len(kinds)), kinds)
  axes.set_ylim(len(kinds) - 0.4, -0.6)
  axes.tick_params(axis="y", length=0)
  axes.set_xlim(0, 1.15)
  axes.set_xlabel(f"share of {datetime.timedelta(seconds=round(whole))}")
  return _svg(figure, "What the time of the run went into")


def task_bars(rows: Sequence[Mapping[str, Any]]) -> str:
  """Before and after of every task with 95 % intervals, and what the majority label would get."""
  compares = any(row["before"] is not None for row in rows)
  figure, axes = _figure(0.9 + (0.48 if compares else 0.32) * len(rows))
  height = 0.36 if compares else 0.6
  for y, row in enumerate(rows):
    colour = "collapsed" if row["collapsed"] else "after"
    low = y + height / 2 if compares else y
    _bar(axes, low, row["after"], row["after_interval"], colour, height)
    if row["before"] is not None:
      _bar(axes, y - height / 2, row["before"], row["before_interval"], "before", height)
    if row["majority"] is not None:
      span = [y - 0.42, y + 0.42]
      axes.plot([row["majority"]] * 2, span, color=_COLOURS["ink"], linewidth=1.2, linestyle=":")
  _task_axis(axes, rows)
  axes.set_xlim(min(0, axes.dataLim.x0), 1)
  axes.set_xlabel("median over templates (dotted: majority)")
  return _svg(figure, "Each task before and after tuning, with 95 % intervals")


def template_spread(rows: Sequence[Mapping[str, Any]]) -> str:
  """Every template of every task as a dot; a ring was kept out of training."""
  compares = any(row["before"] is not None for row in rows)
  figure, axes = _figure(0.9 + (0.44 if compares else 0.32) * len(rows))
  for y, row in enumerate(rows):
    for role, offset in (("before", -0.17), ("after", 0.17)) if compares else (("after", 0.0),):
      level = y + offset
      colour = "collapsed" if role == "after" and row["collapsed"] else role
      for template in row["spread"]["templates"]:
        if template[role] is not None:
          face = _COLOURS["paper"] if template["unseen"] else _COLOURS[colour]
          axes.plot(
            template[role], level, "o", markersize=5, color=_COLOURS[colour], markerfacecolor=face
          )
      if role in row["spread"]:
        low, high = row["spread"][role]["quartiles"]
        axes.plot([low, high], [level, level], color=_COLOURS[colour], linewidth=1.6, zorder=0)
  _task_axis(axes, rows)
  axes.set_xlim(min(0, axes.dataLim.x0) - 0.03, 1.03)
  axes.set_xlabel("each template (ring: kept out of training)")
  return _svg(figure, "Each task under each of its templates")


def means_by_checkpoint(
  labels: Sequence[str], groups: Mapping[str, Sequence[tuple[float, float, float]]]
) -> str:
  """The mean of each group of tasks, checkpoint by checkpoint: (mean, lower end, upper end)."""
  figure, axes = _figure(3.0)
  for i, (name, points) in enumerate(groups.items()):
    colour = _COLOURS["ink" if name.startswith("training") else "after"]
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
  axes.grid(axis="y", color=_COLOURS["grid"], linewidth=0.6)
  figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
  return _svg(figure, "Means of groups of tasks by checkpoint")


def parts_by_rung(ladder: Sequence[Mapping[str, Any]]) -> str:
  """On each rung the whole change, and below it the parts that it is the sum of, with 95 % intervals."""
  parts = list(ladder[0]["parts"])
  colours = ("ink", "before", "collapsed", "after")
  figure, axes = _figure(0.8 + 0.2 * len(ladder) * (len(parts) + 1))
  for i, row in enumerate(ladder):
    for k, part in enumerate(parts):
      value, ends = row["parts"][part]["value"], row["parts"][part]["interval"]
      y = i * (len(parts) + 1) + k
      axes.barh(
        y, value, height=0.8, color=_COLOURS[colours[k]], linewidth=0, label=None if i else part
      )
      axes.plot(ends, [y, y], color=_COLOURS["muted"], linewidth=1.1, solid_capstyle="butt")
  axes.axvline(0, color=_COLOURS["muted"], linewidth=0.8)
  places = [i * (len(parts) + 1) + (len(parts) - 1) / 2 for i in range(len(ladder))]
  axes.set_yticks(places, [row["rung"] for row in ladder])
  axes.set_ylim(len(ladder) * (len(parts) + 1) - 1.4, -0.6)
  axes.tick_params(axis="y", length=0)
  axes.set_axisbelow(True)
  axes.grid(axis="x", color=_COLOURS["grid"], linewidth=0.6)
  axes.set_xlabel("difference of the mean over tasks")
  figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
  return _svg(figure, "What each part of the change comes to, rung by rung")


def _figure(height: float):
  # Its own canvas, without pyplot: nothing global is touched and no display is looked for.
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_settings()):
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  return figure, axes


def _settings() -> Any:
  ink, muted = _COLOURS["ink"], _COLOURS["muted"]
  return {
    "font.size": _FONT_SIZE,
    "text.color": ink,
    "axes.labelcolor": muted,
    "axes.edgecolor": muted,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": muted,
    "ytick.color": ink,
  }


def _bar(axes, y: float, value: float, ends: Sequence[float], colour: str, height: float) -> None:
  axes.barh(y, value, height=height, color=_COLOURS[colour], linewidth=0)
  axes.plot(ends, [y, y], color=_COLOURS["ink"], linewidth=1.1, solid_capstyle="butt")


def _task_axis(axes, rows: Sequence[Mapping[str, Any]]) -> None:
  names = [f"{row['name']} *" if row["held_out"] else row["name"] for row in rows]
  axes.set_yticks(range(len(rows)), names)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.tick_params(axis="y", length=0)
  axes.set_axisbelow(True)
  axes.grid(axis="x", color=_COLOURS["grid"], linewidth=0.6)


def _running_mean(
  steps: Sequence[int], losses: Sequence[float], window: int
) -> tuple[list[int], list[float]]:
  means, total = [], 0.0
  for i, loss in enumerate(losses):
    total += loss - (losses[i - window] if i >= window else 0.0)
    means.append(total / min(i + 1, window))
  return list(steps[window - 1 :]), means[window - 1 :]


def _svg(figure, title: str) -> str:
  import matplotlib

  buffer = io.StringIO()
  # Text stays text, in the page's font; the salt keeps two plots' ids apart and the file the same.
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
  svg = buffer.getvalue()
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
  svg = re.sub(
    r'<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{title}" \1', svg, count=1
  )
  svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
  for name, stand_in in _COLOURS.items():
    svg = svg.replace(stand_in, f"var(--{name})")
  return svg
