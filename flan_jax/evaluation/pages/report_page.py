"""`report.html`: one file that needs nothing else, light or dark, readable on a phone."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from flan_jax.data.atomic import write_whole
from flan_jax.evaluation.calibration import report_reliability
from flan_jax.evaluation.pages import browser_parts, charts, confusion, task_charts
from flan_jax.evaluation.pages.example_browser import example_browser
from flan_jax.evaluation.report import Report
from flan_jax.training.timers import goodput
from flan_jax.web_page import definitions, page

_SHOWN_CHARACTERS = 1200


def write_html(
  report: Report,
  path: Path | str,
  *,
  title: str = "Zero-shot evaluation",
  run_dir: Path | str | None = None,
) -> None:
  """Write the report as one page.

  Args:
    run_dir: of the training run whose course is shown.

  Raises:
    StorageError: the disk refused.
  """
  course = course_of(run_dir) if run_dir is not None else None
  write_whole(Path(path), [html_page(report, title, course)])


def write_course(
  path: Path | str,
  *,
  title: str,
  run_dir: Path | str,
  judged: Path | str | None = None,
  notes: Sequence[str] = (),
) -> None:
  """Write a page with the course of a training run.

  Args:
    judged: the folder of its evaluation.jsonl and validation.jsonl, where those are not the run's.

  Raises:
    StorageError: the disk refused.
  """
  parts = _course_sections(course_of(run_dir, judged))
  figures = "".join(f"<h2>{head}</h2>{figure}" for head, figure in parts)
  body = f"<h1>{escape(title)}</h1>{figures}{_notes(notes)}"
  write_whole(Path(path), [page(title, body, _STYLE)])


def _notes(notes: Sequence[str]) -> str:
  listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
  return f"<ul>{listed}</ul>" if notes else ""


class Course(NamedTuple):
  """How a training run went.

  Args:
    training, held_out: (step, loss).
    means: (step, mean) of each group of tasks, where the run was judged meanwhile.
    seconds: by kind, over all attempts.
  """

  training: Sequence[tuple[int, float]] = ()
  held_out: Sequence[tuple[int, float]] = ()
  means: Mapping[str, Sequence[tuple[int, float]]] = {}
  seconds: Mapping[str, float] = {}


def html_page(report: Report, title: str, course: Course | None = None) -> str:
  """The page as text."""
  sections = dict(_sections(report, course or Course()))
  links = (f'<a href="#{_anchor(head)}">{head}</a>' for head in sections)
  body = [
    _head(report, title),
    f'<nav aria-label="Sections">{" ".join(links)}</nav>',
    *(
      f'<section id="{_anchor(head)}"><h2>{head}</h2>{text}</section>'
      for head, text in sections.items()
    ),
  ]
  style = _STYLE + confusion.STYLE + browser_parts.STYLE
  return page(title, "\n".join(body), style, browser_parts.SCRIPT)


def course_of(run_dir: Path | str, judged: Path | str | None = None) -> Course:
  """The course of a run, from its logs; a step whose loss is not finite has none."""
  # Here, since it brings TensorBoard's writer, which loads torch wherever torch is installed.
  from flan_jax.training.logging import EVALUATION, METRICS, VALIDATION, read_log

  beside = read_log(judged, VALIDATION) if judged else []
  training, held_out = (
    [(line["step"], line["loss"]) for line in lines if line["loss"] is not None]
    for lines in (read_log(run_dir, METRICS), beside or read_log(run_dir, VALIDATION))
  )
  means: dict[str, list[tuple[int, float]]] = {}
  for line in read_log(judged or run_dir, EVALUATION):
    for name, mean in line["means"].items():
      means.setdefault(name, []).append((line["step"], mean))
  time = goodput(run_dir)
  return Course(training, held_out, means, time["seconds"] if time else {})


def _course_sections(course: Course) -> Iterator[tuple[str, str]]:
  if course.training:
    yield "Training loss", _figure(charts.loss_curve(course.training, course.held_out))
  if course.means:
    yield "Judged meanwhile", _figure(charts.means_by_step(course.means))
  if course.seconds:
    yield "Where the time went", _figure(charts.time_bars(course.seconds))


def _head(report: Report, title: str) -> str:
  after = report.evaluations["after"]
  return (
    f'<h1>{escape(title)}</h1><p class="lead">{escape(after.checkpoint)}, read as '
    f"{escape(after.format)} prompts, scored by <code>{escape(report.scoring)}</code>.</p>"
    f"{_cards(report)}{_notes(report.notes)}"
  )


def _sections(report: Report, course: Course) -> Iterator[tuple[str, str]]:
  """Headings, and what stands below each."""
  rows = sorted(report.tasks, key=lambda row: row["held_out"])
  legend, roles = _legend(report), _legend(report, of_tasks=False)
  yield "Clusters", roles + _figure(task_charts.macro_bars(report.macro))
  yield "Tasks", legend + _figure(task_charts.task_bars(rows)) + _table(report, rows)
  yield "Spread over templates", legend + _figure(task_charts.template_spread(rows))
  if report.compares:
    yield "Before and after", _SCATTER_LEGEND + _figure(task_charts.before_after(rows))
  curves = report_reliability(report)
  if curves:
    figure = _figure(task_charts.reliability_curves(curves))
    yield "Calibration", f"{_calibration_errors(report)}{roles}{figure}"
  tables = confusion.confusion_tables(report)
  if tables:
    yield "Confusion", _CONFUSION_LEGEND + tables
  yield from _course_sections(course)
  yield "Examples", example_browser(report)
  yield "How it was run", _definitions(_flat(report.environment))


def _anchor(head: str) -> str:
  return head.lower().replace(" ", "-")


def _calibration_errors(report: Report) -> str:
  """The errors of the tasks, averaged; those of the curve would let one task make up for another."""
  told = []
  for role in ("before", "after"):
    errors = [row[f"ece_{role}"] for row in report.tasks if row[f"ece_{role}"] is not None]
    if errors:
      told.append(f"<b>{sum(errors) / len(errors):.3f}</b> {role}")
  return (
    f'<p class="legend">Expected calibration error, the mean of the ranked tasks: {", ".join(told)}. '
    "Confidence is the chosen option's share in the softmax of the scores; every task weighs the "
    "same, and a larger point has more of the answers.</p>"
  )


def _cards(report: Report) -> str:
  cards = []
  for row in report.macro:
    if row["delta"] is None:
      number, ends = f"{row['after']:.3f}", row["after_interval"]
      small = f"mean of {_tasks(row)}"
    else:
      number, ends = f"{row['delta']:+.3f}", row["delta_interval"]
      small = f"{row['before']:.3f} to {row['after']:.3f}, mean of {_tasks(row)}"
      if row["collapsed"]:
        small += f"; {len(row['collapsed'])} collapsed, no gain counted"
    cards.append(
      f'<div class="card"><div>{escape(row["name"])}</div><div class="number">{number}</div>'
      f"<div>95 %: {_ends(ends)}</div><div>{escape(small)}</div></div>"
    )
  return '<div class="cards">' + "".join(cards) + "</div>"


def _tasks(row: Mapping[str, Any]) -> str:
  return f"{len(row['tasks'])} task{'s' if len(row['tasks']) > 1 else ''}"


def _legend(report: Report, of_tasks: bool = True) -> str:
  keys = ['<span class="key after"></span>after']
  if report.compares:
    both = " (the better of two formats)" if "baseline" in report.evaluations else ""
    keys.insert(0, f'<span class="key before"></span>before{both}')
  if of_tasks and any(row["collapsed"] for row in report.tasks):
    keys.append('<span class="key collapsed"></span>collapsed')
  if of_tasks and any(row["held_out"] for row in report.tasks):
    keys.append("* held out of tuning")
  return '<p class="legend">' + "".join(f"<span>{key}</span> " for key in keys) + "</p>"


def _figure(svg: str) -> str:
  return f"<figure>{svg}</figure>"


def _table(report: Report, rows: Sequence[Mapping[str, Any]]) -> str:
  heads = ["task"]
  if report.compares:
    heads += ["before", "after", "change [95 %]", "verdict"]
  else:
    heads += ["value [95 %]", "collapsed"]
  looked = any(row["overlap"] is not None for row in rows)
  heads += ["in training"] if looked else []
  heads += ["majority", "random", "balanced", "calibrated", "AUC", "ECE", "top label"]
  heads += ["metric", "also", "n", "templates", "cluster"]
  lines = []
  for row in rows:
    cells = [f"<th>{escape(row['name'])}{' *' if row['held_out'] else ''}</th>"]
    if report.compares:
      cells.append(
        f"<td>{row['before']:.3f} <small>{escape(row['baseline_format'])}</small></td>"
        f"<td>{row['after']:.3f}</td><td>{row['delta']:+.3f} {_ends(row['delta_interval'])}</td>"
        f'<td><span class="chip {row["verdict"]}">{row["verdict"]}</span></td>'
      )
    else:
      cells.append(
        f"<td>{row['after']:.3f} {_ends(row['after_interval'])}</td>"
        f"<td>{'yes' if row['collapsed'] else 'no'}</td>"
      )
    if looked:
      cells.append(f"<td>{'' if row['overlap'] is None else format(row['overlap'], '.1%')}</td>")
    cells.append(f"<td>{_number(row['majority'])}</td><td>{_number(row['random'])}</td>")
    for name in ("balanced_accuracy", "calibrated_accuracy", "auc", "ece", "top_label_share"):
      cells.append(f"<td>{_change(row[f'{name}_before'], row[f'{name}_after'])}</td>")
    cells.append(f"<td>{escape(row['metric'])}</td><td>{_also(row)}</td><td>{row['n']}</td>")
    cells.append(f"<td>{len(row['templates'])}</td><td>{escape(row['cluster'])}</td>")
    lines.append("<tr>" + "".join(cells) + "</tr>")
  head = "".join(f"<th>{head}</th>" for head in heads)
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
    "</table></div>"
  )


def _also(row: Mapping[str, Any]) -> str:
  """The other metrics of a task, one a line."""
  lines = []
  for metric, values in row["also"].items():
    ends = values["after_interval"] if values["delta"] is None else values["delta_interval"]
    change = "" if values["delta"] is None else f", {values['delta']:+.3f}"
    lines.append(f"{escape(metric)} {values['after']:.3f}{change} {_ends(ends)}")
  return "<br>".join(lines)


def _definitions(pairs: Sequence[tuple[str, Any]]) -> str:
  return definitions((_cut(str(key)), _cut(str(value))) for key, value in pairs)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  pairs: list[tuple[str, Any]] = []
  for key, value in tree.items():
    if isinstance(value, Mapping):
      pairs += _flat(value, f"{prefix}{key}.")
    else:
      pairs.append((f"{prefix}{key}", value))
  return pairs


def _cut(text: str) -> str:
  if len(text) <= _SHOWN_CHARACTERS:
    return text
  return text[: _SHOWN_CHARACTERS // 2] + " [...] " + text[-_SHOWN_CHARACTERS // 2 :]


def _ends(interval: Sequence[float]) -> str:
  return f"<small>[{interval[0]:.3f}, {interval[1]:.3f}]</small>"


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.2f}"


def _change(before: float | None, after: float | None) -> str:
  if before is None:
    return _number(after)
  return f"{_number(before)} &rarr; {_number(after)}"


_SCATTER_LEGEND = """
<p class="legend"><span><span class="key trained"></span>trained on</span>
<span><span class="key held_out"></span>held out of tuning</span>
<span>small: each template</span> <span>dotted: no change</span></p>
"""

_CONFUSION_LEGEND = """
<p class="legend">Of the examples with the label of the row, the percentage that was given the label of the column,
over all templates; n counts each under every template.</p>
"""

_STYLE = """
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin: 1rem 0; }
a { color: var(--after); } section { scroll-margin-top: .5rem; }
.legend { font-size: .85rem; margin: 0; }
.legend > span { white-space: nowrap; margin-right: 1rem; }
.cards { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.card { border: 1px solid var(--grid); border-radius: .5rem; padding: .6rem .8rem;
  font-size: .85rem; color: var(--muted); }
.number { font-size: 1.7rem; line-height: 1.2; color: var(--ink); }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px; }
.key.before { background: var(--before); } .key.after { background: var(--after); }
.key.collapsed { background: var(--collapsed); }
.key.trained { background: var(--muted); border-radius: 50%; }
.key.held_out { background: var(--after); transform: rotate(45deg) scale(.8); }
"""
