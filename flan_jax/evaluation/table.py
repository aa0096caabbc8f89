"""The report as a table on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from flan_jax.evaluation.report import Report


def terminal_table(report: Report) -> str:
  """Every task in a line, then the macro-averages and the notes. Plain text, about 110 columns."""
  lines = _aligned(_task_cells(report), right_from=2)
  lines += ["", *_aligned(_macro_cells(report), right_from=1)]
  if report.notes:
    lines += ["", *report.notes]
  return "\n".join(lines) + "\n"


def _task_cells(report: Report) -> list[list[str]]:
  cells = [
    ["task", "metric", "n", "tpl"]
    + (["before", "after", "change  [95 %]"] if report.compares else ["value  [95 %]"])
    + ["major.", "random", "AUC", "top label", "verdict"]
  ]
  for row in sorted(report.tasks, key=lambda row: row["held_out"]):
    name = f"{row['name']} *" if row["held_out"] else row["name"]
    line = [name, row["metric"], str(row["n"]), str(len(row["templates"]))]
    style = "" if row["baseline_format"] in (None, "plain") else f" {row['baseline_format']}"
    line += _values(report, row, style)
    line += [
      _number(row["majority"]),
      _number(row["random"]),
      _change(row["auc_before"], row["auc_after"]),
      _change(row["top_label_share_before"], row["top_label_share_after"]),
      row["verdict"] or "",
    ]
    cells.append(line)
    for metric, values in row["also"].items():
      cells.append(["", metric, "", "", *_values(report, values), *[""] * 5])
  return cells


def _values(report: Report, row: Mapping[str, Any], style: str = "") -> list[str]:
  """The cells of one metric."""
  if not report.compares:
    return [f"{row['after']:.3f} {_ends(row['after_interval'])}"]
  change = f"{row['delta']:+.3f} {_ends(row['delta_interval'])}"
  return [f"{row['before']:.3f}{style}", f"{row['after']:.3f}", change]


def _macro_cells(report: Report) -> list[list[str]]:
  cells = []
  for row in report.macro:
    tasks = f"{len(row['tasks'])} task{'s' if len(row['tasks']) > 1 else ''}"
    if row["delta"] is None:
      cells.append([row["name"], tasks, f"{row['after']:.3f} {_ends(row['after_interval'])}"])
    else:
      cells.append(
        [
          row["name"],
          tasks,
          f"{row['before']:.3f}",
          f"{row['after']:.3f}",
          f"{row['delta']:+.3f} {_ends(row['delta_interval'])}",
        ]
      )
  if any(row["held_out"] for row in report.tasks):
    cells.append(["* held out of tuning"])
  return cells


def _aligned(cells: Sequence[Sequence[Any]], right_from: int) -> list[str]:
  widths: dict[int, int] = {}
  for line in cells:
    if len(line) > 1:
      for column, cell in enumerate(line):
        widths[column] = max(widths.get(column, 0), len(cell))
  shown = []
  for line in cells:
    padded = [
      cell.ljust(widths.get(i, 0)) if i < right_from else cell.rjust(widths.get(i, 0))
      for i, cell in enumerate(line)
    ]
    shown.append("  ".join(padded).rstrip())
  return shown


def _ends(interval: Sequence[float]) -> str:
  return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.2f}"


def _change(before: float | None, after: float | None) -> str:
  if before is None or after is None:
    return _number(after)
  return f"{before:.2f} > {after:.2f}"
