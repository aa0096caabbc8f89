"""Which label was given for which, as tables whose cells are the darker the more they hold."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flan_jax.evaluation.report import Report
from flan_jax.evaluation.results import TaskResult

_MOST_LABELS = 12
_OPEN_TASKS = 6


class Confusion(NamedTuple):
  """How many examples with the label of the row were given that of the column, over all templates."""

  labels: tuple[str, ...]
  counts: Float[np.ndarray, "L L"]


def confusion_of(task: TaskResult, scoring: str) -> Confusion | None:
  """The confusion of a task; None where its templates do not rank the same few labels."""
  found = {tuple(sorted(e.labels)) for t in task.templates for e in t.examples}
  if len(found) != 1 or not all(template.calibrates for template in task.templates):
    return None
  (labels,) = found
  if not 2 <= len(labels) <= _MOST_LABELS:
    return None
  # What an example adds to macro-F1 is its cell of the matrix.
  cells = np.sum([t.added(scoring, "macro_f1").sum(axis=0) for t in task.templates], axis=0)
  counts = cells.reshape(len(labels), len(labels))
  order = _order(labels)
  return Confusion(tuple(labels[k] for k in order), counts[np.ix_(order, order)])


def confusion_tables(report: Report) -> str:
  """Of every task that has one, before beside after, as HTML; "" where no task has."""
  return "".join(
    f"<details{' open' if i < _OPEN_TASKS else ''}><summary>{escape(name)}</summary>"
    f'<div class="beside">{tables}</div></details>'
    for i, (name, tables) in enumerate(_tasks(report))
  )


def _tasks(report: Report) -> Iterator[tuple[str, str]]:
  for comparison in sorted(report.comparisons, key=lambda comparison: comparison.after.held_out):
    tables = ""
    for role, task in (("before", comparison.before), ("after", comparison.after)):
      confusion = confusion_of(task, report.scoring) if task is not None else None
      if confusion is not None:
        tables += _table(role if report.compares else "", confusion)
    if tables:
      yield comparison.after.name, tables


def _table(role: str, confusion: Confusion) -> str:
  names = confusion.labels
  head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
  rows = "".join(
    f'<tr><th scope="row">{escape(name)}</th>{_cells(counts)}<td>{counts.sum():.0f}</td></tr>'
    for name, counts in zip(names, confusion.counts, strict=True)
  )
  upright = " upright" if len(names) > 3 else ""
  return (
    f'<div class="scroll"><table class="heat{upright}"><caption>{role}</caption>'
    f'<thead><tr><th scope="col"><small>right &darr; given &rarr;</small></th>{head}'
    f'<th scope="col"><span>n</span></th></tr></thead><tbody>{rows}</tbody></table></div>'
  )


def _cells(counts: Float[np.ndarray, " L"]) -> str:
  """Each label's share of those of one gold label, in percent."""
  shares = 100 * counts / max(counts.sum(), 1)
  return "".join(f'<td style="--share: {share:.0f}">{share:.0f}</td>' for share in shares)


def _order(labels: Sequence[str]) -> list[int]:
  """By value where all are numbers, else as they stand."""
  try:
    return sorted(range(len(labels)), key=lambda k: float(labels[k]))
  except ValueError:
    return list(range(len(labels)))


STYLE = """
.beside { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: .5rem 0; }
.beside > .scroll { max-width: 100%; }
.heat caption { text-align: left; color: var(--muted); }
.heat th { font-weight: normal; } .heat tbody th { white-space: normal; max-width: 10rem; overflow-wrap: break-word; }
.heat td { text-align: right; min-width: 2.2em; }
.heat td[style] { background: color-mix(in srgb, var(--after) calc(var(--share) * .55%), transparent); }
.heat td:last-child { color: var(--muted); }
.heat.upright thead th { vertical-align: bottom; }
.heat.upright thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem;
  overflow: hidden; text-overflow: ellipsis; }
"""
