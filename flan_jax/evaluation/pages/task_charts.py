"""What an evaluation found, in figures."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np

from flan_jax.evaluation.metrics import Reliability
from flan_jax.evaluation.pages.canvas import COLOURS, as_svg, new_figure

_BOX_FROM = 5  # templates
# Of a side of a square figure: a point's width, a letter's, a line's height.
_POINT, _LETTER, _LINE = 0.036, 0.0145, 0.032

Rows = Sequence[Mapping[str, Any]]


def task_bars(rows: Rows) -> str:
  """Before and after of every task with 95 % intervals, and what the majority label would get."""
  axis = "median over templates (dotted: majority)"
  return _bars(rows, axis, "Each task before and after tuning, with 95 % intervals")


def macro_bars(rows: Rows) -> str:
  """The same of the means over groups of tasks."""
  plain = {"majority": None, "collapsed": False, "held_out": False}
  named = [{**row, **plain, "name": fill(row["name"], 18, break_long_words=False)} for row in rows]
  return _bars(named, "mean over tasks", "Means over tasks before and after, with 95 % intervals")


def template_spread(rows: Rows) -> str:
  """Every template of every task as a dot (a ring was kept out of training), and what they make
  together: a box from quartile to quartile of at least five, a line of fewer.
  """
  compares = any(row["before"] is not None for row in rows)
  boxed = any(len(row["spread"]["templates"]) >= _BOX_FROM for row in rows)
  figure, axes = new_figure(0.9 + (0.44 if compares else 0.32) * (1.35 if boxed else 1) * len(rows))
  for y, row in enumerate(rows):
    for role, level in (("before", y - 0.21), ("after", y + 0.21)) if compares else (("after", y),):
      colour = "collapsed" if role == "after" and row["collapsed"] else role
      known = [t for t in row["spread"]["templates"] if t[role] is not None]
      if len(known) >= _BOX_FROM:
        _box(axes, level, [t[role] for t in known], COLOURS[colour])
      elif known:
        ends = row["spread"][role]["quartiles"]
        axes.plot(ends, [level] * 2, color=COLOURS[colour], linewidth=1.6, zorder=0)
      _dots(axes, level, known, role, COLOURS[colour])
  _task_axis(axes, rows)
  axes.set_xlim(min(0, axes.dataLim.x0) - 0.03, 1.03)
  axes.set_xlabel("each template (ring: kept out of training)")
  return as_svg(figure, "Each task under each of its templates")


def before_after(rows: Rows) -> str:
  """Every task as a point, before to the right and after upwards, with its templates as small ones."""
  figure, axes = new_figure(4.9)
  for row in rows:
    marker, colour = ("D", "after") if row["held_out"] else ("o", "muted")
    style = {"color": COLOURS["collapsed" if row["collapsed"] else colour], "linewidth": 0}
    templates = row["spread"]["templates"]
    if len(templates) > 1:
      pairs = [(t["before"], t["after"]) for t in templates]
      axes.plot(*zip(*pairs, strict=True), marker, markersize=2.6, alpha=0.55, **style)
    edge = {"markeredgecolor": COLOURS["paper"], "markeredgewidth": 0.8}
    axes.plot(row["before"], row["after"], marker, markersize=8, zorder=3, **edge, **style)
  low = min(0, axes.dataLim.x0, axes.dataLim.y0)
  _square(axes, low, "before", "after")
  _name_points(axes, rows, low)
  return as_svg(figure, "Each task after tuning against before")


def reliability_curves(curves: Mapping[str, Reliability]) -> str:
  """How often answers of the same confidence are right; a larger point has more of the answers."""
  figure, axes = new_figure(4.9)
  for role, curve in curves.items():
    colour = COLOURS[role]
    axes.plot(curve.confidence, curve.accuracy, color=colour, linewidth=1.6)
    area = 12 + 220 * curve.share
    axes.scatter(curve.confidence, curve.accuracy, area, color=colour, linewidth=0, zorder=3)
  _square(axes, 0, "confidence: the chosen option's share", "share of right answers")
  return as_svg(figure, "Accuracy by confidence")


def _bars(rows: Rows, axis: str, title: str) -> str:
  compares = any(row["before"] is not None for row in rows)
  figure, axes = new_figure(0.9 + (0.48 if compares else 0.32) * len(rows))
  height = 0.36 if compares else 0.6
  for y, row in enumerate(rows):
    colour = "collapsed" if row["collapsed"] else "after"
    low = y + height / 2 if compares else y
    _bar(axes, low, row["after"], row["after_interval"], colour, height)
    if row["before"] is not None:
      _bar(axes, y - height / 2, row["before"], row["before_interval"], "before", height)
    if row["majority"] is not None:
      span = [y - 0.42, y + 0.42]
      axes.plot([row["majority"]] * 2, span, color=COLOURS["ink"], linewidth=1.2, linestyle=":")
  _task_axis(axes, rows)
  axes.set_xlim(min(0, axes.dataLim.x0), 1)
  axes.set_xlabel(axis)
  return as_svg(figure, title)


def _bar(axes, y: float, value: float, ends: Sequence[float], colour: str, height: float) -> None:
  axes.barh(y, value, height=height, color=COLOURS[colour], linewidth=0)
  axes.plot(ends, [y, y], color=COLOURS["ink"], linewidth=1.1, solid_capstyle="butt")


def _box(axes, y: float, values: Sequence[float], colour: str) -> None:
  """Quartiles, the median, and whiskers to the farthest value within 1.5 times their distance."""
  first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
  reach = 1.5 * (third - first)
  inside = [value for value in values if first - reach <= value <= third + reach]
  for ends in ((min(inside), first), (third, max(inside))):
    axes.plot(ends, [y, y], color=colour, linewidth=1.2, zorder=0)
  axes.barh(y, third - first, 0.34, first, color=colour, alpha=0.3, linewidth=0, zorder=0)
  axes.barh(y, third - first, 0.34, first, fill=False, edgecolor=colour, linewidth=1, zorder=1)
  axes.plot([median] * 2, [y - 0.17, y + 0.17], color=COLOURS["ink"], linewidth=1.8, zorder=1)


def _dots(axes, y: float, templates: Rows, role: str, colour: str) -> None:
  """The templates as dots, neighbours a little apart where there are many."""
  ordered = sorted(templates, key=lambda template: template[role])
  step, size = (0.075, 3.2) if len(ordered) >= _BOX_FROM else (0.0, 5)
  for unseen in (False, True):
    shown = [
      (template[role], y + step * ((k % 3) - 1))
      for k, template in enumerate(ordered)
      if template["unseen"] == unseen
    ]
    if shown:
      face = COLOURS["paper"] if unseen else colour
      edge = {"color": colour, "markeredgewidth": 0.9, "linewidth": 0}
      axes.plot(*zip(*shown, strict=True), "o", markersize=size, markerfacecolor=face, **edge)


def _square(axes, low: float, across: str, upwards: str) -> None:
  margin = 0.03 * (1 - low)
  axes.plot([low, 1], [low, 1], color=COLOURS["muted"], linewidth=0.9, linestyle=":", zorder=0)
  axes.set_xlim(low - margin, 1 + margin)
  axes.set_ylim(low - margin, 1 + margin)
  axes.set_aspect("equal")
  axes.set_xlabel(across)
  axes.set_ylabel(upwards)
  axes.set_axisbelow(True)
  axes.grid(color=COLOURS["grid"], linewidth=0.6)


def _name_points(axes, rows: Rows, low: float) -> None:
  """The names of the tasks beside their points, those that changed most first, as far as there is room."""
  scale = 1 - low
  half = _POINT * scale / 2
  taken = [
    (x - half, x + half, y - half, y + half) for x, y in ((r["before"], r["after"]) for r in rows)
  ]
  for row in sorted(rows, key=lambda row: -abs(row["after"] - row["before"])):
    width, height = _LETTER * scale * len(row["name"]), _LINE * scale
    for across, upwards in ((1, 0), (-1, 0), (0, -1), (0, 1)):
      x = row["before"] + across * (half + width / 2)
      y = row["after"] + upwards * (half + height / 2)
      box = (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
      if low < box[0] and box[1] < 1 and not any(_overlap(box, other) for other in taken):
        style = {"ha": "center", "va": "center", "size": 7.5, "color": COLOURS["ink"]}
        paper = {"facecolor": COLOURS["paper"], "alpha": 0.7, "linewidth": 0, "pad": 0.5}
        axes.text(x, y, _literal(row["name"]), bbox=paper, **style)
        taken.append(box)
        break


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
  """Whether two boxes (left, right, below, above) share a part."""
  return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _task_axis(axes, rows: Rows) -> None:
  names = [_literal(f"{row['name']} *" if row["held_out"] else row["name"]) for row in rows]
  axes.set_yticks(range(len(rows)), names)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.tick_params(axis="y", length=0)
  axes.set_axisbelow(True)
  axes.grid(axis="x", color=COLOURS["grid"], linewidth=0.6)


def _literal(name: str) -> str:
  """The name as matplotlib shows it; between two dollars it would see mathematics."""
  return name.replace("$", r"\$")
