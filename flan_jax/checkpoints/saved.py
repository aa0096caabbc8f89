"""Checkpoints of our own runs: Orbax arrays and a JSON of facts beside them.

  directory/
    120/params/...       one folder a part of the state, here parameters, averages and optimizer
    120/averages/...     of parameters, where the run kept moving averages
    120/optimizer/...
    120/sizes.json       every file with its size and checksum, to tell a damaged checkpoint
    120/meta/metadata    JSON: step, row cursor, fingerprints, whatever the run wants to find again
    160/...
    measured.json        held-out losses that were taken after their checkpoint was written

A step is complete or invisible: it is written under a temporary name, in the background, and
renamed. Arrays are stored by name, so they can be restored on any mesh, and the parameters without
the optimizer.
"""

import contextlib
import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from flan_jax.checkpoints.kept import Keep
from flan_jax.checkpoints.saved_arrays import (
  META,
  State,
  compare,
  digest_of,
  ignore_late_writes,
  named,
  nested,
  quiet,
  read_meta,
  read_part,
  saved_arrays,
)
from flan_jax.checkpoints.whole import check_files, damage, note_files
from flan_jax.data.atomic import check_local, write_whole
from flan_jax.errors import CheckpointError, StorageError, UnknownName

PyTree = Any

_LATER = "measured.json"  # of checkpoints that were measured after they were written


