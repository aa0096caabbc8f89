"""`report.md`: the report's tables for a paper or a pull request."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flan_jax.data.atomic import write_whole
from flan_jax.evaluation.report import Report
from flan_jax.evaluation.table import from_to, two_digits, value_cells


def write_markdown(
  report: Report, path: Path | str, *, title: str = "Zero-shot evaluation"
) -> None:
  """Write the report as Markdown.

  Raises:
    StorageError: the disk refused.
  """
  write_whole(Path(path), [markdown(report, title)])


def markdown(report: Report, title: str) -> str:
  """A table of the means, one of each group of tasks, and the notes, as GitHub shows them; numbers
  are those of the terminal's table.
  """
  after = report.evaluations["after"]
  lines = [
    f"# {_plain(title)}",
    "",
    f"{_plain(after.checkpoint)}, read as {_plain(after.format)} prompts, scored by "
    f"{_plain(report.scoring)}. Numbers of a task are medians over its templates; intervals are of "
    "95 %, over examples.",
    "",
    "## Means",
    "",
    *_lines(_macro_cells(report), words=1),
  ]
  rows = {row["name"]: row for row in report.tasks}
  for group in report.macro:
    if group["name"] != "held out: all":
      members = [rows[name] for name in group["tasks"]]
      title = _plain(group["name"])
      lines += ["", f"## {title[0].upper()}{title[1:]}", "", *_lines(_task_cells(report, members))]
  if report.notes:
    lines += ["", "## Notes", "", *(f"- {_plain(note)}" for note in report.notes)]
  return "\n".join(lines) + "\n"


def _macro_cells(report: Report) -> Iterator[list[str]]:
  yield ["group", "tasks", *_value_heads(report)]
  for row in report.macro:
    yield [_plain(row["name"]), str(len(row["tasks"])), *value_cells(report, row)]


def _task_cells(report: Report, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
  looked = any(row["overlap"] is not None for row in report.tasks)
  further = ["in training"] if looked else []
  further += ["majority", "random", "AUC", "balanced", "calibrated", "ECE", "top label", "verdict"]
  yield ["task", "metric", "n", "templates", *_value_heads(report), *further]
  for row in rows:
    style = "" if row["baseline_format"] in (None, "plain") else f" {row['baseline_format']}"
    yield [
      *(_plain(row["name"]), _plain(row["metric"]), str(row["n"]), str(len(row["templates"]))),
      *value_cells(report, row, _plain(style)),
      *(["" if row["overlap"] is None else format(row["overlap"], ".1%")] if looked else []),
      *(two_digits(row["majority"]), two_digits(row["random"])),
      *(
        from_to(row[f"{name}_before"], row[f"{name}_after"]).replace(">", "→")
        for name in ("auc", "balanced_accuracy", "calibrated_accuracy", "ece", "top_label_share")
      ),
      row["verdict"] or "",
    ]
    for metric, also in row["also"].items():
      yield ["", _plain(metric), "", "", *value_cells(report, also), *[""] * len(further)]


def _value_heads(report: Report) -> list[str]:
  return ["before", "after", "change [95 %]"] if report.compares else ["value [95 %]"]


def _lines(cells: Iterator[list[str]], words: int = 2) -> Iterator[str]:
  """The rows of a table, the first `words` columns set to the left and numbers to the right."""
  heads = next(cells)
  yield _line(heads)
  yield _line([":--"] * words + ["--:"] * (len(heads) - words))
  yield from map(_line, cells)


def _line(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
  """Text in one line in which no character is Markdown."""
  return re.sub(r"[\\`*<\[|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
