"""Reports, comparisons and explanations as tables on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from flan_jax.evaluation.comparison import Compared
from flan_jax.evaluation.explanation import LADDER, Explained
from flan_jax.evaluation.report import Report

_WITH_ENDS = 3  # checkpoints


def terminal_table(report: Report) -> str:
  """Every task in a line, then the macro-averages and the notes. Plain text, about 110 columns."""
  lines = _aligned(_task_cells(report), right_from=2)
  lines += ["", *_aligned(_macro_cells(report), right_from=1)]
  if report.notes:
    lines += ["", *report.notes]
  return "\n".join(lines) + "\n"


def compared_table(compared: Compared) -> str:
  """Every task in a line, then the means of groups; the change of each checkpoint from the first, of more than three
  without its interval: a star where that has no 0 in it.
  """
  ends = len(compared.labels) <= _WITH_ENDS
  cells = [["task", "metric", "n", "tpl", compared.labels[0]]]
  for label in compared.labels[1:]:
    cells[0] += [label, "change  [95 %]" if ends else "change"]
  for row in compared.tasks:
    name = f"{row['name']} *" if row["held_out"] else row["name"]
    line = [name, row["metric"], str(row["n"]), str(len(row["templates"]))]
    cells.append(line + _side_by_side(row["scores"], ends))
  for group in compared.groups:
    count = len(group["tasks"])
    tasks = f"{count} task{'s' if count > 1 else ''}"
    cells.append([group["name"], tasks, "", "", *_side_by_side(group["scores"], ends)])
  lines = _aligned(cells, right_from=2)
  split = 1 + len(compared.tasks)
  lines = [*lines[:split], "", *lines[split:]]
  if any(row["held_out"] for row in compared.tasks):
    lines.append("* held out of tuning")
  if any(score.get("collapsed") for row in compared.tasks for score in row["scores"]):
    lines.append("c collapsed: nearly always the same answer")
  if not ends:
    lines.append("change*: its 95 % interval, which the page and --json tell, has no 0 in it")
  if compared.notes:
    lines += ["", *compared.notes]
  return "\n".join(lines) + "\n"


def _side_by_side(scores: Sequence[Mapping[str, Any]], ends: bool) -> list[str]:
  cells = []
  for score in scores:
    mark = " c" if score.get("collapsed") else ""
    cells.append(f"{score['value']:.3f}{mark}")
    if "delta" in score:
      low, high = score["delta_interval"]
      sure = "*" if low > 0 or high < 0 else " "
      shown = f" {in_brackets(score['delta_interval'])}" if ends else sure
      cells.append(f"{score['delta']:+.3f}{shown}")
  return cells


def explained_table(explained: Explained) -> str:
  """The ladder with the parts of the change on each rung, and below it every task."""
  parts = explained.ladder[0]["parts"]
  heads = ["", "before", "after", *(f"{part}  [95 %]" for part in parts), "AUC"]
  cells, flipped = [[*heads, "flips + -"]], {rung: [0, 0] for rung in LADDER}
  for row in explained.tasks:
    for place, to in enumerate(("right", "wrong")):
      flipped[row["rung"]][place] += row["flips"][to]
  for mean in explained.ladder:
    up, down = flipped[mean["rung"]]
    cells.append([mean["rung"], *_parts(mean), "", f"{up} {down}"])
    for row in (each for each in explained.tasks if each["rung"] == mean["rung"]):
      flips = f"{row['flips']['right']} {row['flips']['wrong']}"
      name = f"  {row['name']}" + ("" if row["calibrates"] else " '")
      cells.append([name, *_parts(row), from_to(row["auc_before"], row["auc_after"]), flips])
  lines = _aligned(cells, right_from=1)
  if not all(row["calibrates"] for row in explained.tasks):
    lines.append("' no label prior can be told: texts, or options of each example's own")
  if explained.native is None:
    lines.append(
      "The untuned model was not judged in its own chat format: format is part of the rest."
    )
  if explained.notes:
    lines += ["", *explained.notes]
  return "\n".join(lines) + "\n"


def _parts(row: Mapping[str, Any]) -> list[str]:
  return [f"{row['before']:.3f}", f"{row['after']:.3f}"] + [
    f"{part['value']:+.3f} {in_brackets(part['interval'])}" for part in row["parts"].values()
  ]


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
    line += value_cells(report, row, style)
    line += [
      two_digits(row["majority"]),
      two_digits(row["random"]),
      from_to(row["auc_before"], row["auc_after"]),
      from_to(row["top_label_share_before"], row["top_label_share_after"]),
      row["verdict"] or "",
    ]
    cells.append(line)
    for metric, also in row["also"].items():
      cells.append(["", metric, "", "", *value_cells(report, also), *[""] * 5])
  return cells


def value_cells(report: Report, row: Mapping[str, Any], style: str = "") -> list[str]:
  """The cells of one metric; `style` names the prompt format of the better baseline."""
  if not report.compares:
    return [f"{row['after']:.3f} {in_brackets(row['after_interval'])}"]
  gained = f"{row['delta']:+.3f} {in_brackets(row['delta_interval'])}"
  return [f"{row['before']:.3f}{style}", f"{row['after']:.3f}", gained]


def _macro_cells(report: Report) -> list[list[str]]:
  cells = []
  for row in report.macro:
    tasks = f"{len(row['tasks'])} task{'s' if len(row['tasks']) > 1 else ''}"
    cells.append([row["name"], tasks, *value_cells(report, row)])
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


def in_brackets(interval: Sequence[float]) -> str:
  """An interval in brackets."""
  return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def two_digits(value: float | None) -> str:
  """Two digits, or nothing where there is no number."""
  return "" if value is None else f"{value:.2f}"


def from_to(before: float | None, after: float | None) -> str:
  """From what to what, or what alone."""
  if before is None or after is None:
    return two_digits(after)
  return f"{before:.2f} > {after:.2f}"
