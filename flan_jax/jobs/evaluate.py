"""`flan-jax evaluate`: judge a checkpoint zero-shot, alone or against what it was tuned from."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import jax

from flan_jax.data.atomic import claimed
from flan_jax.evaluation import Evaluation
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.jobs.launch import current_phase
from flan_jax.jobs.models import ModelSource
from flan_jax.jobs.processes import is_first
from flan_jax.jobs.report import compare_phases, environment, write_report
from flan_jax.training.partitioning import (
  DEFAULT_RULES,
  Layout,
  MeshConfig,
  Rules,
  make_layout,
  make_mesh,
)
from flan_jax.training.timers import Timers
from flan_jax.vocabularies import ChatFormat, Format


def evaluate(
  out_dir: str,
  model: ModelSource,
  evaluation: EvaluationPlan,
  *,
  before: ModelSource | None = None,
  format: str | None = None,
  mesh: MeshConfig = MeshConfig(),
  axis_rules: Rules = DEFAULT_RULES,
  notes: tuple[str, ...] = (),
) -> None:
  """Scores a model on every task of a plan and writes a report. Run again, it goes on where it was.

  In a launch of several phases each judges a model of its own, in a folder of its own within `out_dir`, and at the
  end of the last they are compared.

  Args:
    out_dir: where the scores and the report are written.
    before: the untuned model, scored on the same prompts and in its native chat format.
    format: "plain" or "chat"; None: the format that the model was tuned in, else plain.
    notes: sentences for the report.
  """
  phase, timers = current_phase(), Timers()
  run = Path(out_dir) / phase.name
  scored = Path(out_dir)  # what is asked of the same model in several phases is asked once
  with claimed(run) if is_first() else contextlib.nullcontext(), timers("init"):
    with timers("prepare"):
      evaluation, missing = evaluation.available()
    written = model.written_in(format)
    untuned: dict[str, Evaluation] = {}
    if before is not None:
      with timers("evaluate before"):
        layout = _layout(before, mesh, axis_rules)
        untuned = judge_untuned(evaluation, before, written, layout, scored)
    with timers("evaluate after"):
      layout = _layout(model, mesh, axis_rules)
      params = model.load(layout, jax.random.key(0))
      after = evaluation.run(
        model, params, layout, written, scored / "evaluation", label=model.origin
      )
    write_report(run, after, untuned, (*notes, *not_judged(missing)), environment(timers))
    if phase.name and not phase.after:
      compare_phases(Path(out_dir), phase.names)


def not_judged(missing: Mapping[str, str]) -> list[str]:
  """Sentences for the report, on the datasets whose records could not be had."""
  return [f"{name} is not judged: {reason}" for name, reason in missing.items()]


def judge_untuned(
  evaluation: EvaluationPlan, source: ModelSource, written: Format, layout: Layout, run: Path
) -> dict[str, Evaluation]:
  """A model before tuning: in the format of the run, and in its native chat format if it has one."""
  formats = {"plain": written}
  if evaluation.native_chat and source.vocabulary.chat_template:
    native = ChatFormat.of(source.vocabulary)
    if native.fingerprint != written.fingerprint:
      formats["chat"] = native
  params = source.load(layout, jax.random.key(0))
  return {
    name: evaluation.run(source, params, layout, each, run / "evaluation", label=source.origin)
    for name, each in formats.items()
  }


def _layout(source: ModelSource, mesh: MeshConfig, axis_rules: Rules) -> Layout:
  return make_layout(source.model, make_mesh(mesh), axis_rules)
