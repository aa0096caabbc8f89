"""Where a run writes what happened: metrics.jsonl, validation.jsonl, TensorBoard, Weights & Biases, a progress bar."""

import contextlib
import errno
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flan_jax.data.atomic import write_whole
from flan_jax.errors import ConfigError, StorageError
from flan_jax.training.json_lines import json_lines
from flan_jax.training.timers import Attempts, Timers

METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
EVALUATION = "evaluation.jsonl"


class RunLog:
  """The log of one run, continued where a checkpoint stands.

  `metrics.jsonl` has one line a step. What earlier attempts logged after the checkpoint is taken
  out, since those rows are consumed again: the steps of the log are consecutive, and so are the row
  ranges. `validation.jsonl` has a line for each time that the held-out loss was taken, `evaluation.jsonl` for each time
  that the model was judged meanwhile. TensorBoard is told the same. `attempts.jsonl` has a line for each time that the
  run was begun or gone on with.

  Args:
    directory: of the run.
    start: the step that the run continues from; 0 at first.
    total: steps in all, for the progress bar.
    timers: of this attempt.
    progress: whether to draw the bar.
    wandb: a project of Weights & Biases that is told the same.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    start: int,
    total: int,
    timers: Timers | None = None,
    progress: bool = True,
    wandb: str | None = None,
  ):
    directory = Path(directory)
    self._wandb = _open_wandb(wandb, directory) if wandb else None
    with _storage_errors(directory):
      directory.mkdir(parents=True, exist_ok=True)
      # Told before those steps are taken out of the log: an attempt may be killed before it tells more.
      again = [record for record in read_log(directory) if record["step"] > start]
      self._attempts = Attempts(directory, timers or Timers(), start, again)
      if start < total:
        self._attempts.write(start)
      _rewind(directory / METRICS, start)
      _rewind(directory / VALIDATION, start)
      _rewind(directory / EVALUATION, start)
      self._lines = (directory / METRICS).open("a", encoding="utf-8")
    self._directory, self._start = directory, start
    self._bar = tqdm(total=total, initial=start, desc="train", unit="step", disable=not progress)

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def write(self, record: Mapping[str, Any]) -> None:
    """Logs one step: plain JSON values. Nested numbers become TensorBoard scalars, named by path.

    Raises:
      StorageError: the disk refused it.
    """
    with _storage_errors(self._directory):
      self._lines.write(json.dumps(record) + "\n")
      self._lines.flush()
      self._plot(record["step"], dict(_scalars(record)))
    self._bar.set_postfix_str(_summary(record), refresh=False)
    self._bar.update(record["step"] - self._bar.n)

  def validated(self, step: int, record: Mapping[str, Any]) -> None:
    """Logs the held-out loss of the parameters after a step, once.

    Raises:
      StorageError: the disk refused it.
    """
    if self._once(VALIDATION, step, record):
      self.say(f"step {step}: held-out loss {record['loss']:.4f}")

  def judged(self, step: int, record: Mapping[str, Any]) -> None:
    """Logs an evaluation of the parameters after a step, once.

    Raises:
      StorageError: the disk refused it.
    """
    if self._once(EVALUATION, step, record):
      means = (f"{name} {mean:.3f}" for name, mean in record["means"].items())
      self.say(f"step {step}: {', '.join(means)}")

  def judged_already(self, step: int) -> bool:
    """Whether the log has an evaluation of this step."""
    return any(known["step"] == step for known in read_log(self._directory, EVALUATION))

  def _once(self, name: str, step: int, record: Mapping[str, Any]) -> bool:
    """Whether a line of this step was new to a log, and has been written."""
    path = self._directory / name
    with _storage_errors(self._directory):
      if any(known["step"] == step for known in read_log(self._directory, name)):
        return False
      with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"step": step, **record}) + "\n")
      self._plot(step, dict(_scalars(record, f"{path.stem}/")))
    return True

  def reached(self, step: int) -> None:
    """Notes that this attempt has come so far, and what its time went into.

    Raises:
      StorageError: the disk refused it.
    """
    self._attempts.write(step)

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    self._bar.write(text, file=sys.stderr)

  def close(self) -> None:
    self._bar.close()
    with _storage_errors(self._directory):
      self._lines.close()
      if "_board" in self.__dict__:
        self._board.close()
    if self._wandb is not None:
      self._wandb.finish()

  @functools.cached_property
  def _board(self) -> Any:
    # Imports torch where it finds it, which need not delay the first step.
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(self._directory / "tensorboard"), purge_step=self._start + 1)

  def _plot(self, step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log({**scalars, "step": step})


class NoLog:
  """The log of the processes that keep none."""

  def __enter__(self) -> "NoLog":
    return self

  def __exit__(self, *error: object) -> None:
    pass

  def write(self, record: Mapping[str, Any]) -> None:
    pass

  def validated(self, step: int, record: Mapping[str, Any]) -> None:
    pass

  def judged(self, step: int, record: Mapping[str, Any]) -> None:
    pass

  def judged_already(self, step: int) -> bool:
    return False

  def reached(self, step: int) -> None:
    pass


def read_log(directory: str | Path, name: str = METRICS) -> list[dict[str, Any]]:
  """The lines of a run's metrics.jsonl or validation.jsonl, without a last one that a kill left unfinished."""
  path = Path(directory) / name
  return list(json_lines(path)) if path.is_file() else []