class Checkpoints:
  """The checkpoints of one run.

  Args:
    directory: of the run's checkpoints; made by the first save.
    keep: which of them stay once the next one is whole.
    background: write while training goes on. `wait` or `close` before the process ends.
    say: told, in a sentence, what the user should know.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    keep: Keep = Keep(),
    background: bool = True,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
  ):
    check_local(directory)
    self.directory = Path(directory).absolute()
    self._keep, self._background, self._say = keep, background, say
    self._manager: ocp.CheckpointManager | None = None
    self._saving: int | None = None
    self._failure: BaseException | None = None
    self._values: dict[int, float | None] = {}

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def save(
    self,
    step: int,
    state: State,
    meta: Mapping[str, Any],
    measured: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts to write a checkpoint. The arrays may be changed or donated once this returns.

    Args:
      state: trees of arrays by part, such as {"params": ..., "optimizer": ...}.
      meta: plain JSON values.
      measured: numbers, perhaps nested, by which this state is better than others; see `Keep`.

    Raises:
      StorageError: the disk refused this checkpoint or the one before it. Earlier ones are
      untouched.
    """
    parts = {part: ocp.args.PyTreeSave(nested(named(tree))) for part, tree in state.items()}
    facts = dict(meta) if measured is None else {**meta, "measured": dict(measured)}
    arguments = ocp.args.Composite(**parts, **{META: ocp.args.JsonSave(facts)})
    self._values[step] = self._keep.value(measured) if self._keep.best else None
    with self._storage_errors():
      writer = self._writer()
      writer.wait_until_finished()
      self._saving, self._failure = step, None
      writer.save(step, args=arguments, force=True)
    if not self._background:
      self.wait()

  def measured(self, step: int, measured: Mapping[str, Any]) -> None:
    """Notes what was measured of a checkpoint after it was written; see `save`."""
    if step not in self.steps():
      return
    self._values[step] = self._keep.value(measured) if self._keep.best else None
    if jax.process_index() == 0:
      known = {**self._measured_later(), str(step): dict(measured)}
      write_whole(self.directory / _LATER, [json.dumps(known)])

  def damage(self, step: int) -> str | None:
    """What is wrong with the files of a step; None: nothing."""
    return damage(self.directory / str(step))

  def check(self) -> None:
    """Waits for nothing.

    Raises:
      StorageError: what was being written in the background has failed.
    """
    if self._manager is None or self._saving is None:
      return
    if self._failure is not None:
      with self._storage_errors():
        raise self._failure
    if not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      StorageError: it cannot be.
    """
    if self._manager is not None:
      with self._storage_errors():
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
      self._saving = None

  def close(self) -> None:
    """Waits, then lets go of the directory."""
    if self._manager is None:
      return
    try:
      self.wait()
    finally:
      manager, self._manager = self._manager, None
      with contextlib.suppress(Exception), quiet():
        manager.close()

  def steps(self) -> list[int]:
    """The steps of all complete checkpoints, oldest first."""
    return _steps(self.directory)

  def restore(self, abstract: State, step: int | None = None) -> tuple[dict[str, PyTree], dict]:
    """The state and meta of a checkpoint.

    Args:
      abstract: `jax.ShapeDtypeStruct`s with shardings (or arrays), in trees like those saved. Parts
        left out are not read: give only {"params": ...} for the parameters alone.
      step: None: the latest. A torn one is said, put aside as `torn-<step>`, and the one before it
        taken.

    Raises:
      CheckpointError: there is none, all are torn, or it is of another shape; names every array
      that differs.
    """
    self.wait()
    steps = self.steps()
    if step is not None and step not in steps:
      raise CheckpointError(f"{self.directory} has no checkpoint of step {step}; it has {steps}")
    if not steps:
      raise CheckpointError(f"{self.directory} holds no complete checkpoint")
    torn: dict[int, str] = {}
    for candidate in [step] if step is not None else reversed(steps):
      try:
        found = self._read(abstract, candidate)
      except (CheckpointError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        # A device that is too small, say, is no fault of the checkpoint.
        raise
      except Exception as error:
        torn[candidate] = _first_line(error)
        continue
      for damaged, reason in torn.items():
        self._put_aside(damaged)
        self._say(
          f"checkpoint {self.directory / str(damaged)} is damaged ({reason}); it is put aside as "
          f"torn-{damaged}, and the one before it is taken"
        )
      return found
    if step is not None:
      raise CheckpointError(
        f"checkpoint {self.directory / str(step)} is damaged ({torn[step]}); restore another step of {steps}"
      )
    raise CheckpointError(
      f"every checkpoint in {self.directory} is damaged: "
      f"{'; '.join(f'{each} ({reason})' for each, reason in torn.items())}. Delete them to begin again."
    )

  def restore_params(self, abstract: PyTree, step: int | None = None) -> tuple[PyTree, dict]:
    """The parameters and meta of a checkpoint; see `restore`."""
    state, meta = self.restore({"params": abstract}, step)
    return state["params"], meta

  def restore_averages(self, abstract: PyTree, step: int) -> tuple[PyTree, dict]:
    """As `restore_params`, with the moving average of each parameter that the run kept one of."""
    kept = saved_arrays(self.directory / str(step) / "averages")
    wanted = {name: leaf for name, leaf in named(abstract).items() if name in kept}
    if not wanted:
      return self.restore_params(abstract, step)
    averages = {
      name: jax.ShapeDtypeStruct(leaf.shape, kept[name].dtype, sharding=leaf.sharding)
      for name, leaf in wanted.items()
    }
    state, meta = self.restore({"params": abstract, "averages": nested(averages)}, step)
    found = {
      name: leaf.astype(wanted[name].dtype) for name, leaf in named(state["averages"]).items()
    }
    return nested({**named(state["params"]), **found}), meta

  def meta(self, step: int | None = None) -> dict:
    """What was saved beside the arrays, without reading any."""
    steps = self.steps()
    if not steps or (step is not None and step not in steps):
      raise CheckpointError(f"{self.directory} has no checkpoint of step {step}; it has {steps}")
    return read_meta(self.directory / str(steps[-1] if step is None else step))

  def compare(self, abstract: State, step: int) -> None:
    """Raises CheckpointError with every array of a step that is not as `abstract` has it."""
    compare(self.directory / str(step), abstract)

  def last_whole(self) -> tuple[int, str]:
    """The latest step that is whole, and its digest. Damaged ones after it are said and left alone.

    Raises:
      CheckpointError: there is none.
    """
    for step in reversed(self.steps()):
      digest, reason = _try_digest(self.directory / str(step))
      if digest is not None:
        return step, digest
      self._say(
        f"checkpoint {self.directory / str(step)} is damaged ({reason}): one before it is taken"
      )
    raise CheckpointError(f"{self.directory} holds no complete checkpoint that is whole")

  def best(self, by: str) -> int:
    """The best step of those that are here, by what was measured of them; see `Keep.by`.

    Raises:
      CheckpointError: of none was anything measured.
    """
    keep = Keep(by=by)
    ranked = keep.ranked({step: self._measured_by(keep, step) for step in self.steps()})
    if not ranked:
      raise CheckpointError(
        f"no checkpoint in {self.directory} was measured: the run took no held-out loss with any that is left"
      )
    return ranked[0]

  def digest(self, step: int) -> str:
    """sha256 over names, dtypes, shapes and bytes of every array: equal digests, equal states.

    Raises:
      CheckpointError: no such step, or it is damaged.
    """
    if step not in self.steps():
      raise CheckpointError(
        f"{self.directory} has no checkpoint of step {step}; it has {self.steps()}"
      )
    digest, reason = _try_digest(self.directory / str(step))
    if digest is None:
      raise CheckpointError(f"checkpoint {self.directory / str(step)} is damaged ({reason})")
    return digest

  def _writer(self) -> ocp.CheckpointManager:
    if self._manager is None:
      ignore_late_writes()
      options = ocp.CheckpointManagerOptions(
        preservation_policy=self,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._before_rename,
          barrier_sync_fn=self._meeting,
          # In the background, a folder that cannot be made is waited for five minutes.
          create_directories_asynchronously=False,
        ),
        cleanup_tmp_directories=True,
        lightweight_initialize=True,
      )
      self._manager = ocp.CheckpointManager(self.directory, options=options)
      # Orbax would ask about the step that it saves, late and from its own thread: that sets back the
      # count by which processes agree where to stop.
      self._manager.reached_preemption = lambda step: False
    return self._manager

  def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
    """Orbax asks as the next checkpoint is begun, and deletes the others once that one is whole."""
    values = {each.step: self._value(each.step) for each in checkpoints}
    stay = self._keep.steps(values)
    return [each.step in stay for each in checkpoints]

  def _value(self, step: int) -> float | None:
    if self._keep.best and step not in self._values:
      self._values[step] = None
      with contextlib.suppress(UnknownName):  # measured otherwise
        self._values[step] = self._measured_by(self._keep, step)
    return self._values.get(step)

  def _measured_by(self, keep: Keep, step: int) -> float | None:
    try:
      own = self.meta(step).get(
        "measured"
      )  # of this very checkpoint; the step may have been saved before
      return keep.value(own or self._measured_later().get(str(step)))
    except (OSError, ValueError):  # damaged
      return None

  def _measured_later(self) -> dict[str, Any]:
    path = self.directory / _LATER
    return json.loads(path.read_text()) if path.is_file() else {}

  def _meeting(self, *, key: str, timeout_ms: int) -> None:
    """Where Orbax's threads wait for those of the other processes.

    One whose writes have failed comes here as well, before anybody hears of it, and would wait for
    the others in vain.
    """
    if threading.current_thread() is not threading.main_thread():
      self._failure = self._failure or sys.exc_info()[1]
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

  def _before_rename(self) -> None:
    """Orbax calls this when every file is written under the temporary name."""
    if jax.process_index() == 0:
      for folder in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
        note_files(folder)

  def _read(self, abstract: State, step: int) -> tuple[dict[str, PyTree], dict]:
    folder = self.directory / str(step)
    check_files(folder)
    compare(folder, abstract)
    state = {part: read_part(folder / part, tree) for part, tree in abstract.items()}
    return state, read_meta(folder)

  def _put_aside(self, step: int) -> None:
    """Out of the way of the run, which will save this step again."""
    if jax.process_index() == 0:
      aside = self.directory / f"torn-{step}"
      shutil.rmtree(aside, ignore_errors=True)
      (self.directory / str(step)).rename(aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"put-aside-{step}")
    if self._manager is not None:
      self._manager.reload()

  @contextlib.contextmanager
  def _storage_errors(self) -> Iterator[None]:
    """Turns a refused write into a StorageError, and removes what was half written."""
    try:
      yield
    except Exception as error:
      reason = _refusal(error)
      if reason is None:
        raise
      manager, self._manager = self._manager, None
      # Closing waits for the other processes, and they may not know.
      if manager is not None and jax.process_count() == 1:
        with contextlib.suppress(Exception), quiet():
          manager.close()
      if jax.process_index() == 0:
        for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
          shutil.rmtree(leftover, ignore_errors=True)
      raise StorageError(
        f"a checkpoint could not be written to {self.directory}: {reason}. Earlier checkpoints are whole: "
        f"{self.steps()}. Mend that (make room, say) and run the same command again"
      ) from error


def checkpoint_table(directory: str | Path) -> list[dict[str, Any]]:
  """What the complete checkpoints of a run hold: step, updates, row, bytes, digest, damaged.

  `damaged` is a reason or None.

  Raises:
    CheckpointError: there is no such directory, or no checkpoint in it.
  """
  directory = Path(directory).absolute()
  if not directory.is_dir():
    raise CheckpointError(f"there is no directory {directory}")
  checkpoints, rows = Checkpoints(directory), []
  for step in checkpoints.steps():
    row: dict[str, Any] = {"step": step, "updates": None, "row": None, "digest": None}
    folder = directory / str(step)
    row["bytes"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    row["digest"], row["damaged"] = _try_digest(folder)
    if row["damaged"] is None:
      meta = read_meta(folder)
      row |= {"updates": meta.get("updates"), "row": meta.get("row")}
    rows.append(row)
  if not rows:
    raise CheckpointError(f"{directory} holds no complete checkpoint")
  return rows


def _steps(directory: Path) -> list[int]:
  # Orbax's own list is a meeting of all processes, and one that has failed looks as well.
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _try_digest(folder: Path) -> tuple[str | None, str | None]:
  """The digest, or why the checkpoint cannot be read."""
  try:
    check_files(folder)
    return digest_of(folder), None
  except Exception as error:
    return None, _first_line(error)


def _refusal(error: BaseException | None) -> str | None:
  """What the operating system said, where an error is, or comes from, a refused write."""
  refused = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
  while error is not None:
    if isinstance(error, OSError) and error.errno in refused:
      return _first_line(error)
    # TensorStore's errors have no number.
    for words in map(os.strerror, refused):
      if words in str(error):
        return words
    error = error.__cause__ or error.__context__
  return None


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
