"""Where a run writes what happened: metrics.jsonl, validation.jsonl, TensorBoard, and a progress bar."""

import contextlib
import errno
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from flan_jax.data.atomic import write_whole
from flan_jax.errors import StorageError

METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"


class RunLog:
  """The log of one run, continued where a checkpoint stands.

  `metrics.jsonl` has one line a step. What earlier attempts logged after the checkpoint is taken
  out, since those rows are consumed again: the steps of the log are consecutive, and so are the row
  ranges. `validation.jsonl` has a line for each time that the held-out loss was taken. TensorBoard is
  told the same.

  Args:
    directory: of the run.
    start: the step that the run continues from; 0 at first.
    total: steps in all, for the progress bar.
    progress: whether to draw the bar.
  """

  def __init__(self, directory: str | Path, *, start: int, total: int, progress: bool = True):
    directory = Path(directory)
    with _storage_errors(directory):
      directory.mkdir(parents=True, exist_ok=True)
      _rewind(directory / METRICS, start)
      _rewind(directory / VALIDATION, start)
      self._lines = (directory / METRICS).open("a", encoding="utf-8")
      self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)
    self._directory = directory
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
      for name, value in _scalars(record):
        self._board.add_scalar(name, value, record["step"])
    self._bar.set_postfix_str(_summary(record), refresh=False)
    self._bar.update(record["step"] - self._bar.n)

  def validated(self, step: int, record: Mapping[str, Any]) -> None:
    """Logs the held-out loss of the parameters after a step, once.

    Raises:
      StorageError: the disk refused it.
    """
    path = self._directory / VALIDATION
    with _storage_errors(self._directory):
      if path.exists() and any(known["step"] == step for known in _records(path)):
        return
      with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"step": step, **record}) + "\n")
      for name, value in _scalars(record, "validation/"):
        self._board.add_scalar(name, value, step)
    self.say(f"step {step}: held-out loss {record['loss']:.4f}")

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    self._bar.write(text, file=sys.stderr)

  def close(self) -> None:
    self._bar.close()
    with _storage_errors(self._directory):
      self._lines.close()
      self._board.close()


def read_log(directory: str | Path, name: str = METRICS) -> list[dict[str, Any]]:
  """The lines of a run's metrics.jsonl or validation.jsonl, without a last one that a kill left unfinished."""
  path = Path(directory) / name
  return list(_records(path)) if path.is_file() else []


def _records(path: Path) -> Iterator[dict[str, Any]]:
  lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
  for number, line in enumerate(lines, start=1):
    try:
      if line:
        yield json.loads(line)
    except json.JSONDecodeError:
      if number < len(lines):
        raise StorageError(
          f"{path}:{number} is damaged: mend the line, or move the file away to go on without it."
        ) from None


def _rewind(path: Path, step: int) -> None:
  """Keeps the lines up to `step`; the file is whole before and after."""
  if not path.exists():
    return
  kept = [record for record in _records(path) if record["step"] <= step]
  write_whole(path, (json.dumps(record) + "\n" for record in kept))


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
