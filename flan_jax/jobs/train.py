"""`flan-jax train`: tune a model on a mixture, and say what that changed.

store (prepared if missing) --> untuned model judged --> training --> tuned model judged --> report
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

from flan_jax.checkpoints import Checkpoints
from flan_jax.data.atomic import claimed, write_whole
from flan_jax.data.batches import Batches
from flan_jax.errors import ConfigError
from flan_jax.jobs.data import DataPlan
from flan_jax.jobs.evaluate import judge_untuned
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.jobs.launch import changed_settings, current_phase, operative_config
from flan_jax.jobs.models import ModelSource, continued, describe_model
from flan_jax.jobs.optimizer import Optimizer
from flan_jax.jobs.processes import is_first
from flan_jax.jobs.report import Phases, environment, write_report
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.partitioning import (
  DEFAULT_RULES,
  MeshConfig,
  Rules,
  check_batch,
  make_layout,
  make_mesh,
  rows_of_process,
)
from flan_jax.training.trainer import Trainer, TrainerConfig


def train(
  run_dir: str,
  model: ModelSource,
  data: DataPlan,
  optimizer: Optimizer,
  steps: int,
  batch_size: int,
  *,
  mesh: MeshConfig = MeshConfig(),
  axis_rules: Rules = DEFAULT_RULES,
  accumulation: int = 1,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
  normalising_factor: float | None = None,
  checkpoint_every: int = 500,
  keep: int | None = 2,
  evaluation: EvaluationPlan | None = None,
  notes: tuple[str, ...] = (),
  seed: int = 0,
) -> bool:
  """Tunes a model. The same command again goes on where it was.

  In a launch of several phases each is a run of its own, in a folder of its own within `run_dir`, and
  begins with the parameters that the phase before it left.

  Args:
    run_dir: where everything of this run is written.
    steps: batches in all.
    batch_size: packed rows of a batch, over all devices.
    accumulation: microbatches that a batch is cut into.
    normalising_factor: divides the loss in place of the sum of its weights.
    checkpoint_every, keep: steps between checkpoints, and how many are kept.
    evaluation: judge the model zero-shot before and after; None: train only.
    notes: sentences for the report, such as what the untuned model may already have seen.
    seed: of fresh parameters and of dropout; the data has its own.

  Returns:
    Whether all steps are made; False: SIGTERM came before.
  """
  if not run_dir:
    raise ConfigError("train.run_dir is empty; name the folder that the run is written to.")
  run, phases = Path(run_dir), Phases()
  if (phase := current_phase()).name:
    run = run / phase.name
    if is_first():
      print(f"phase {phase.name}: {run}", file=sys.stderr)
  if phase.before:
    model = continued(model, run.parent / phase.before)
  layout = make_layout(model.model, make_mesh(mesh), axis_rules)
  if is_first():
    sys.stderr.writelines(f"{fallback}\n" for fallback in layout.fallbacks)
  config = TrainerConfig(steps, batch_size, accumulation, checkpoint_every, keep, seed)
  check_batch(batch_size, accumulation, layout)
  tx = optimizer.transformation(model.model)
  written = data.encoder(model).format
  judged = [task.dataset for task in evaluation.evaluation_tasks()] if evaluation else []
  rows = steps * batch_size
  with phases("prepare"):
    store = data.store(model, rows, judged)
  share = rows_of_process(batch_size, layout)
  loss = SupervisedLoss(
    model.model,
    z_loss=z_loss,
    label_smoothing=label_smoothing,
    normalising_factor=normalising_factor,
    tasks=len(store.tasks),
  )
  trainer = Trainer(
    config,
    model=model.model,
    loss=loss,
    tx=tx,
    schedule=optimizer.schedule,
    layout=layout,
    batches=lambda row: Batches(store, batch_size, row, rows, data.normalise, share),
    directory=run,
    load=model.load,
    tasks=[(task.name, task.cluster) for task in store.tasks],
    fingerprints={
      "store": store.fingerprint,
      "tokenizer": model.vocabulary.fingerprint,
      "model": model.fingerprint,
    },
    meta={
      "mixture": data.mixture,
      "config": dataclasses.asdict(model.model.config),
      "gin": operative_config(),
    },
  )
  # Only a run that may go on from what is there may say anything new about it.
  begun = trainer.check()
  changed = changed_settings(begun["gin"]) if begun else []
  if changed and is_first():
    print("this run was begun with other settings:", *changed, sep="\n  ", file=sys.stderr)
  with claimed(run) if is_first() else contextlib.nullcontext():
    describe_model(model, written, run)
    _save_config(run)
    before = {}
    if evaluation is not None:
      with phases("evaluate before"):
        before = judge_untuned(evaluation, model, written, layout, run)
    with phases("train"):
      result = trainer.run()
    _save_config(run)
    if evaluation is None or result.terminated:
      return not result.terminated
    with phases("evaluate after"):
      step = int(result.state.step)
      after = evaluation.run(
        model,
        result.state.params,
        layout,
        written,
        run / "evaluation",
        label=f"step {step}",
        fingerprint=Checkpoints(run / "checkpoints").digest(step),
      )
    consumed = sum(len(store.row(row)) for row in range(rows))
    training = {"steps": steps, "rows": rows, "examples": consumed, "seed": seed}
    write_report(run, after, before, notes, {**environment(phases), "training": training})
  return True


def _save_config(run: Path) -> None:
  """The operative config beside the run; process 0 writes it."""
  if is_first():
    write_whole(run / "operative_config.gin", [operative_config()])
