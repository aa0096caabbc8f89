"""`flan-jax follow`: judge the checkpoints of a run as they come, beside it, on other devices."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flan_jax.checkpoints import Checkpoints
from flan_jax.data.atomic import claimed, write_whole
from flan_jax.errors import CheckpointError, ConfigError
from flan_jax.evaluation import in_short
from flan_jax.evaluation.pages.report_page import write_course
from flan_jax.jobs.data import DataPlan
from flan_jax.jobs.evaluate import not_judged
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.jobs.models import ModelSource, tuned
from flan_jax.jobs.processes import is_first
from flan_jax.jobs.report import environment, write_report
from flan_jax.models import Params
from flan_jax.training.logging import EVALUATION, VALIDATION, read_log
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import (
  DEFAULT_RULES,
  Layout,
  MeshConfig,
  Rules,
  make_layout,
  make_mesh,
)
from flan_jax.training.timers import Timers
from flan_jax.training.validation import HeldOutLoss

_END, _WAIT = -2, -1
_LOOK_EVERY = 5.0  # seconds


def follow(
  run_dir: str,
  out_dir: str,
  evaluation: EvaluationPlan,
  *,
  data: DataPlan | None = None,
  validation_batches: int = 0,
  batch_size: int = 8,
  patience_minutes: float = 60.0,
  mesh: MeshConfig = MeshConfig(),
  axis_rules: Rules = DEFAULT_RULES,
  notes: tuple[str, ...] = (),
) -> None:
  """Judges each checkpoint of a run, until the run is at its end. Run again, it goes on where it was.

  A report for each is in `<out_dir>/<step>`, a line in `<out_dir>/evaluation.jsonl` (and, with `validation_batches`,
  in `<out_dir>/validation.jsonl`), and the curve in `<out_dir>/report.html`. The oldest that is not judged yet comes
  first; one that the run has removed before its turn is passed over.

  Args:
    run_dir: of the run, which may be yet to begin.
    data, validation_batches, batch_size: the run's; so many batches of its validation split give the held-out loss,
      as in `train`, without label smoothing. 0: it is not taken.
    patience_minutes: without a new checkpoint after which it stops.

  Raises:
    ConfigError: no checkpoint came, or the run was tuned on data that was written in another way.
  """
  if validation_batches and data is None:
    raise ConfigError(
      f"follow.validation_batches={validation_batches} needs follow.data=@data(), as the run has it."
    )
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
        if data is not None and validation_batches:
          _take_loss(data, validation_batches, batch_size, source, params, layout, out, step)
        found = evaluation.run(
          source, params, layout, source.written_in(None), out / "evaluation", label=f"step {step}"
        )
      write_report(out / str(step), found, {}, told, environment(timers))
      if is_first():
        _log(out, EVALUATION, step, in_short(found))
        write_course(out / "report.html", title=run.name, run_dir=run, judged=out, notes=told)


def _take_loss(
  data: DataPlan,
  batches: int,
  batch_size: int,
  source: ModelSource,
  params: Params,
  layout: Layout,
  out: Path,
  step: int,
) -> None:
  """Logs the loss on the validation split of what a checkpoint was tuned on."""
  if data.encoder(source).format.fingerprint != source.written_in(None).fingerprint:
    raise ConfigError(
      f"{source.origin} was tuned on prompts that were written otherwise than follow.data says: give the data.format, "
      "data.separator and data.eos_on_inputs of the run."
    )
  plan = replace(data, bidirectional_inputs=source.model.bidirectional_inputs)
  rows = batches * batch_size
  store = plan.validation_store(source, rows)
  loss = HeldOutLoss(
    SupervisedLoss(source.model, tasks=len(store.tasks)),
    lambda: plan.batches(store, 0, rows, batch_size, layout),
    batch_size,
    layout,
    [task.name for task in store.tasks],
  )
  with layout.active():
    record = loss(params)
  if is_first() and record is not None:
    _log(out, VALIDATION, step, record)


def _log(out: Path, name: str, step: int, record: Mapping[str, Any]) -> None:
  """Adds the line of a step to a log, or puts it in the place of the one that is there."""
  lines = [line for line in read_log(out, name) if line["step"] != step]
  write_whole(out / name, (json.dumps(line) + "\n" for line in [*lines, {"step": step, **record}]))


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
