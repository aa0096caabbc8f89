"""How sure a model was of its choices, over all tasks of a report that rank options."""

from collections.abc import Mapping, Sequence

import numpy as np

from flan_jax.evaluation.metrics import Reliability, reliability
from flan_jax.evaluation.report import Report
from flan_jax.evaluation.results import TaskResult


def report_reliability(report: Report) -> Mapping[str, Reliability]:
  """ "after", and "before" if there is one, over the tasks that rank options; {} if none does."""
  found = {
    "before": [c.before for c in report.comparisons if c.before is not None],
    "after": [c.after for c in report.comparisons],
  }
  ranked = {role: [t for t in tasks if t.templates[0].ranks] for role, tasks in found.items()}
  return {role: macro_reliability(tasks, report.scoring) for role, tasks in ranked.items() if tasks}


def macro_reliability(tasks: Sequence[TaskResult], scoring: str) -> Reliability:
  """Every task weighs the same, and so does every template of a task."""
  sure, right, weights = [], [], []
  for task in tasks:
    for template in task.templates:
      sure.append(template.confidences(scoring))
      right.append(template.added(scoring, "accuracy")[:, 0])
      weights.append(np.full(len(sure[-1]), 1 / (len(task.templates) * len(sure[-1]))))
  return reliability(np.concatenate(sure), np.concatenate(right), np.concatenate(weights))
