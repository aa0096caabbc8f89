"""What a run is told in numbers."""

import dataclasses

from flan_jax.checkpoints import Keep
from flan_jax.errors import ConfigError
from flan_jax.training.step import check_accumulator


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
  """How long, how much at a time, and how often to save.

  Args:
    steps: batches in all, those of earlier attempts included.
    batch_size: rows of one step, over all processes.
    accumulation: microbatches that a step is cut into.
    accumulator_dtype: "float32" or "bfloat16", of the sums of their gradients.
    checkpoint_every: steps between checkpoints. There is always one at the end.
    checkpoint_minutes: save as well when so many have passed since the last checkpoint.
    keep, keep_every, keep_best, best: which checkpoints stay; see `flan_jax.checkpoints.Keep`.
    seed: of fresh parameters and of dropout.
    progress: draw a progress bar.
    max_bad_steps: skipped steps in a row that stop the run; None: no number of them does.
    spike_window, spike_sigmas: a step is skipped whose loss lies more than `spike_sigmas` standard
      deviations above the mean of the last `spike_window` updates' losses; None: none is.
    evaluate_every: steps between evaluations, each of which is taken with a checkpoint.
    patience: the run ends once so many held-out losses in a row were no lower than the lowest before them.
    deterministic: make a GPU add up in the same order every time; it takes longer.
    profile_steps: first and last step, counted from 1, that are traced.
    wandb: a project of Weights & Biases that is told what the log is.
  """

  steps: int
  batch_size: int
  accumulation: int = 1
  checkpoint_every: int = 500
  checkpoint_minutes: float | None = None
  keep: int | None = 2
  keep_every: int | None = None
  keep_best: int | None = None
  best: str = "lowest loss"
  seed: int = 0
  progress: bool = True
  max_bad_steps: int | None = 10
  spike_window: int | None = None
  spike_sigmas: float | None = None
  evaluate_every: int | None = None
  patience: int | None = None
  deterministic: bool = False
  profile_steps: tuple[int, int] | None = None
  wandb: str | None = None
  accumulator_dtype: str = "float32"

  def __post_init__(self) -> None:
    check_accumulator(self.accumulator_dtype, self.accumulation)
    for name in (
      "steps",
      "batch_size",
      "accumulation",
      "checkpoint_every",
      "max_bad_steps",
      "evaluate_every",
      "patience",
    ):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ConfigError(f"{name}={value} must be 1 or more")
    window, sigmas = self.spike_window, self.spike_sigmas
    if (window is None) != (sigmas is None):
      raise ConfigError(
        f"spike_window={window} and spike_sigmas={sigmas}: set both, or neither for no loss to be a spike"
      )
    if window is not None and sigmas is not None and not (window >= 2 and sigmas > 0):
      raise ConfigError(
        f"spike_window={window} must be 2 or more, and spike_sigmas={sigmas} above 0"
      )
    if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
      raise ConfigError(f"checkpoint_minutes={self.checkpoint_minutes} must be above 0, or None")
    _ = self.kept
    if not 0 <= self.seed < 1 << 32:
      raise ConfigError(f"seed={self.seed} must lie between 0 and {(1 << 32) - 1}")
    if self.evaluate_every is not None and self.evaluate_every % self.checkpoint_every:
      raise ConfigError(
        f"evaluate_every={self.evaluate_every} must be a multiple of checkpoint_every={self.checkpoint_every}"
      )
    if self.profile_steps is not None:
      first, last = self.profile_steps
      if not 1 <= first <= last <= self.steps:
        raise ConfigError(
          f"profile_steps={self.profile_steps}: two steps between 1 and {self.steps}, the first one first"
        )

  @property
  def kept(self) -> Keep:
    return Keep(self.keep, self.keep_every, self.keep_best, self.best)
