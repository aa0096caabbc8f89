"""Makes a store, or makes one longer: renders, tokenises and packs in several processes.

Windows are finished one by one and kept, so that a run that is stopped goes on where it was; the
result does not depend on how many processes made it.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flan_jax.data import seqio_stream
from flan_jax.data.atomic import build_once, one_at_a_time
from flan_jax.data.encode import places, row_capacities
from flan_jax.data.mixtures import Mixture, get_mixture, is_known
from flan_jax.data.packing import pack
from flan_jax.data.seqio_stream import SeqioStream
from flan_jax.data.store import (
  Store,
  StoreConfig,
  directory_of,
  read_description,
  window_path,
  write_description,
)
from flan_jax.data.streams import MixtureStream, Stream, StreamEnds, describe_mixture
from flan_jax.data.windows import Window, write_window
from flan_jax.data.workers import can_fork, in_child, results_of
from flan_jax.errors import ConfigError, FlanJaxError, StorageError
from flan_jax.prompting import Draw

_LOG = logging.getLogger(__name__)


def prepare(
  config: StoreConfig,
  rows: int,
  data_dir: Path | str,
  workers: int | None = None,
  progress: bool = True,
  strict: bool = False,
) -> Store:
  """The store of these settings with at least so many rows; what is there already is kept.

  Args:
    config: what the store holds.
    rows: steps times rows of a batch.
    data_dir: where records, archives and stores are kept.
    workers: processes; one for each core when None. 1 works in this process. More are forked, for
      which neither JAX nor TensorFlow may be loaded here; with None one is then used. A SeqIO task is
      always read in this process: its stream has no places that could be jumped to.
    progress: show a bar with rate and remaining time.
    strict: a dataset whose records cannot be had is an error; else it is left out, and `Store.missing` says why.

  Raises:
    ConfigError: nothing of the mixture fits the lengths, or processes cannot be forked.
    StorageError: the disk is full, or a window of the store is torn.
    FlanJaxError: a worker died.
  """
  data_dir = Path(data_dir)
  if not _own_mixture(config):
    workers = 1
  elif workers is None:
    workers = len(os.sched_getaffinity(0)) if can_fork() else 1
  # Reading a TFDS source loads TensorFlow, after which no worker could be forked.
  told = partial(_description, config, rows, data_dir, strict)
  description = in_child(told) if workers > 1 else told()
  for name, reason in description["missing"].items():
    _LOG.warning("%s is left out: %s", name, reason)
  directory = build_once(directory_of(description, data_dir), partial(_begin, config, description))
  about = read_description(directory)
  if _is_enough(directory, about, rows):
    if about["tasks"] != _as_json(description["tasks"]):
      _put_right(directory, description)
    return Store.open(directory)  # without a lock: the disk may be one to read from only
  with one_at_a_time(_lock(directory)):
    windows = read_description(directory)["windows"]
    # Rows that were promised before stay promised, also where somebody deleted a torn window.
    rows = max(rows, sum(window["rows"] for window in windows))
    kept = _kept(directory, windows)
    if sum(window["rows"] for window in kept.values()) < rows:
      stream = _open_stream(config, description["tasks"], data_dir)
      stream.check(rows)
      preparation = _Preparation(config, stream, directory)
      windows = preparation.run(kept, rows, workers, progress)
      write_description(directory, {**description, "windows": windows})
  return Store.open(directory)


def describe(
  config: StoreConfig,
  data_dir: Path | str,
  strict: bool = False,
  missing: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """What `store.json` says about a store before it has windows. Builds the records that are not there.

  Its fingerprint is a sha256 of everything that decides the rows: of our own mixtures the sources,
  templates and rates; of a SeqIO task what `seqio_stream.describe` can see of it; the settings.

  Args:
    missing: see `flan_jax.data.rates.training_tasks`.
  """
  if mixture := _own_mixture(config):
    tasks, without = describe_mixture(mixture, config, data_dir, strict, missing)
  else:
    tasks, without = seqio_stream.describe(config), {}
  deciding = ("name", "examples", "share", "templates_fingerprint", "records_fingerprint")
  content = [config.settings(), [[task[key] for key in deciding] for task in tasks]]
  return {
    "fingerprint": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    "mixture": config.mixture_name,
    "settings": config.settings(),
    "tasks": tasks,
    "missing": without,
    "windows": [],
  }


def _description(config: StoreConfig, rows: int, data_dir: Path, strict: bool) -> dict[str, Any]:
  """What `describe` says. Where a store that was made without some datasets will do, it is that one: the
  datasets are not asked for again, which takes seconds each, and a run that goes on has the store it had."""
  for path, missing in [] if strict else _with_gaps(config, rows, data_dir):
    with suppress(FlanJaxError):  # the mixture is another by now
      description = describe(config, data_dir, missing=missing)
      if directory_of(description, data_dir) == path:
        _LOG.warning(
          "%s: the store that is there is taken as it is. What is left out is asked for again by `flan-jax "
          "mixtures` and where strict is set.",
          config.mixture_name,
        )
        return description
  return describe(config, data_dir, strict)


def _with_gaps(
  config: StoreConfig, rows: int, data_dir: Path
) -> Iterator[tuple[Path, dict[str, str]]]:
  """The stores of these settings that have enough rows and lack datasets; and those, with the reasons."""
  for path in sorted((data_dir / "stores").glob(f"{glob.escape(config.mixture_name)}-*")):
    with suppress(StorageError):
      about = read_description(path)
      same = about["settings"] == _as_json(config.settings())
      if same and about.get("missing") and _is_enough(path, about, rows):
        yield path, about["missing"]


def _as_json(value: Any) -> Any:
  """What comes back after it is written."""
  return json.loads(json.dumps(value))


def _is_enough(directory: Path, about: Mapping[str, Any], rows: int) -> bool:
  """Whether a store so described has so many rows, every window in its place."""
  windows = about["windows"]
  whole = len(_kept(directory, windows)) == len(windows)
  return whole and sum(window["rows"] for window in windows) >= rows


def _put_right(directory: Path, description: Mapping[str, Any]) -> None:
  """Tells what has changed and decides no row, such as a licence; unless the disk is only for reading."""
  with suppress(OSError, StorageError), one_at_a_time(_lock(directory)):
    windows = read_description(directory)["windows"]
    write_description(directory, {**description, "windows": windows})


def _lock(directory: Path) -> Path:
  return directory.with_name(f".{directory.name}.lock")


def _own_mixture(config: StoreConfig) -> Mixture | None:
  """The mixture of our own datasets; None where it is to be looked for in SeqIO's registries."""
  if isinstance(config.mixture, str) and not is_known(config.mixture):
    return None
  if config.seqio_cache:
    raise ConfigError(
      f"seqio_cache is for SeqIO's tasks, and {config.mixture_name!r} is a mixture of our own datasets: "
      "leave it out."
    )
  return get_mixture(config.mixture) if isinstance(config.mixture, str) else config.mixture


