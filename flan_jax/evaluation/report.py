"""The report: what tuning changed, with error bars, and nothing counted as a gain that is none.

A gain is measured against the better of two baselines: the untuned model in the run's own prompt
format, and in its native chat format. It counts as improved only where the paired interval lies
above zero and the tuned model does not give nearly always the same answer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flan_jax.data.atomic import write_whole
from flan_jax.evaluation import statistics
from flan_jax.evaluation.results import (
  COLLAPSED_ABOVE,
  Evaluation,
  TaskResult,
  TemplateSummary,
  median_of,
)


@dataclass(frozen=True)
class Report:
  """A report, ready to be written or shown.

  Attributes:
    tasks: one row per task, as `report.json` has them; `flan_jax.evaluation.report.task_row` says
      what each holds.
    macro: the macro-averages over the training tasks, each held-out cluster, and all held out.
    scoring: the primary convention.
    notes: sentences a reader should know.
    environment: versions, seconds, memory, seeds, fingerprints.
    evaluations: "after", and "before" and "baseline" where there are any.
    comparisons: what each row of `tasks` is of.
  """

  tasks: list[dict[str, Any]]
  macro: list[dict[str, Any]]
  scoring: str
  notes: list[str]
  environment: dict[str, Any]
  evaluations: Mapping[str, Evaluation] = field(repr=False)
  comparisons: Sequence["Comparison"] = field(repr=False, default=())

  @property
  def compares(self) -> bool:
    """Whether there is a before."""
    return "before" in self.evaluations

  def as_json(self) -> dict[str, Any]:
    return {
      "scoring": self.scoring,
      "checkpoints": {
        role: {
          "checkpoint": evaluation.checkpoint,
          "format": evaluation.format,
          "seconds": evaluation.seconds,
          "fingerprints": dict(evaluation.fingerprints),
          "examples": sum(len(t.examples) for task in evaluation.tasks for t in task.templates),
        }
        for role, evaluation in self.evaluations.items()
      },
      "tasks": self.tasks,
      "macro": self.macro,
      "notes": self.notes,
      "environment": self.environment,
    }

  def write(self, directory: Path | str) -> None:
    """Write `report.json`, and `examples.jsonl` of the checkpoint reported on; what came before it
    goes to `examples_before.jsonl` and `examples_baseline.jsonl`.

    Raises:
      StorageError: the disk refused.
    """
    directory = Path(directory)
    for role, evaluation in self.evaluations.items():
      name = "examples.jsonl" if role == "after" else f"examples_{role}.jsonl"
      lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in evaluation.records())
      write_whole(directory / name, lines)
    text = json.dumps(self.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(directory / "report.json", [text, "\n"])


def build_report(
  after: Evaluation,
  before: Evaluation | None = None,
  baseline: Evaluation | None = None,
  *,
  notes: Sequence[str] = (),
  environment: Mapping[str, Any] | None = None,
  seed: int = 0,
  resamples: int = statistics.RESAMPLES,
) -> Report:
  """Compare a checkpoint with what it was before, or describe it alone.

  Args:
    after: the checkpoint reported on.
    before: the untuned model, in the same prompt format, on the same examples.
    baseline: the untuned model in its native chat format.
    seed: of the bootstrap.

  Raises:
    ValueError: the evaluations differ in tasks, examples or scoring.
  """
  evaluations = {"after": after}
  for role, evaluation in (("before", before), ("baseline", baseline)):
    if evaluation is not None:
      _check_pairing(after, evaluation)
      evaluations[role] = evaluation
  if baseline is not None and before is None:
    raise ValueError("a baseline needs a before")
  comparisons = [_compared(evaluations, i) for i in range(len(after.tasks))]
  bootstrap = {"seed": seed, "resamples": resamples}
  rows = [task_row(comparison, after.scoring, **bootstrap) for comparison in comparisons]
  return Report(
    rows,
    _macro(comparisons, rows, after.scoring, bootstrap),
    after.scoring,
    [*notes, *_remarks(rows)],
    {**(environment or {}), "bootstrap": bootstrap},
    evaluations,
    comparisons,
  )


def in_short(evaluation: Evaluation) -> dict[str, Any]:
  """{"means": by group of tasks, as `report.json` has them, "tasks": of each task the median over its templates}."""
  report = build_report(evaluation, resamples=10)  # whose intervals nobody reads
  return {
    "means": {row["name"]: row["after"] for row in report.macro},
    "tasks": {row["name"]: row["after"] for row in report.tasks},
  }


@dataclass(frozen=True)
class Comparison:
  """One task after, and before in the better of the formats it was scored in."""

  after: TaskResult
  before: TaskResult | None
  before_format: str | None
  headlines_before: Mapping[str, float]


def task_row(comparison: Comparison, scoring: str, *, seed: int, resamples: int) -> dict[str, Any]:
  """One task's row of the report.

  Numbers of a task are medians over its templates. Those that do not apply are None: `before` and
  what belongs to it in a report of one checkpoint, AUC where there are not two fixed labels. `also`
  has value, interval and change of further metrics of the dataset.
  `before` is the better of the formats in `before_by_format`, and `baseline_format` names it.
  `by_scoring` has the same two numbers under every scoring convention; the primary one was fixed
  before the run.
  """
  after, before = comparison.after, comparison.before
  measured = {
    metric: _measured(comparison, scoring, metric, seed, resamples)
    for metric in (after.metric, *after.also)
  }
  summaries = [template.summary(scoring) for template in after.templates]
  old = [template.summary(scoring) for template in before.templates] if before else []
  share = median_of([summary.top_label_share for summary in summaries])
  collapsed = share is not None and share > COLLAPSED_ABOVE
  row: dict[str, Any] = {
    "name": after.name,
    "cluster": after.cluster,
    "held_out": after.held_out,
    "trained_cluster": after.trained_cluster,
    "overlap": after.overlap,
    "templates": [template.template for template in after.templates],
    "metric": after.metric,
    "n": len(after.indices),
    **measured.pop(after.metric),
    "also": measured,
    "majority": median_of([summary.majority for summary in summaries]),
    "random": median_of([summary.random for summary in summaries]),
    "baseline_format": comparison.before_format,
    "before_by_format": dict(comparison.headlines_before),
    "collapsed": collapsed,
  }
  row["verdict"] = verdict(collapsed, row["delta_interval"])
  for name in ("auc", "balanced_accuracy", "calibrated_accuracy", "top_label_share", "ece"):
    row[f"{name}_before"] = median_of([getattr(summary, name) for summary in old])
    row[f"{name}_after"] = median_of([getattr(summary, name) for summary in summaries])
  row["by_scoring"] = {
    role: {name: statistics.headline(task.table(name)) for name in task.conventions}
    for role, task in (("before", before), ("after", after))
    if task is not None
  }
  row["spread"] = _spread(comparison, summaries, old)
  row["draw"] = {
    "split": after.split,
    "seed": after.seed,
    "shots": after.shots,
    "indices": list(after.indices),
    "unfit": list(after.unfit),
  }
  return row


def _measured(
  comparison: Comparison, scoring: str, metric: str, seed: int, resamples: int
) -> dict[str, Any]:
  """A metric's values, and how sure they are."""
  bootstrap = {"seed": seed, "resamples": resamples}
  table = comparison.after.table(scoring, metric)
  found: dict[str, Any] = dict.fromkeys(("before", "before_interval", "delta", "delta_interval"))
  found["after"] = statistics.headline(table)
  found["after_interval"] = list(statistics.interval(table, **bootstrap))
  if comparison.before is not None:
    old = comparison.before.table(scoring, metric)
    found["before"] = statistics.headline(old)
    found["before_interval"] = list(statistics.interval(old, **bootstrap))
    found["delta"] = found["after"] - found["before"]
    found["delta_interval"] = list(statistics.paired_interval(old, table, **bootstrap))
  return found


