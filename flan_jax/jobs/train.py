"""`flan-jax train`: tune a model on a mixture, and say what that changed.

store (prepared if missing) --> untuned model judged --> training --> tuned model judged --> report
"""

import contextlib
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax

from flan_jax.checkpoints import Checkpoints
from flan_jax.data.atomic import claimed, write_whole
from flan_jax.data.batches import Batches
from flan_jax.data.store import Store
from flan_jax.data.told import told_rows
from flan_jax.errors import ConfigError
from flan_jax.evaluation.html import write_curve
from flan_jax.jobs.data import DataPlan
from flan_jax.jobs.evaluate import judge_untuned, not_judged
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.jobs.launch import changed_settings, current_phase, operative_config
from flan_jax.jobs.models import (
  ModelSource,
  check_continues,
  continued,
  describe_model,
  merged,
)
from flan_jax.jobs.optimizer import Optimizer
from flan_jax.jobs.processes import is_first
from flan_jax.jobs.report import Phases, environment, write_report
from flan_jax.jobs.schedule import schedule
from flan_jax.training.averages import averaged_params
from flan_jax.training.lora import AdaptedLoss
from flan_jax.training.losses import Loss, SupervisedLoss
from flan_jax.training.not_finite import ForwardPass
from flan_jax.training.partitioning import (
  DEFAULT_RULES,
  Layout,
  MeshConfig,
  Rules,
  check_batch,
  check_kernels,
  make_layout,
  make_mesh,
  rows_of_process,
)
from flan_jax.training.trainer import Trainer, TrainerConfig
from flan_jax.training.validation import HeldOutLoss


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
  validation_batches: int = 0,
  evaluation: EvaluationPlan | None = None,
  notes: tuple[str, ...] = (),
  seed: int = 0,
  max_bad_steps: int | None = 10,
  spike_window: int | None = None,
  spike_sigmas: float | None = None,
  debug: bool = False,
) -> bool | ModelSource:
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
    validation_batches: batches of the validation split whose loss is taken before the first step, with
      every checkpoint and at the end; drawn by the same rates, from the datasets that have such a split.
    evaluation: judge the model zero-shot before and after; None: train only.
    notes: sentences for the report, such as what the untuned model may already have seen.
    seed: of fresh parameters and of dropout; the data has its own.
    max_bad_steps: skipped steps in a row that stop the run; None: no number of them does.
    spike_window, spike_sigmas: skip a step whose loss lies more than `spike_sigmas` standard deviations
      above the mean of the last `spike_window` updates' losses; None: none.
    debug: stop at the first step that is not finite, and say in which layer and parameter that began.

  Returns:
    Whether it came to its end; False: SIGTERM came while it trained. In a rehearsal, the model.
  """
  run, phases, phase = _folder(run_dir), Phases(), current_phase()
  if phase.after:
    _check_after(run, steps, run.parent / phase.after)
  if phase.before and not phase.rehearsal:
    model = continued(model, run.parent / phase.before)
  elif phase.before:
    check_continues(model, phase.rehearsed_before)
  tuned, lora = data.read_by(model), model.lora
  layout = make_layout(model.model, make_mesh(mesh), axis_rules)
  check_kernels(model.model, layout.mesh)
  if not phase.rehearsal:
    _say_of_model(model, layout)
  config = TrainerConfig(
    steps,
    batch_size,
    accumulation,
    checkpoint_every,
    keep,
    seed,
    max_bad_steps=max_bad_steps,
    spike_window=spike_window,
    spike_sigmas=spike_sigmas,
  )
  check_batch(batch_size, accumulation, layout)
  schedule(optimizer, steps)  # refuses a run that would learn nothing, or never be warm
  tx = optimizer.transformation(lora or model.model)
  written = data.encoder(model).format
  if evaluation is not None:
    evaluation.check_trained(data.mixture)
  judged = [task.dataset for task in evaluation.evaluation_tasks()] if evaluation else []
  rows, unseen_rows = steps * batch_size, validation_batches * batch_size
  with phases("prepare"):
    store = data.store(model, rows, judged)
    unseen = data.validation_store(model, unseen_rows) if validation_batches else None
    without = [f"{name} is not trained on: {reason}" for name, reason in store.missing.items()]
    if evaluation is not None:
      evaluation, missing = evaluation.available()
      without += not_judged(missing)
  if phase.rehearsal:
    return model
  share = rows_of_process(batch_size, layout)

  def batches(store: Store, first: int, stop: int) -> Batches:
    both_ways = data.bidirectional_inputs
    return Batches(store, batch_size, first, stop, data.normalise, share, both_ways)

  def loss(store: Store, **settings: Any) -> Loss:
    supervised = SupervisedLoss(model.model, tasks=len(store.tasks), **settings)
    return AdaptedLoss(supervised, lora) if lora else supervised

  held_out = None
  if unseen:
    names = [task.name for task in unseen.tasks]
    held_out = HeldOutLoss(
      loss(unseen), lambda: batches(unseen, 0, unseen_rows), batch_size, layout, names
    )
  trainer = Trainer(
    config,
    model=lora or model.model,
    loss=loss(
      store,
      z_loss=z_loss,
      label_smoothing=label_smoothing,
      normalising_factor=normalising_factor,
    ),
    tx=tx,
    schedule=optimizer.schedule,
    trained=optimizer.trained,
    layout=layout,
    batches=lambda row: batches(store, row, rows),
    directory=run,
    load=None if lora else model.load,
    held_out=held_out,
    tasks=[(task.name, task.cluster) for task in store.tasks],
    fingerprints={
      "store": store.fingerprint,
      "tokenizer": model.vocabulary.fingerprint,
      "model": model.fingerprint,
      "direction of inputs": "both" if data.bidirectional_inputs else "one",
      **({"LoRA scale": str(lora.config.scale)} if lora else {}),
    },
    meta={
      "mixture": data.mixture,
      "config": dataclasses.asdict(model.model.config),
      "gin": operative_config(),
    },
    describe=functools.partial(told_rows, store),
    forward=_forward(model, layout, accumulation) if debug else None,
  )
  _check_begun(trainer)
  with claimed(run) if is_first() else contextlib.nullcontext():
    describe_model(tuned, written, run)
    _save_config(run)
    before = {}
    if evaluation is not None:
      with phases("evaluate before"):
        before = judge_untuned(evaluation, model, written, layout, run)
    with phases("train"):
      base = model.load(layout, jax.random.key(seed)) if lora else None
      result = trainer.run(frozen=base)
    _save_config(run)
    if result.terminated:
      return False
    if evaluation is None:
      if is_first():
        write_curve(run / "report.html", title=run.name, run_dir=run, notes=(*notes, *without))
      return True
    with phases("evaluate after"):
      step = int(result.state.step)
      params = averaged_params(result.state.opt_state, result.state.params)
      after = evaluation.run(
        tuned,
        merged(lora, base, params, layout) if lora else params,
        layout,
        written,
        run / "evaluation",
        label=f"step {step}",
        fingerprint=Checkpoints(run / "checkpoints").digest(step),
      )
    consumed = sum(len(store.row(row)) for row in range(rows))
    training = {"steps": steps, "rows": rows, "examples": consumed, "seed": seed}
    write_report(
      run, after, before, (*notes, *without), {**environment(phases), "training": training}
    )
  return True


def _forward(model: ModelSource, layout: Layout, accumulation: int) -> ForwardPass:
  if model.lora is None:
    return ForwardPass(model.model, layout, accumulation)
  return ForwardPass(model.model, layout, accumulation, model.lora.join)


def _folder(run_dir: str) -> Path:
  """Where the run is written: within `run_dir`, where the launch has phases."""
  if not run_dir:
    raise ConfigError("train.run_dir is empty; name the folder that the run is written to.")
  run, phase = Path(run_dir), current_phase()
  if phase.name:
    run = run / phase.name
    if is_first() and not phase.rehearsal:
      print(f"phase {phase.name}: {run}", file=sys.stderr)
  return run


def _check_after(run: Path, steps: int, following: Path) -> None:
  """A phase from which another one has begun stays as it is."""
  made = max(Checkpoints(run / "checkpoints").steps(), default=0)
  if made < steps and Checkpoints(following / "checkpoints").steps():
    raise ConfigError(
      f"{following} has begun from step {made} of {run}, which {steps} steps would train on: ask for {made}, name "
      f"another run_dir, or remove {following}."
    )


def _say_of_model(model: ModelSource, layout: Layout) -> None:
  if model.lora and model.reopened_by is None:
    raise ConfigError(
      f"adapters are saved alone, and {model.origin} cannot be opened again: choose @pretrained(), or "
      "@tuned() for the result of an earlier run."
    )
  if is_first():
    told = [*layout.fallbacks, *([model.lora.summary()] if model.lora else [])]
    sys.stderr.writelines(f"{line}\n" for line in told)


def _check_begun(trainer: Trainer) -> None:
  """Only a run that may go on from what is there may say anything new about it."""
  begun = trainer.check()
  changed = changed_settings(begun["gin"]) if begun else []
  if changed and is_first():
    print("this run was begun with other settings:", *changed, sep="\n  ", file=sys.stderr)


def _save_config(run: Path) -> None:
  """The operative config beside the run; process 0 writes it."""
  if is_first():
    write_whole(run / "operative_config.gin", [operative_config()])
