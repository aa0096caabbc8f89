"""Makes a store, or makes one longer: renders, tokenises and packs in several processes.

Windows are finished one by one and kept, so that a run that is stopped goes on where it was; the
result does not depend on how many processes made it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flan_jax.data.atomic import build_once, one_at_a_time
from flan_jax.data.draws import Draws, DrawStream
from flan_jax.data.encode import Dropped, Encoded, Encoder
from flan_jax.data.library import dataset_spec
from flan_jax.data.packing import pack
from flan_jax.data.records import load_records
from flan_jax.data.rendering import DatasetDraws
from flan_jax.data.store import (
  Store,
  StoreConfig,
  TaskCounts,
  directory_of,
  read_description,
  window_path,
  write_description,
)
from flan_jax.data.texts import TextDraws, registered_texts
from flan_jax.data.windows import Drawn, Window, write_window
from flan_jax.data.workers import ForkedWorkers, can_fork, in_child
from flan_jax.errors import ConfigError
from flan_jax.prompting import Draw


def prepare(
  config: StoreConfig,
  rows: int,
  data_dir: Path | str,
  workers: int | None = None,
  progress: bool = True,
) -> Store:
  """The store of these settings with at least so many rows; what is there already is kept.

  Args:
    config: what the store holds.
    rows: steps times rows of a batch.
    data_dir: where records, archives and stores are kept.
    workers: processes; one for each core when None. 1 works in this process. More are forked, for
      which neither JAX nor TensorFlow may be loaded here; with None one is then used.
    progress: show a bar with rate and remaining time.

  Raises:
    ConfigError: nothing of the mixture fits the lengths, or processes cannot be forked.
    StorageError: the disk is full, or a window of the store is torn.
    FlanJaxError: a worker died.
  """
  data_dir = Path(data_dir)
  if workers is None:
    workers = len(os.sched_getaffinity(0)) if can_fork() else 1
  # Reading a TFDS source loads TensorFlow, after which no worker could be forked.
  if workers > 1:
    description = in_child(partial(config.description, data_dir))
  else:
    description = config.description(data_dir)
  directory = build_once(directory_of(description, data_dir), partial(_begin, config, description))
  windows = read_description(directory)["windows"]
  whole = len(_kept(directory, windows)) == len(windows)
  if whole and sum(window["rows"] for window in windows) >= rows:
    return Store.open(directory)  # without a lock: the disk may be one to read from only
  with one_at_a_time(directory.with_name(f".{directory.name}.lock")):
    windows = read_description(directory)["windows"]
    # Rows that were promised before stay promised, also where somebody deleted a torn window.
    rows = max(rows, sum(window["rows"] for window in windows))
    kept = _kept(directory, windows)
    if sum(window["rows"] for window in kept.values()) < rows:
      _check_text(description["tasks"], rows)
      preparation = _Preparation(config, description, directory, data_dir)
      windows = preparation.run(kept, rows, workers, progress)
      write_description(directory, {**description, "windows": windows})
  return Store.open(directory)


def _kept(directory: Path, windows: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
  """Those windows of a store whose files are there, by number."""
  return {n: about for n, about in enumerate(windows) if window_path(directory, n).exists()}


class _Preparation:
  """Renders the windows of one store."""

  def __init__(
    self, config: StoreConfig, description: dict[str, Any], directory: Path, data_dir: Path
  ):
    self._config, self._directory = config, directory
    self._encoder = config.encoder()
    tasks = description["tasks"]
    self._names = [task["name"] for task in tasks]
    sizes = [task["examples"] for task in tasks]
    shares = [task["share"] for task in tasks]
    self._stream = DrawStream(self._names, shares, sizes, config.seed)
    self._draws = [_draws(config, task, self._encoder, data_dir) for task in tasks]
    self._tasks = tasks

  def run(
    self, done: dict[int, dict[str, Any]], rows: int, workers: int, progress: bool
  ) -> list[dict[str, Any]]:
    """Adds windows until they have so many rows; returns what `store.json` says about each."""
    _clear_unfinished(self._directory)
    todo = _Todo(done, rows, self._found)
    with _results(self._make, workers) as results, _bar(rows, progress) as bar:
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
    """Renders, encodes, packs and writes a window."""
    drawn, counts = self._encoded(number)
    shown = {name: asdict(count) for name, count in counts.items()}
    if not drawn:
      raise ConfigError(
        f"not one of {self._config.window} draws of {self._config.mixture_name!r} can be used with "
        f"the lengths {dict(self._config.lengths)}: "
        + "; ".join(f"{name}: {count.dropped}" for name, count in counts.items())
      )
    lengths = [_room(example.encoded, self._config.layout) for example in drawn]
    packed = pack(lengths, self._encoder.capacities)
    order = Draw(self._config.seed, "order of rows", number).shuffled(len(packed))
    rows = [sorted(packed[i]) for i in order]
    path = window_path(self._directory, number)
    write_window(path, drawn, rows, self._config.vocabulary.size, shown)
    return {"rows": len(rows), "counts": shown}

  def _encoded(self, number: int) -> tuple[list[Drawn], dict[str, TaskCounts]]:
    size = self._config.window
    draws = self._stream.draws(number * size, size)
    drawn: list[Drawn] = []
    counts: dict[str, TaskCounts] = {}
    self._check_passes(draws)
    for task, example, epoch in np.stack([draws.task, draws.example, draws.epoch], 1).tolist():
      if epoch >= self._tasks[task].get("passes", epoch + 1):
        encoded: Encoded | Dropped = Dropped("text_is_over")
      else:
        encoded = self._draws[task].encode(self._encoder, example, epoch)
      _count(counts.setdefault(self._names[task], TaskCounts()), encoded, self._config.layout)
      if isinstance(encoded, Encoded):
        drawn.append(Drawn(encoded, task, example, epoch))
    return drawn, dict(sorted(counts.items()))

  def _check_passes(self, draws: Draws) -> None:
    """A window may begin with the last of a text; the next one would have none of it."""
    for number, task in enumerate(self._tasks):
      passes = draws.epoch[draws.task == number]
      if "passes" in task and len(passes) and passes.min() >= task["passes"]:
        raise _text_is_over(task)


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
      self.rows += about["rows"]
      self.examples += sum(count["examples"] for count in about["counts"].values())
      self.windows += 1


def _draws(
  config: StoreConfig, task: dict[str, Any], encoder: Encoder, data_dir: Path
) -> DatasetDraws | TextDraws:
  """What turns the draws of a dataset or text into ids."""
  if text := registered_texts().get(task["name"]):
    return TextDraws(text, encoder, config.seed, data_dir, config.split)
  spec = dataset_spec(task["name"])
  records = load_records(spec, data_dir)[config.split]
  return DatasetDraws(
    spec, records, task["examples"], config.seed, config.renderings, config.few_shot
  )


def _check_text(tasks: Sequence[dict[str, Any]], rows: int) -> None:
  """A row takes at least one draw: told before anything is made."""
  for task in tasks:
    if "passes" in task and rows * task["share"] > task["examples"] * task["passes"]:
      raise _text_is_over(task, f", and {rows:,} rows want {int(rows * task['share']):,} of them")


def _text_is_over(task: dict[str, Any], wanted: str = "") -> ConfigError:
  stretches = f"{task['examples']:,} stretches of text for each of {task['passes']} passes"
  return ConfigError(
    f"the text {task['name']!r} is too short for this run: it has {stretches}{wanted}. Make fewer steps or "
    "smaller batches, add datasets to it, or allow more passes in its register_text."
  )


def _begin(config: StoreConfig, description: dict[str, Any], directory: Path) -> None:
  config.vocabulary.save(directory / "vocabulary")
  (directory / "windows").mkdir()
  write_description(directory, description)


@contextmanager
def _results(
  make: Callable[[int], dict[str, Any]], workers: int
) -> Iterator[Callable[[Iterable[int]], Iterator[tuple[int, dict[str, Any]]]]]:
  """How to get results for numbers: in this process, or in others that end on leaving."""
  if workers <= 1:
    yield lambda numbers: ((number, make(number)) for number in numbers)
    return
  with ForkedWorkers(make, workers) as forked:
    yield forked.results


def _bar(rows: int, progress: bool) -> tqdm:
  return tqdm(total=rows, desc="preparing", unit="row", disable=not progress)


def _count(counts: TaskCounts, encoded: Encoded | Dropped, layout: str) -> None:
  if isinstance(encoded, Dropped):
    counts.dropped[encoded.reason] = counts.dropped.get(encoded.reason, 0) + 1
    return
  counts.examples += 1
  counts.tokens += sum(_room(encoded, layout))
  counts.loss_tokens += sum(end - start for start, end in encoded.spans)
  counts.shortened += encoded.shortened
  counts.shots_dropped += encoded.shots_dropped


def _room(encoded: Encoded, layout: str) -> tuple[int, ...]:
  """The places that an example takes in each dimension of a row."""
  if layout == "decoder":
    return (len(encoded.targets) - 1,)
  return (len(encoded.inputs), len(encoded.targets))


def _clear_unfinished(directory: Path) -> None:
  for path in (directory / "windows").glob(".*.unfinished"):
    path.unlink(missing_ok=True)