def verdict(collapsed: bool, delta: Sequence[float] | None) -> str | None:
  """What a paired interval allows to say: "collapsed", "improved", "worse" or "flat"; None without one."""
  if collapsed:
    return "collapsed"
  if delta is None:
    return None
  low, high = delta
  if low > 0:
    return "improved"
  return "worse" if high < 0 else "flat"


def _check_pairing(after: Evaluation, before: Evaluation) -> None:
  if before.scoring != after.scoring:
    raise ValueError(f"scored by {before.scoring} before and by {after.scoring} after")
  for new, old in zip(after.tasks, before.tasks, strict=True):
    names = [template.template for template in new.templates]
    if (new.name, names) != (old.name, [template.template for template in old.templates]):
      raise ValueError(
        f"{old.name} before and {new.name} after are not the same task and templates"
      )


def _compared(evaluations: Mapping[str, Evaluation], i: int) -> Comparison:
  """Task i at the examples that all the evaluations scored, before in the better format."""
  scoring = evaluations["after"].scoring
  shared = set.intersection(*({*e.tasks[i].indices} for e in evaluations.values()))
  after = evaluations["after"].tasks[i].at(shared)
  headlines: dict[str, float] = {}
  candidates: dict[str, TaskResult] = {}
  for role in ("before", "baseline"):
    if role in evaluations:
      name = evaluations[role].format
      candidates[name] = evaluations[role].tasks[i].at(shared)
      headlines[name] = statistics.headline(candidates[name].table(scoring))
  if not candidates:
    return Comparison(after, None, None, {})
  better = max(headlines, key=lambda name: headlines[name])
  return Comparison(after, candidates[better], better, headlines)