def step_record(
  metrics: Mapping[str, Any],
  rows: tuple[int, int],
  positions: int,
  seconds: float,
  tasks: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
  """One line of the log.

  Args:
    metrics: those of `make_train_step`, on the host.
    rows: the first row of the batch and the one after its last.
    positions: tokens of the batch, padding included.
    seconds: that the step took.
    tasks: (name, cluster) of each task id.
  """
  tallies = metrics["tallies"]
  tokens = int(tallies.get("tokens", 0))
  record: dict[str, Any] = {
    "step": int(metrics["step"]),
    "updates": int(metrics["updates"]),
    "rows": list(rows),
    "loss": _number(metrics["loss"]),
    "terms": {name: _number(value) for name, value in metrics["terms"].items()},
    "learning_rate": _number(metrics["learning_rate"]),
    "grad_norm": _number(metrics["grad_norm"]),
    "tokens": tokens,
    "targets": int(tallies.get("targets", 0)),
    "positions": positions,
    "seconds": round(seconds, 6),
    "tokens_per_second": tokens / max(seconds, 1e-9),
    "padding_per_second": (positions - tokens) / max(seconds, 1e-9),
  }
  if tasks and "task_loss" in tallies:
    losses, weights = np.asarray(tallies["task_loss"]), np.asarray(tallies["task_weight"])
    record["tasks"] = _means([name for name, _ in tasks], losses, weights)
    record["clusters"] = _means([cluster for _, cluster in tasks], losses, weights)
  return record


def _number(value: Any) -> float | None:
  """JSON knows no infinity and no NaN, which skipped steps have."""
  return float(value) if np.isfinite(value) else None


def _means(
  names: Sequence[str], losses: np.ndarray, weights: np.ndarray
) -> dict[str, float | None]:
  """Weighted mean loss of each name that has any weight in this batch."""
  sums: dict[str, tuple[float, float]] = {}
  for name, loss, weight in zip(names, losses.tolist(), weights.tolist(), strict=True):
    total = sums.get(name, (0.0, 0.0))
    sums[name] = (total[0] + loss, total[1] + weight)
  return {
    name: _number(loss / weight) for name, (loss, weight) in sorted(sums.items()) if weight > 0
  }


def _rewind(path: Path, step: int) -> None:
  """Keeps the lines up to `step`; the file is whole before and after."""
  if not path.exists():
    return
  kept = [record for record in json_lines(path) if record["step"] <= step]
  write_whole(path, (json.dumps(record) + "\n" for record in kept))


def _open_wandb(project: str, directory: Path) -> Any:
  try:
    import wandb
  except ImportError:
    raise ConfigError(
      f"wandb={project!r}: Weights & Biases is not installed here; pip install wandb, or leave the setting out."
    ) from None
  # The same folder goes on with the same run. Steps that are made again come twice, so they are an axis of ours.
  name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
  run = wandb.init(project=project, name=directory.name, id=name, resume="allow", dir=directory)
  run.define_metric("*", step_metric="step")
  return run


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
  for name, value in record.items():
    if isinstance(value, Mapping):
      yield from _scalars(value, f"{prefix}{name}/")
    elif isinstance(value, int | float) and name != "step":
      yield prefix + name, value


def _summary(record: Mapping[str, Any]) -> str:
  padding = record["positions"] - record["tokens"]
  pace = 1 / max(record["seconds"], 1e-9)
  loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
  skipped = sum(record["skipped_so_far"].values())
  skips = f"{skipped} skipped, " if skipped else ""
  return (
    f"loss {loss}, {skips}{record['tokens'] * pace:,.0f} tokens/s + {padding * pace:,.0f} padding/s"
  )


@contextlib.contextmanager
def _storage_errors(directory: Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
      raise StorageError(
        f"the log in {directory} could not be written: {error.strerror}. Make room and run the same command again"
      ) from error
    raise
