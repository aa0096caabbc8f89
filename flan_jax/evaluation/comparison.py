"""Several checkpoints on the same examples: values side by side, and paired differences from the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flan_jax.errors import EvaluationError
from flan_jax.evaluation import statistics
from flan_jax.evaluation.report import grouped, verdict
from flan_jax.evaluation.results import COLLAPSED_ABOVE, Evaluation, TaskResult, median_of


@dataclass(frozen=True)
class Compared:
  """What several checkpoints got.

  Attributes:
    labels: what each is called, in order; differences are from the first.
    tasks: a row a task: name, cluster, held_out, metric, n, templates, and `scores`, of each checkpoint its
      value with a 95 % interval and, from the second on, delta and delta_interval and a verdict.
    groups: a row a group of tasks, as in a report: the means over its tasks.
    scoring: the convention that options were ranked by.
    notes: what is not compared, and why.
  """

  labels: tuple[str, ...]
  tasks: list[dict[str, Any]]
  groups: list[dict[str, Any]]
  scoring: str
  notes: list[str]

  def as_json(self) -> dict[str, Any]:
    return {
      "checkpoints": list(self.labels),
      "scoring": self.scoring,
      "tasks": self.tasks,
      "groups": self.groups,
      "notes": self.notes,
    }


def compare(
  evaluations: Mapping[str, Evaluation],
  *,
  seed: int = 0,
  resamples: int = statistics.RESAMPLES,
) -> Compared:
  """Compares checkpoints where they were asked the same: tasks, templates and examples that all of them have.

  Options are ranked by the convention of the first. Whether a task was held out is said as the last one has it.

  Args:
    evaluations: by what each checkpoint is to be called, the one that the others are compared with first.
    seed: of the bootstrap.

  Raises:
    EvaluationError: fewer than two, or they share no task or no example of one; a task of another split, with
      other exemplars, or by another metric.
  """
  if len(evaluations) < 2:
    raise EvaluationError("a comparison needs two checkpoints or more.")
  labels, first = tuple(evaluations), next(iter(evaluations.values()))
  paired, notes = paired_tasks(evaluations)
  bootstrap = {"seed": seed, "resamples": resamples}
  tables = [[task.table(first.scoring) for task in tasks] for tasks in paired]
  rows = [
    _row(tasks, of_task, first.scoring, bootstrap)
    for tasks, of_task in zip(paired, tables, strict=True)
  ]
  groups = [
    {
      "name": name,
      "tasks": [rows[i]["name"] for i in members],
      "scores": _scores([tables[i] for i in members], bootstrap),
    }
    for name, members in grouped([tasks[-1] for tasks in paired]).items()
  ]
  return Compared(labels, rows, groups, first.scoring, notes)


def paired_tasks(
  evaluations: Mapping[str, Evaluation],
) -> tuple[list[tuple[TaskResult, ...]], list[str]]:
  """Of each task that all evaluations have, its results at what all of them were asked; and what was left out.

  Raises:
    EvaluationError: see `compare`.
  """
  labels = list(evaluations)
  by_name = [{task.name: task for task in each.tasks} for each in evaluations.values()]
  names = [name for name in by_name[0] if all(name in tasks for tasks in by_name)]
  if not names:
    raise EvaluationError(f"{', '.join(labels)} were judged on no task in common.")
  others = sorted({name for tasks in by_name for name in tasks} - set(names))
  notes = [f"Not judged for all, and left out: {', '.join(others)}."] if others else []
  paired = []
  for name in names:
    tasks, told = _paired([by_task[name] for by_task in by_name], labels)
    paired.append(tasks)
    notes += told
  return paired, notes


def _paired(
  tasks: Sequence[TaskResult], labels: Sequence[str]
) -> tuple[tuple[TaskResult, ...], list[str]]:
  name = tasks[0].name
  for what in ("split", "shots"):
    for task, label in zip(tasks, labels, strict=True):
      if getattr(task, what) != getattr(tasks[0], what):
        raise EvaluationError(
          f"{name} was judged with {what}={getattr(tasks[0], what)!r} for {labels[0]} and with "
          f"{getattr(task, what)!r} for {label}: judge both alike."
        )
  templates = [each.template for each in tasks[0].templates]
  known = [{each.template for each in task.templates} for task in tasks]
  shared = [each for each in templates if all(each in names for names in known)]
  indices = set.intersection(*({*task.indices} for task in tasks))
  if not shared or not indices:
    what = "template" if not shared else "example"
    raise EvaluationError(f"{name}: {', '.join(labels)} have no {what} in common.")
  found = []
  for task in tasks:
    of = {each.template: each for each in task.templates}
    kept = replace(task, templates=tuple(of[each] for each in shared)).at(indices)
    found.append(replace(kept, indices=tuple(sorted(indices))))
  for task, label in zip(found, labels, strict=True):
    if task.metric != found[0].metric:
      raise EvaluationError(
        f"{name} is measured by {found[0].metric} for {labels[0]} and by {task.metric} for {label}."
      )
  most = max(len(task.indices) for task in tasks)
  told = [] if len(indices) == most else [f"{name}: {len(indices)} of {most} examples are shared."]
  if any(len(names) > len(shared) for names in known):
    told.append(f"{name}: the templates that all have are {', '.join(shared)}.")
  return tuple(found), told


def _row(
  tasks: Sequence[TaskResult],
  tables: Sequence[statistics.Table],
  scoring: str,
  bootstrap: Mapping[str, int],
) -> dict[str, Any]:
  last = tasks[-1]
  scores = _scores([tables], bootstrap)
  for task, score in zip(tasks, scores, strict=True):
    share = median_of([each.summary(scoring).top_label_share for each in task.templates])
    score["top_label_share"] = share
    score["collapsed"] = share is not None and share > COLLAPSED_ABOVE
    if "delta" in score:
      score["verdict"] = verdict(score["collapsed"], score["delta_interval"])
  return {
    "name": last.name,
    "cluster": last.cluster,
    "held_out": last.held_out,
    "trained_cluster": last.trained_cluster,
    "metric": last.metric,
    "n": len(last.indices),
    "templates": [each.template for each in last.templates],
    "scores": scores,
  }


def _scores(
  tasks: Sequence[Sequence[statistics.Table]], bootstrap: Mapping[str, int]
) -> list[dict[str, Any]]:
  """Of each checkpoint the mean over tasks, and its difference from the first."""
  found: list[dict[str, Any]] = []
  by_checkpoint = list(zip(*tasks, strict=True))
  for number, tables in enumerate(by_checkpoint):
    score: dict[str, Any] = {
      "value": statistics.macro_average(tables),
      "interval": list(statistics.macro_interval(tables, **bootstrap)),
    }
    if number:
      score["delta"] = score["value"] - found[0]["value"]
      ends = statistics.macro_paired_interval(by_checkpoint[0], tables, **bootstrap)
      score["delta_interval"] = list(ends)
    found.append(score)
  return found
