"""Figures as SVG that takes its colours from the page it stands in."""

import io
import re
from typing import Any

# Stand-ins that matplotlib draws with; the page's own colours replace them, light or dark.
COLOURS = {
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


def new_figure(height: float):
  """A figure as wide as the page's, so many inches high, and its axes."""
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
  ink, muted = COLOURS["ink"], COLOURS["muted"]
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


def as_svg(figure, title: str) -> str:
  """The figure as a part of a page.

  Args:
    title: plain words; what is read to those who do not see it.
  """
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
  for name, stand_in in COLOURS.items():
    svg = svg.replace(stand_in, f"var(--{name})")
  return svg