def _spread(
  comparison: Comparison, after: Sequence[TemplateSummary], before: Sequence[TemplateSummary]
) -> dict[str, Any]:
  """Every template's numbers, and how far the templates lie apart."""
  templates = []
  for k, (result, summary) in enumerate(zip(comparison.after.templates, after, strict=True)):
    templates.append(
      {
        "template": result.template,
        "unseen": result.unseen,
        "fixed_labels": result.fixed_labels,
        "before": before[k].value if before else None,
        "after": summary.value,
        "top_label_share_after": summary.top_label_share,
        "collapsed": summary.collapsed,
        "auc_before": before[k].auc if before else None,
        "auc_after": summary.auc,
      }
    )
  found: dict[str, Any] = {"templates": templates}
  for role, summaries in (("before", before), ("after", after)):
    if summaries:
      spread = statistics.spread([summary.value for summary in summaries])
      found[role] = {
        "median": spread.median,
        "mean": spread.mean,
        "quartiles": [spread.lower_quartile, spread.upper_quartile],
        "interquartile_range": spread.interquartile_range,
      }
  return found


def _macro(
  comparisons: Sequence[Comparison],
  rows: Sequence[Mapping[str, Any]],
  scoring: str,
  bootstrap: Mapping[str, int],
) -> list[dict[str, Any]]:
  return [
    _macro_row(
      name, [comparisons[i] for i in members], [rows[i] for i in members], scoring, bootstrap
    )
    for name, members in grouped([comparison.after for comparison in comparisons]).items()
  ]


def grouped(tasks: Sequence[TaskResult]) -> dict[str, list[int]]:
  """The places of the tasks whose mean is told: those trained on, those of which others of their cluster were,
  each held-out cluster, and all that is of one.
  """
  trained, of_trained, out = (
    "training tasks",
    "held out: datasets of trained clusters",
    "held out: all",
  )
  groups: dict[str, list[int]] = {}
  for i, task in enumerate(tasks):
    if not task.held_out:
      groups.setdefault(trained, []).append(i)
    elif task.trained_cluster:
      groups.setdefault(of_trained, []).append(i)
    else:
      groups.setdefault(f"held out: {task.cluster}", []).append(i)
      groups.setdefault(out, []).append(i)
  if len(groups.keys() - {trained, of_trained}) == 2:
    groups.pop(out)
  order = sorted(groups, key=lambda name: (name != trained, name != of_trained, name == out, name))
  return {name: groups[name] for name in order}


def _macro_row(
  name: str,
  comparisons: Sequence[Comparison],
  rows: Sequence[Mapping[str, Any]],
  scoring: str,
  bootstrap: Mapping[str, int],
) -> dict[str, Any]:
  """The mean over tasks. A collapsed task adds nothing to the gain, but what it lost counts."""
  after = [comparison.after.table(scoring) for comparison in comparisons]
  found: dict[str, Any] = {
    "name": name,
    "tasks": [row["name"] for row in rows],
    "before": None,
    "before_interval": None,
    "after": statistics.macro_average(after),
    "after_interval": list(statistics.macro_interval(after, **bootstrap)),
    "delta": None,
    "delta_interval": None,
    "delta_with_collapsed": None,
    "collapsed": [row["name"] for row in rows if row["collapsed"]],
  }
  before = [c.before.table(scoring) for c in comparisons if c.before is not None]
  if before:
    honest = [
      old if row["collapsed"] and row["delta"] > 0 else new
      for row, old, new in zip(rows, before, after, strict=True)
    ]
    found["before"] = statistics.macro_average(before)
    found["before_interval"] = list(statistics.macro_interval(before, **bootstrap))
    found["delta"] = statistics.macro_average(honest) - found["before"]
    found["delta_interval"] = list(statistics.macro_paired_interval(before, honest, **bootstrap))
    found["delta_with_collapsed"] = found["after"] - found["before"]
  return found


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  remarks = []
  collapsed = [row["name"] for row in rows if row["collapsed"]]
  if collapsed:
    remarks.append(
      f"Collapsed, so no gain whatever the metric says: {', '.join(collapsed)} (the most predicted "
      f"label has more than {COLLAPSED_ABOVE:.0%} of the predictions)."
    )
  for row in rows:
    if row["overlap"]:
      remarks.append(
        f"{row['name']}: {row['overlap']:.1%} of its {row['draw']['split']} split has text in common with what was "
        "trained on."
      )
    if row["draw"]["unfit"]:
      remarks.append(
        f"{row['name']}: {len(row['draw']['unfit'])} of the drawn examples fit no row and are left "
        "out under every template."
      )
  return remarks
