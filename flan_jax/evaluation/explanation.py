"""Where a gain came from: the format of the prompt, the prior of the labels, or telling examples apart.

Three models are read: the untuned one in the run's prompt format (b), in its native chat format (c; b itself where it
was not judged so) and the tuned one (a). With m the metric and m' the same behind batch calibration, which removes what
a model says whatever it is asked (`metrics.batch_calibrated`), the difference is a sum of three:

  m(a) - m(b) = [m(c) - m(b)]                                what asking as it is used to would have brought
              + [(m(a) - m'(a)) - (m(c) - m'(c))]            a prior that fits the labels better
              + [m'(a) - m'(c)]                              discrimination

m is accuracy where options are ranked, else the task's own metric; where the labels are not the same in each example
no prior can be told, m' is m, and what is not format is discrimination. Each m is the median over templates. The parts
are told along the ladder of generalisation, with paired intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from flan_jax.errors import EvaluationError
from flan_jax.evaluation import statistics
from flan_jax.evaluation.comparison import paired_tasks
from flan_jax.evaluation.results import CALIBRATED, Evaluation, TaskResult, median_of
from flan_jax.evaluation.statistics import Table
from flan_jax.prompting import RANKED_METRICS

Rung = Literal["unseen examples", "unseen prompts", "unseen datasets", "unseen clusters"]

LADDER: dict[Rung, str] = {
  "unseen examples": "of a dataset and under prompts that were trained on",
  "unseen prompts": "of a dataset that was trained on, under prompts that were not",
  "unseen datasets": "of a cluster that was trained on",
  "unseen clusters": "nothing of the kind was trained on",
}
"""The ladder of generalisation, and what stands on each rung."""

# Weights of the headlines of (b, c, c calibrated, a, a calibrated).
PARTS: dict[str, tuple[float, ...]] = {
  "change": (-1, 0, 0, 1, 0),
  "format": (-1, 1, 0, 0, 0),
  "label prior": (0, -1, 1, 1, -1),
  "discrimination": (0, 0, -1, 0, 1),
}
"""The difference of two checkpoints, and the three parts that it is the sum of."""


@dataclass(frozen=True)
class Flip:
  """An example that is right in one of two checkpoints alone.

  Attributes:
    to: "right" or "wrong".
  """

  task: str
  template: str
  index: int
  rung: Rung
  to: Literal["right", "wrong"]


@dataclass(frozen=True)
class Explained:
  """Where a difference came from.

  Attributes:
    before, native, after: what was scored, as far as it can be paired; native is None where there is none.
    tasks: a row a task and rung: name, cluster, rung, metric, n, templates, calibrates, before, after, auc_before,
      auc_native, auc_after, flips, and `parts`, of each of `PARTS` its value and interval; without `native` there is
      no format among them.
    ladder: the same of each rung, the means over its tasks.
    flips: ranked examples whose answer went from wrong to right or back.
    notes: what is not compared, and why.
  """

  before: Evaluation = field(repr=False)
  native: Evaluation | None = field(repr=False)
  after: Evaluation = field(repr=False)
  tasks: list[dict[str, Any]]
  ladder: list[dict[str, Any]]
  flips: list[Flip]
  notes: list[str]

  def as_json(self) -> dict[str, Any]:
    return {
      "checkpoints": {
        "before": self.before.checkpoint,
        "native": self.native and self.native.checkpoint,
        "after": self.after.checkpoint,
      },
      "tasks": self.tasks,
      "ladder": self.ladder,
      "flips": [asdict(flip) for flip in self.flips],
      "notes": self.notes,
    }


def explain(
  before: Evaluation,
  after: Evaluation,
  native: Evaluation | None = None,
  *,
  seed: int = 0,
  resamples: int = statistics.RESAMPLES,
) -> Explained:
  """Splits what lies between two checkpoints into its parts.

  Args:
    before, after: scored in the same prompt format. What was trained on is said as `after` has it.
    native: `before` in its own chat format.
    seed: of the bootstrap.

  Raises:
    EvaluationError: they were not asked the same, see `flan_jax.evaluation.compare`.
  """
  if before.format != after.format:
    raise EvaluationError(
      f"{before.checkpoint} was asked in the format {before.format!r} and {after.checkpoint} in {after.format!r}: "
      "judge both in one, and the first in its own chat format as well (evaluation.native_chat)."
    )
  roles = {"before": before, "native": native or before, "after": after}
  parts = {name: weights for name, weights in PARTS.items() if native or name != "format"}
  paired, notes = paired_tasks(roles)
  bootstrap = {"seed": seed, "resamples": resamples}
  rows, tables, flips = [], [], list[Flip]()
  for tasks in paired:
    for rung, standing in _rungs(tasks):
      old, base, new = standing
      tables.append(_tables(old, base, new, after.scoring))
      found = _flips(old, new, rung, after.scoring)
      rows.append(
        {
          "name": new.name,
          "cluster": new.cluster,
          "rung": rung,
          "metric": _measured_by(new),
          "n": len(new.indices),
          "templates": [each.template for each in new.templates],
          "calibrates": _calibrates(standing),
          **_told([tables[-1]], parts, bootstrap),
          "auc_before": _auc(old, after.scoring),
          "auc_native": native and _auc(base, after.scoring),
          "auc_after": _auc(new, after.scoring),
          "flips": {to: sum(flip.to == to for flip in found) for to in ("right", "wrong")},
        }
      )
      flips += found
  ladder = []
  for rung in LADDER:
    if places := [i for i, row in enumerate(rows) if row["rung"] == rung]:
      names = [rows[i]["name"] for i in places]
      mean = _told([tables[i] for i in places], parts, bootstrap)
      ladder.append({"rung": rung, "tasks": names, **mean})
  compared = [
    replace(each, tasks=of_each)
    for each, of_each in zip(roles.values(), zip(*paired, strict=True), strict=True)
  ]
  untuned, chatting, tuned = compared
  return Explained(untuned, native and chatting, tuned, rows, ladder, flips, notes)


def _rungs(tasks: Sequence[TaskResult]) -> list[tuple[Rung, tuple[TaskResult, ...]]]:
  """A task on the rungs that it stands on: two, where some of its templates were kept out of training."""
  new = tasks[-1]
  if new.held_out:
    return [("unseen datasets" if new.trained_cluster else "unseen clusters", tuple(tasks))]
  unseen = {each.template for each in new.templates if each.unseen}
  seen = {each.template for each in new.templates} - unseen
  rungs: list[tuple[Rung, set[str]]] = [("unseen examples", seen), ("unseen prompts", unseen)]
  return [(rung, tuple(_under(task, names) for task in tasks)) for rung, names in rungs if names]


def _under(task: TaskResult, names: set[str]) -> TaskResult:
  kept = tuple(each for each in task.templates if each.template in names)
  indices = {example.index for each in kept for example in each.examples}
  return replace(task, templates=kept).at(indices)


def _measured_by(task: TaskResult) -> str:
  return "accuracy" if task.metric in RANKED_METRICS else task.metric


def _calibrates(tasks: Sequence[TaskResult]) -> bool:
  return all(each.calibrates for task in tasks for each in task.templates)


def _tables(old: TaskResult, base: TaskResult, new: TaskResult, scoring: str) -> tuple[Table, ...]:
  """b, c, c calibrated, a, a calibrated."""
  metric = _measured_by(new)
  calibrated = CALIBRATED if _calibrates((old, base, new)) else metric
  asked = ((old, metric), (base, metric), (base, calibrated), (new, metric), (new, calibrated))
  return tuple(task.table(scoring, by) for task, by in asked)


def _told(
  tasks: Sequence[Sequence[Table]],
  parts: Mapping[str, Sequence[float]],
  bootstrap: Mapping[str, int],
) -> dict[str, Any]:
  """Means over tasks, and the parts of their difference."""
  found: dict[str, Any] = {
    "before": statistics.macro_average([tables[0] for tables in tasks]),
    "after": statistics.macro_average([tables[3] for tables in tasks]),
    "parts": {},
  }
  for part, weights in parts.items():
    each = [weights] * len(tasks)
    ends = statistics.contrast_interval(tasks, each, **bootstrap)
    found["parts"][part] = {"value": statistics.contrast(tasks, each), "interval": list(ends)}
  return found


def _auc(task: TaskResult, scoring: str) -> float | None:
  if task.metric not in RANKED_METRICS:
    return None
  return median_of([each.summary(scoring).auc for each in task.templates])


def _flips(old: TaskResult, new: TaskResult, rung: Rung, scoring: str) -> list[Flip]:
  found = []
  for was, now in zip(old.templates, new.templates, strict=True):
    if now.metric not in RANKED_METRICS:
      continue
    earned = [
      dict(
        zip((e.index for e in each.examples), each.added(scoring, "accuracy")[:, 0], strict=True)
      )
      for each in (was, now)
    ]
    for index in sorted(earned[0].keys() & earned[1].keys()):
      if step := np.sign(earned[1][index] - earned[0][index]):
        to: Literal["right", "wrong"] = "right" if step > 0 else "wrong"
        found.append(Flip(new.name, now.template, index, rung, to))
  return found