def _open_stream(config: StoreConfig, tasks: Sequence[dict[str, Any]], data_dir: Path) -> Stream:
  """The stream of a store whose tasks are so described."""
  if _own_mixture(config):
    return MixtureStream(config, tasks, data_dir)
  return SeqioStream(config)


def _kept(directory: Path, windows: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
  """Those windows of a store whose files are there, by number."""
  return {n: about for n, about in enumerate(windows) if window_path(directory, n).exists()}


class _Preparation:
  """Makes the windows of one store."""

  def __init__(self, config: StoreConfig, stream: Stream, directory: Path):
    self._config, self._stream, self._directory = config, stream, directory

  def run(
    self, done: dict[int, dict[str, Any]], rows: int, workers: int, progress: bool
  ) -> list[dict[str, Any]]:
    """Adds windows until they have so many rows; returns what `store.json` says about each."""
    _clear_unfinished(self._directory)
    todo = _Todo(done, rows, self._found)
    with results_of(self._make, workers) as results, _bar(rows, progress) as bar:
      bar.update(min(todo.rows, rows))
      for number, about in results(todo):
        before = min(todo.rows, rows)
        todo.finished(number, about)
        bar.update(min(todo.rows, rows) - before)
        bar.set_postfix(examples=todo.examples, refresh=False)
        if todo.rows >= rows:
          break
    # Another number of workers would have run ahead by other windows, and not without gaps.
    wanted = {window_path(self._directory, number) for number in range(todo.windows)}
    for path in set((self._directory / "windows").iterdir()) - wanted:
      path.unlink()
    return [done[number] for number in range(todo.windows)]

  def _found(self, number: int) -> dict[str, Any] | None:
    """What is known of a window that an earlier run finished."""
    path = window_path(self._directory, number)
    if not path.exists():
      return None
    window = Window(path)
    return {"rows": window.rows, "counts": window.counts}

  def _make(self, number: int) -> dict[str, Any]:
    """Takes a window's stretch of the stream, packs and writes it; tells where there is none."""
    config = self._config
    try:
      examples, counts = self._stream.stretch(number * config.window, config.window)
    except StreamEnds as error:  # of no matter unless the windows before are too few
      return {"ends": str(error)}
    shown = {name: asdict(count) for name, count in sorted(counts.items())}
    if not examples:
      raise ConfigError(
        f"not one of {config.window} draws of {config.mixture_name!r} can be used with the lengths "
        f"{dict(config.lengths)}: "
        + "; ".join(f"{name}: {count.dropped}" for name, count in counts.items())
      )
    lengths = [places(example.encoded, config.layout) for example in examples]
    packed = pack(lengths, row_capacities(config.layout, config.lengths))
    order = Draw(config.seed, "order of rows", number).shuffled(len(packed))
    rows = [sorted(packed[i]) for i in order]
    path = window_path(self._directory, number)
    write_window(path, examples, rows, config.vocabulary.size, shown)
    return {"rows": len(rows), "counts": shown}


class _Todo:
  """The numbers of the windows to make, until those that are made without a gap have enough rows."""

  def __init__(
    self,
    done: dict[int, dict[str, Any]],
    rows: int,
    found: Callable[[int], dict[str, Any] | None],
  ):
    self._done, self._needed, self._found = done, rows, found
    self._next = self.windows = self.rows = self.examples = 0
    self._count()

  def finished(self, number: int, about: dict[str, Any]) -> None:
    self._done[number] = about
    self._count()

  def __iter__(self) -> Iterator[int]:
    while self.rows < self._needed:
      number = self._next
      self._next += 1
      if number in self._done:
        continue
      about = self._found(number)
      if about is None:
        yield number
      else:
        self.finished(number, about)

  def _count(self) -> None:
    """Goes on over windows that follow without a gap, and stops at the first that is enough."""
    while self.windows in self._done and self.rows < self._needed:
      about = self._done[self.windows]
      if "ends" in about:
        raise ConfigError(about["ends"])
      self.rows += about["rows"]
      self.examples += sum(count["examples"] for count in about["counts"].values())
      self.windows += 1


def _begin(config: StoreConfig, description: dict[str, Any], directory: Path) -> None:
  config.vocabulary.save(directory / "vocabulary")
  (directory / "windows").mkdir()
  write_description(directory, description)


def _bar(rows: int, progress: bool) -> tqdm:
  return tqdm(total=rows, desc="preparing", unit="row", disable=not progress)


def _clear_unfinished(directory: Path) -> None:
  for path in (directory / "windows").glob(".*.unfinished"):
    path.unlink(missing_ok=True)
