"""The pages of a comparison and of an explanation: one file each that needs nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flan_jax.data.atomic import write_whole
from flan_jax.evaluation.comparison import Compared
from flan_jax.evaluation.explanation import LADDER, Explained
from flan_jax.evaluation.pages import browser_parts, charts
from flan_jax.evaluation.pages.example_browser import example_browser
from flan_jax.evaluation.report import build_report
from flan_jax.web_page import page


def write_comparison(compared: Compared, path: Path | str) -> None:
  """Write the page of a comparison.

  Raises:
    StorageError: the disk refused.
  """
  title = "Checkpoints compared"
  curves = {
    group["name"]: [(score["value"], *score["interval"]) for score in group["scores"]]
    for group in compared.groups
  }
  first = escape(compared.labels[0])
  body = (
    f'<h1>{title}</h1><p class="lead">On the same examples and templates, scored by '
    f"<code>{escape(compared.scoring)}</code>. Medians over templates; changes are from {first}, with paired 95 % "
    f"intervals.</p>{_notes(compared.notes)}"
    f"<figure>{charts.means_by_checkpoint(compared.labels, curves)}</figure>"
    f"<h2>Groups of tasks</h2>{_side_by_side(compared.labels, compared.groups)}"
    f"<h2>Tasks</h2>{_side_by_side(compared.labels, compared.tasks)}"
    '<p class="legend">* held out of tuning</p>'
  )
  write_whole(Path(path), [page(title, body)])


def write_explanation(explained: Explained, path: Path | str) -> None:
  """Write the page of an explanation.

  Raises:
    StorageError: the disk refused.
  """
  title = "Where the gain came from"
  rungs = "".join(
    f"<dt>{escape(rung)}</dt><dd>{escape(text)}</dd>" for rung, text in LADDER.items()
  )
  before, after = (escape(each.checkpoint) for each in (explained.before, explained.after))
  body = (
    f'<h1>{title}</h1><p class="lead">From {before} to {after}.</p>'
    f"<p>{_MEANING}</p>{_notes(explained.notes)}"
    f"<figure>{charts.parts_by_rung(explained.ladder)}</figure><dl>{rungs}</dl>"
    f"<h2>The ladder</h2>{_parts(explained.ladder)}<h2>Tasks</h2>{_parts(explained.tasks)}"
    f"<h2>Examples</h2>{example_browser(build_report(explained.after, explained.before, resamples=1))}"
  )
  write_whole(Path(path), [page(title, body, browser_parts.STYLE, browser_parts.SCRIPT)])


_MEANING = (
  "The change is the sum of three parts. <b>Format</b>: what the untuned model gains where it is asked in its own chat "
  "format. <b>Label prior</b>: what batch calibration, which removes a preference for some label whatever is asked, "
  "takes back from the tuned model and not from the untuned one. <b>Discrimination</b>: the rest, examples told apart."
)


def _notes(notes: Sequence[str]) -> str:
  listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
  return f"<ul>{listed}</ul>" if notes else ""


def _side_by_side(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
  heads = ["", labels[0]]
  for label in labels[1:]:
    heads += [label, "change [95 %]"]
  lines = []
  for row in rows:
    cells = []
    for score in row["scores"]:
      collapsed = ' <span class="chip collapsed">collapsed</span>' if score.get("collapsed") else ""
      cells.append(f"{score['value']:.3f}{collapsed}")
      if "delta" in score:
        cells.append(_with_ends(score["delta"], score["delta_interval"]))
    lines.append((escape(row["name"]) + (" *" if row.get("held_out") else ""), cells))
  return _table(heads, lines)


def _parts(rows: Sequence[Mapping[str, Any]]) -> str:
  lines = []
  for row in rows:
    name = escape(row["rung"])
    if "name" in row:
      name = f"{escape(row['name'])} <small>{name}</small>"
    cells = [f"{row['before']:.3f}", f"{row['after']:.3f}"]
    cells += [_with_ends(part["value"], part["interval"]) for part in row["parts"].values()]
    if "name" in row:
      known = row["auc_before"] is not None and row["auc_after"] is not None
      cells.append(f"{row['auc_before']:.2f} &rarr; {row['auc_after']:.2f}" if known else "")
      cells.append(f"{row['flips']['right']} / {row['flips']['wrong']}")
    lines.append((name, cells))
  of_tasks = ["AUC", "flipped to right / wrong"] if rows and "name" in rows[0] else []
  return _table(["", "before", "after", *rows[0]["parts"], *of_tasks], lines)


def _with_ends(value: float, ends: Sequence[float]) -> str:
  return f"{value:+.3f} <small>[{ends[0]:.3f}, {ends[1]:.3f}]</small>"


def _table(heads: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
  head = "".join(f"<th>{escape(each)}</th>" for each in heads)
  body = "".join(
    f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    for name, cells in lines
  )
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )
