"""`flan-jax train`: tune a model on a mixture, and say what that changed.

store (prepared if missing) --> untuned model judged --> training --> tuned model judged --> report
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from flan_jax.checkpoints import Checkpoints
from flan_jax.data.atomic import check_local, claimed, write_whole
from flan_jax.data.batches import Batches
from flan_jax.data.encode import check_layout, row_capacities
from flan_jax.data.mixtures import is_known
from flan_jax.data.store import Store
from flan_jax.data.told import told_rows
from flan_jax.errors import ConfigError
from flan_jax.evaluation import Evaluation, in_short
from flan_jax.evaluation.pages.report_page import write_course
from flan_jax.jobs.convert import export as export_saved
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
from flan_jax.jobs.preflight import check_same
from flan_jax.jobs.processes import is_first, watchdog_of
from flan_jax.jobs.report import (
  compare_phases,
  environment,
  write_environment,
  write_report,
)
from flan_jax.jobs.schedule import schedule
from flan_jax.training.averages import averaged_params
from flan_jax.training.config import TrainerConfig
from flan_jax.training.flops import batch_flops, shapes_by_path
from flan_jax.training.lora import AdaptedLoss
from flan_jax.training.losses import Loss, SupervisedLoss
from flan_jax.training.meanwhile import out_of_patience
from flan_jax.training.not_finite import ForwardPass
from flan_jax.training.partitioning import (
  DEFAULT_RULES,
  Layout,
  MeshConfig,
  Rules,
  check_batch,
  check_kernels,
  check_lengths,
  make_layout,
  make_mesh,
)
from flan_jax.training.timers import Timers, goodput
from flan_jax.training.trainer import Trainer, TrainingResult
from flan_jax.training.validation import HeldOutLoss
from flan_jax.training.watchdog import WatchdogConfig
from flan_jax.vocabularies import Format

PyTree = Any


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
  accumulator_dtype: str = "float32",
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
  normalising_factor: float | None = None,
  checkpoint_every: int = 500,
  checkpoint_minutes: float | None = None,
  keep: int | None = 2,
  keep_every: int | None = None,
  keep_best: int | None = None,
  best: str = "lowest loss",
  validation_batches: int = 0,
  evaluation: EvaluationPlan | None = None,
  notes: tuple[str, ...] = (),
  seed: int = 0,
  max_bad_steps: int | None = 10,
  spike_window: int | None = None,
  spike_sigmas: float | None = None,
  debug: bool = False,
  evaluate_every: int | None = None,
  patience: int | None = None,
  export: bool = False,
  deterministic: bool = False,
  profile_steps: tuple[int, int] | None = None,
  wandb: str | None = None,
  watchdog: WatchdogConfig = WatchdogConfig(),
  from_phase_before: bool = True,
) -> bool | ModelSource:
  """Tunes a model. The same command again goes on where it was.

  In a launch of several phases each is a run of its own, in a folder of its own within `run_dir`, and
  begins with the parameters that the phase before it left, or with those of `model`. What was judged in several
  phases is compared at the end of the last.

  Args:
    run_dir: where everything of this run is written.
    steps: batches in all.
    batch_size: packed rows of a batch, over all devices.
    accumulation: microbatches that a batch is cut into.
    accumulator_dtype: of the sums of their gradients, "float32" or "bfloat16".
    normalising_factor: divides the loss in place of the sum of its weights.
    checkpoint_every, checkpoint_minutes: a checkpoint is written every so many steps, and when so many
      minutes have passed since the last.
    keep, keep_every, keep_best: of the checkpoints stay so many of the latest (None: all), those of steps that
      `keep_every` divides, and so many of the best.
    best: by what of `validation.jsonl`, such as "lowest loss" or "lowest tasks/boolq".
    validation_batches: batches of the validation split whose loss is taken before the first step, with
      every checkpoint and at the end; drawn by the same rates, from the datasets that have such a split.
    evaluation: judge the model zero-shot before and after; None: train only.
    notes: sentences for the report, such as what the untuned model may already have seen.
    seed: of fresh parameters and of dropout; the data has its own.
    max_bad_steps: skipped steps in a row that stop the run; None: no number of them does.
    spike_window, spike_sigmas: skip a step whose loss lies more than `spike_sigmas` standard deviations
      above the mean of the last `spike_window` updates' losses; None: none.
    debug: stop at the first step that is not finite, and say in which layer and parameter that began.
    evaluate_every: steps, a multiple of `checkpoint_every`, after which the model is judged meanwhile
      (`evaluation.jsonl`).
    patience: stop once so many held-out losses in a row were no lower than the lowest before them.
    export: write each checkpoint also as a folder for transformers and vLLM, `exported/<step>`; of LoRA for PEFT.
    deterministic: make a GPU add up in the same order every time; it takes longer.
    profile_steps: first and last step, counted from 1, that are traced for XProf (`profile/`).
    wandb: a project of Weights & Biases that is told what the log is.
    watchdog: how often to say where the processes are, and how long a step may take.
    from_phase_before: False: each phase begins with `model`, to see what its settings do.

  Returns:
    Whether it came to its end; False: SIGTERM came while it trained. In a rehearsal, the model.
  """
  run, timers, phase = _folder(run_dir), Timers(), current_phase()
  if phase.after and from_phase_before:
    _check_after(run, steps, patience, run.parent / phase.after)
  if phase.before and from_phase_before:
    if phase.rehearsal:
      check_continues(model, phase.rehearsed_before)
    else:
      model = continued(model, run.parent / phase.before)
  lora = model.lora
  layout = make_layout(model.model, make_mesh(mesh), axis_rules)
  check_kernels(model.model.config, layout.mesh)
  if not phase.rehearsal:
    _say_of_model(model, layout)
  config = TrainerConfig(
    steps,
    batch_size,
    accumulation,
    checkpoint_every,
    checkpoint_minutes,
    keep,
    keep_every,
    keep_best,
    best,
    seed,
    max_bad_steps=max_bad_steps,
    spike_window=spike_window,
    spike_sigmas=spike_sigmas,
    evaluate_every=evaluate_every,
    patience=patience,
    deterministic=deterministic,
    profile_steps=profile_steps,
    wandb=wandb,
    accumulator_dtype=accumulator_dtype,
  )
  check_batch(batch_size, accumulation, layout)
  check_layout(model.model.layout, data.lengths)
  check_lengths(row_capacities(model.model.layout, data.lengths), layout)
  schedule(optimizer, steps)  # refuses a run that would learn nothing, or never be warm
  tx = optimizer.transformation(lora or model.model)
  if evaluation is not None:
    evaluation.check_trained(data.mixture)
  elif evaluate_every is not None:
    raise ConfigError(
      f"train.evaluate_every={evaluate_every} needs a train.evaluation that says what is judged."
    )
  if export and jax.process_count() > 1:
    raise ConfigError(
      "train.export writes from one process: leave it out, and `flan-jax convert` the checkpoints."
    )
  rows, unseen_rows = steps * batch_size, validation_batches * batch_size
  with timers("prepare"):
    judged = [task.dataset for task in evaluation.evaluation_tasks()] if evaluation else []
    store = data.store(model, rows, judged)
    unseen = data.validation_store(model, unseen_rows) if validation_batches else None
    without = [f"{name} is not trained on: {reason}" for name, reason in store.missing.items()]
    if evaluation is not None:
      evaluation, missing = evaluation.available()
      without += not_judged(missing)
  if phase.rehearsal:
    return model
  own = {"tokenizer": model.vocabulary.fingerprint, "model": model.fingerprint}
  held_out_rows = unseen.fingerprint if unseen else "none"
  check_same(f"run {run}", {"store": store.fingerprint, "held-out store": held_out_rows, **own})
  made = _Run(run, model, data, store, layout, batch_size, evaluation, (*notes, *without), timers)
  trainer = Trainer(
    config,
    model=lora or model.model,
    loss=made.loss(
      store,
      z_loss=z_loss,
      label_smoothing=label_smoothing,
      normalising_factor=normalising_factor,
    ),
    tx=tx,
    schedule=optimizer.schedule,
    trained=optimizer.trained,
    layout=layout,
    batches=lambda row: made.batches(store, row, rows),
    directory=run,
    load=None if lora else model.load,
    held_out=made.held_out(unseen, unseen_rows) if unseen else None,
    tasks=[(task.name, task.cluster) for task in store.tasks],
    fingerprints=made.fingerprints(),
    meta={
      "mixture": data.mixture,
      "config": dataclasses.asdict(model.model.config),
      "gin": operative_config(),
    },
    describe=functools.partial(told_rows, store),
    flops=made.flops(optimizer),
    judge=made.judge if evaluate_every else None,
    saved=functools.partial(export_saved, model, run) if export else None,
    timers=timers,
    forward=_forward(model, layout, accumulation) if debug else None,
    watchdog=watchdog_of(watchdog),
  )
  _check_begun(trainer)
  with claimed(run) if is_first() else contextlib.nullcontext(), timers("init"):
    describe_model(made.tuned, made.written, run)
    _save_config(run)
    write_environment(run)
    before = {}
    if evaluation is not None:
      with timers("evaluate"):
        scored = run.parent if phase.name else run
        before = judge_untuned(evaluation, model, made.written, layout, scored)
    base = model.load(layout, jax.random.key(seed)) if lora else None
    result = trainer.run(frozen=base)
    _save_config(run)
    if not result.terminated:
      made.report(result, before, base)
      if phase.name and not phase.after:
        compare_phases(run.parent, phase.names)
  return not result.terminated


@dataclasses.dataclass(frozen=True)
class _Run:
  """What a run is made of, once its data is prepared."""

  directory: Path
  model: ModelSource
  data: DataPlan
  store: Store
  layout: Layout
  batch_size: int
  evaluation: EvaluationPlan | None
  notes: tuple[str, ...]
  timers: Timers

  @property
  def tuned(self) -> ModelSource:
    """The model as it reads what is trained on, and knows it."""
    source = self.data.read_by(self.model)
    if not is_known(self.data.mixture):  # SeqIO's tasks have names and clusters of their own
      return source
    seen = {task.name: task.cluster for task in self.store.tasks}
    return dataclasses.replace(source, trained_on={**source.trained_on, **seen})

  @property
  def written(self) -> Format:
    return self.data.encoder(self.model).format

  def batches(self, store: Store, first: int, stop: int) -> Batches:
    return self.data.batches(store, first, stop, self.batch_size, self.layout)

  def loss(self, store: Store, **settings: Any) -> Loss:
    supervised = SupervisedLoss(self.model.model, tasks=len(store.tasks), **settings)
    return AdaptedLoss(supervised, self.model.lora) if self.model.lora else supervised

  def held_out(self, unseen: Store, rows: int) -> HeldOutLoss:
    names = [task.name for task in unseen.tasks]
    return HeldOutLoss(
      self.loss(unseen),
      lambda: self.batches(unseen, 0, rows),
      self.batch_size,
      self.layout,
      names,
    )

  def fingerprints(self) -> dict[str, str]:
    """What must be the same when the run goes on."""
    lora = self.model.lora
    return {
      "store": self.store.fingerprint,
      "tokenizer": self.model.vocabulary.fingerprint,
      "model": self.model.fingerprint,
      "direction of inputs": "both" if self.data.bidirectional_inputs else "one",
      **({"LoRA scale": str(lora.config.scale)} if lora else {}),
    }

  def flops(self, optimizer: Optimizer) -> Callable[[Mapping[str, Any]], float]:
    """From a batch to the FLOPs that the model needs for it."""
    model = self.model.model
    of_all = shapes_by_path(model.shapes())
    of_trained = shapes_by_path(optimizer.trained((self.model.lora or model).shapes()))
    return lambda batch: batch_flops(model.config, batch, of_trained, of_all).total

  def judge(self, params: PyTree, frozen: PyTree) -> dict[str, Any]:
    """The model as it is meanwhile: means over tasks, and each task."""
    assert self.evaluation is not None
    found = self.evaluation.run(
      self.tuned,
      self.whole(params, frozen, keep=True),
      self.layout,
      self.written,
      None,
      label="meanwhile",
    )
    return in_short(found)

  def whole(self, params: PyTree, frozen: PyTree, keep: bool = False) -> PyTree:
    """The model's parameters, adapters merged into their base; unless `keep`, in its place."""
    lora = self.model.lora
    return merged(lora, frozen, params, self.layout, keep) if lora else params

  def report(
    self, result: TrainingResult, before: Mapping[str, Evaluation], frozen: PyTree
  ) -> None:
    """Judges what was trained, where it is to be judged, and writes the report."""
    run, step, evaluation = self.directory, int(result.state.step), self.evaluation
    if evaluation is None:
      if is_first():
        write_course(run / "report.html", title=run.name, run_dir=run, notes=self.notes)
      return
    with self.timers("evaluate"):
      params = averaged_params(result.state.opt_state, result.state.params)
      after = evaluation.run(
        self.tuned,
        self.whole(params, frozen),
        self.layout,
        self.written,
        run / "evaluation",
        label=f"step {step}",
        fingerprint=Checkpoints(run / "checkpoints").digest(step),
      )
    rows = step * self.batch_size
    training = {
      "steps": step,
      "rows": rows,
      "examples": sum(len(self.store.row(row)) for row in range(rows)),
      "seed": self.data.seed,
      "time": goodput(run),
    }
    write_report(run, after, before, self.notes, {**environment(self.timers), "training": training})


def _forward(model: ModelSource, layout: Layout, accumulation: int) -> ForwardPass:
  if model.lora is None:
    return ForwardPass(model.model, layout, accumulation)
  return ForwardPass(model.model, layout, accumulation, model.lora.join)


def _folder(run_dir: str) -> Path:
  """Where the run is written: within `run_dir`, where the launch has phases."""
  if not run_dir:
    raise ConfigError("train.run_dir is empty; name the folder that the run is written to.")
  check_local(run_dir)
  run, phase = Path(run_dir), current_phase()
  if phase.name:
    run = run / phase.name
    if is_first() and not phase.rehearsal:
      print(f"phase {phase.name}: {run}", file=sys.stderr)
  return run


def _check_after(run: Path, steps: int, patience: int | None, following: Path) -> None:
  """A phase from which another one has begun stays as it is."""
  checkpoints = Checkpoints(run / "checkpoints")
  made = max(checkpoints.steps(), default=0)
  if made and out_of_patience(checkpoints.meta(made).get("held_out_losses", ()), patience):
    return
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
    kernel = model.model.config.attention
    told = [] if kernel == "xla" else [f"attention by the kernel {kernel!r}"]
    told += [*layout.fallbacks, *([model.lora.summary()] if model.lora else [])]
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
