"""`flan-jax follow`: judge the checkpoints of a run as they come, beside it, on other devices."""

import contextlib
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flan_jax.checkpoints import Checkpoints
from flan_jax.data.atomic import claimed, write_whole
from flan_jax.errors import CheckpointError, ConfigError
from flan_jax.evaluation import in_short
from flan_jax.evaluation.html import write_course
from flan_jax.jobs.evaluate import not_judged
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.jobs.models import tuned
from flan_jax.jobs.processes import is_first
from flan_jax.jobs.report import environment, write_report
from flan_jax.training.logging import EVALUATION, read_log
from flan_jax.training.partitioning import (
  DEFAULT_RULES,
  MeshConfig,
  Rules,
  make_layout,
  make_mesh,
)
from flan_jax.training.timers import Timers

_END, _WAIT = -2, -1
_LOOK_EVERY = 5.0  # seconds


def follow(
  run_dir: str,
  out_dir: str,
  evaluation: EvaluationPlan,
  *,
  patience_minutes: float = 60.0,
  mesh: MeshConfig = MeshConfig(),
  axis_rules: Rules = DEFAULT_RULES,
  notes: tuple[str, ...] = (),
) -> None:
  """Judges each checkpoint of a run, until the run is at its end. Run again, it goes on where it was.

  A report for each is in `<out_dir>/<step>`, a line in `<out_dir>/evaluation.jsonl`, and the curve in
  `<out_dir>/report.html`. The oldest that is not judged yet comes first; one that the run has removed before its
  turn is passed over.

  Args:
    run_dir: of the run, which may be yet to begin.
    patience_minutes: without a new checkpoint after which it stops.

  Raises:
    ConfigError: no checkpoint came.
  """
  if not 0 < patience_minutes < float("inf"):
    raise ConfigError(f"follow.patience_minutes={patience_minutes} must be above 0.")
  run, out = Path(run_dir), Path(out_dir)
  with claimed(out) if is_first() else contextlib.nullcontext():
    evaluation, missing = evaluation.available()
    told = (*notes, *not_judged(missing))
    passed_over = set[int]()
    while (step := _next(run, out, passed_over, patience_minutes)) != _END:
      timers = Timers()
      try:
        with timers("init"):
          source = tuned(run_dir, step)
          layout = make_layout(source.model, make_mesh(mesh), axis_rules)
          params = source.load(layout, jax.random.key(0))
      except (CheckpointError, FileNotFoundError) as error:
        passed_over.add(step)
        if is_first():
          print(f"step {step} is passed over: {error}", file=sys.stderr)
        continue
      with timers("evaluate"):
        found = evaluation.run(
          source, params, layout, source.written_in(None), out / "evaluation", label=f"step {step}"
        )
      write_report(out / str(step), found, {}, told, environment(timers))
      if is_first():
        lines = [*read_log(out, EVALUATION), {"step": step, **in_short(found)}]
        write_whole(out / EVALUATION, (json.dumps(line) + "\n" for line in lines))
        write_course(out / "report.html", title=run.name, run_dir=run, judged=out, notes=told)


def _next(run: Path, out: Path, passed_over: set[int], patience_minutes: float) -> int:
  """The step to judge next, once there is one; `_END`: none will come. All processes get the same."""
  begun = time.monotonic()
  while True:
    step = _found(run, out, passed_over) if is_first() else _WAIT
    if step == _WAIT and time.monotonic() - begun > 60 * patience_minutes:
      step = _END
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == _END and is_first() and not read_log(out, EVALUATION):
      raise ConfigError(f"{run} got no checkpoint in {patience_minutes:g} minutes.")
    if step != _WAIT:
      return step
    time.sleep(_LOOK_EVERY)


def _found(run: Path, out: Path, passed_over: set[int]) -> int:
  checkpoints = Checkpoints(run / "checkpoints")
  steps = checkpoints.steps()
  judged = {line["step"] for line in read_log(out, EVALUATION)} | passed_over
  left = [step for step in steps if step not in judged]
  if left:
    return left[0]
  with contextlib.suppress(CheckpointError, OSError, ValueError):
    if steps and checkpoints.meta(steps[-1]).get("finished"):
      return _END
  return _WAIT
