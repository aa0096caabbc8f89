"""The prepared store: everything that training reads, on disk, with no TensorFlow needed to read it.

    <data_dir>/stores/<mixture>-<fingerprint>/
      store.json          settings, tasks, format, and the windows that belong to the store
      vocabulary/         what `load_vocabulary` reads
      windows/000000.safetensors ...

A store can be copied to a machine that has neither the sources nor SeqIO and trained from there, or
read where it is ("gs://..."), through copies on the local disk.
`flan_jax.data.prepare` makes it.
"""

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flan_jax.data.atomic import write_whole
from flan_jax.data.encode import Dropped, Encoded, Encoder, Layout, places
from flan_jax.data.home import data_home
from flan_jax.data.mirror import RemoteFolder, is_remote
from flan_jax.data.mixtures import Mixture
from flan_jax.data.windows import Provenance, StoredExample, Window
from flan_jax.errors import ConfigError, StorageError, UnknownName
from flan_jax.vocabularies import (
  Format,
  Vocabulary,
  format_from_dict,
  load_vocabulary,
)

ENCODING_VERSION = 3
"""Part of every fingerprint; raised whenever the same settings come to give other rows, or the same
rows in windows of another layout."""

_DESCRIPTION = "store.json"
_OPEN_WINDOWS = 8


@dataclass(frozen=True)
class StoreConfig:
  """What decides the content of a store.

  Attributes:
    mixture: a mixture of our own datasets, or its name; else the name of a SeqIO task or mixture.
    vocabulary: text to ids.
    format: plain, or a chat template.
    layout: "encoder_decoder" or "decoder".
    lengths: {"inputs": I, "targets": T}, the tokens of a row; a decoder's rows hold I + T.
    seed: of the order, the templates, the options and the exemplars.
    renderings: R: an example is put into words in R ways, which later epochs go through again.
    few_shot: exemplars before a query.
    few_shot_share: of the queries so many have them, the others none.
    template_choice: "seeded", or "round_robin" where all templates are to be drawn equally often.
    templates_per_dataset: only so many templates of a dataset are drawn, a choice by the seed that grows with the
      number; shares stay as with all of them. None: all.
    options: of datasets whose answer is one of some choices, draw only templates that show them ("shown") or
      only those that do not ("hidden"); "any": all.
    window: draws that are packed together; rows never mix windows.
    loss_on: "targets", or "everything" for a decoder that is to learn the prompts too.
    split: whose examples are trained on; datasets of a mixture that lack it are left out.
    shuffle: draw the examples of a dataset in a new order each pass.
    seqio_cache: folders in which SeqIO's cache job has left its tasks; they are then read from there.
  """

  mixture: str | Mixture
  vocabulary: Vocabulary
  format: Format
  layout: Layout
  lengths: Mapping[str, int] = field(default_factory=lambda: {"inputs": 1024, "targets": 256})
  seed: int = 0
  renderings: int = 4
  few_shot: int = 0
  few_shot_share: float = 1.0
  template_choice: Literal["seeded", "round_robin"] = "seeded"
  templates_per_dataset: int | None = None
  options: Literal["any", "shown", "hidden"] = "any"
  window: int = 1024
  loss_on: Literal["targets", "everything"] = "targets"
  split: str = "train"
  shuffle: bool = True
  seqio_cache: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    for name, least in (("renderings", 1), ("few_shot", 0), ("window", 1)):
      if getattr(self, name) < least:
        raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
    if not 0 < self.few_shot_share <= 1:
      raise ConfigError(
        f"few_shot_share is {self.few_shot_share}; it must be above 0 and at most 1."
      )
    if self.few_shot_share < 1 and not self.few_shot:
      raise ConfigError(
        "few_shot_share says which queries have exemplars, and few_shot=0 that none has."
      )
    if self.template_choice not in ("seeded", "round_robin"):
      raise UnknownName("template_choice", self.template_choice, ("seeded", "round_robin"))
    if self.templates_per_dataset is not None and self.templates_per_dataset < 1:
      raise ConfigError(
        f"templates_per_dataset is {self.templates_per_dataset}; it must be at least 1, or None."
      )
    if self.options not in ("any", "shown", "hidden"):
      raise UnknownName("options", self.options, ("any", "shown", "hidden"))
    self.encoder()

  @property
  def mixture_name(self) -> str:
    return self.mixture if isinstance(self.mixture, str) else self.mixture.name

  def encoder(self) -> Encoder:
    """What turns this store's renderings into ids, and evaluation's into the same."""
    return Encoder(self.vocabulary, self.format, self.layout, self.lengths, self.loss_on)

  def settings(self) -> dict[str, Any]:
    """The settings that are not datasets, as JSON; what was added later only where it is set."""
    chosen = {"templates_per_dataset": self.templates_per_dataset, "options": self.options}
    return {
      **{name: value for name, value in chosen.items() if value not in (None, "any")},
      "encoding_version": ENCODING_VERSION,
      "vocabulary": self.vocabulary.fingerprint,
      "format": self.format.as_dict(),
      "layout": self.layout,
      "lengths": dict(self.lengths),
      "seed": self.seed,
      "renderings": self.renderings,
      "few_shot": self.few_shot,
      "few_shot_share": self.few_shot_share,
      "template_choice": self.template_choice,
      "window": self.window,
      "loss_on": self.loss_on,
      "split": self.split,
      "shuffle": self.shuffle,
      "seqio_cache": bool(self.seqio_cache),
    }


@dataclass(frozen=True)
class StoreTask:
  """A dataset of a store, as it was when the store was made.

  Attributes:
    name, cluster, licence, citation: of the dataset.
    examples: training examples used.
    share: of the draws.
    templates: names of the templates drawn; of a raw text its objective, of a SeqIO task nothing.
  """

  name: str
  cluster: str
  licence: str
  citation: str
  examples: int
  share: float
  templates: tuple[str, ...]


@dataclass
class TaskCounts:
  """What became of a dataset's draws.

  Attributes:
    examples: stored.
    tokens: the places that they take in rows.
    loss_tokens: those among them that the loss is taken on.
    shortened: the long field was cut.
    shots_dropped: few-shot exemplars that did not fit, in all.
    dropped: draws that were left out, by reason.
  """

  examples: int = 0
  tokens: int = 0
  loss_tokens: int = 0
  shortened: int = 0
  shots_dropped: int = 0
  dropped: dict[str, int] = field(default_factory=dict)

  def count(self, encoded: Encoded | Dropped, layout: str) -> None:
    """Takes in one draw."""
    if isinstance(encoded, Dropped):
      self.dropped[encoded.reason] = self.dropped.get(encoded.reason, 0) + 1
      return
    self.examples += 1
    self.tokens += sum(places(encoded, layout))
    self.loss_tokens += sum(end - start for start, end in encoded.spans)
    self.shortened += encoded.shortened
    self.shots_dropped += encoded.shots_dropped

  def add(self, other: "TaskCounts") -> None:
    self.examples += other.examples
    self.tokens += other.tokens
    self.loss_tokens += other.loss_tokens
    self.shortened += other.shortened
    self.shots_dropped += other.shots_dropped
    for reason, count in other.dropped.items():
      self.dropped[reason] = self.dropped.get(reason, 0) + count


class Store:
  """A prepared store, opened for reading.

  Args:
    directory: where it is.
    remote: the folder that it is a copy of; windows are then copied when a row of them is asked for.

  Attributes:
    directory: where it is.
    fingerprint: of everything that decides its content.
    layout, lengths: of its rows.
    tasks: its datasets; `task_ids` of a batch are places in this tuple.
    missing: datasets of its mixture that could not be had when it was made, and why.
  """

  def __init__(self, directory: Path | str, remote: RemoteFolder | None = None):
    self.directory, self._remote = Path(directory), remote
    about = read_description(self.directory)
    self.fingerprint: str = about["fingerprint"]
    self.mixture: str = about["mixture"]
    self.settings: dict[str, Any] = about["settings"]
    if (version := self.settings.get("encoding_version")) != ENCODING_VERSION:
      raise StorageError(
        f"{self.directory} was made by another version of flan-jax, whose stores are laid out otherwise "
        f"({version}, not {ENCODING_VERSION}): prepare it again."
      )
    self.layout: Layout = self.settings["layout"]
    self.lengths: dict[str, int] = self.settings["lengths"]
    self.tasks = tuple(_task(entry) for entry in about["tasks"])
    self.missing: dict[str, str] = about.get("missing", {})
    self._windows: list[dict[str, Any]] = about["windows"]
    self._ends = np.cumsum([window["rows"] for window in self._windows], dtype=np.int64).tolist()
    self._open: OrderedDict[int, Window] = OrderedDict()
    self._lock = threading.Lock()

  @classmethod
  def open(cls, place: Path | str, cache_dir: Path | str | None = None) -> "Store":
    """The store in a directory, or at a URL.

    Args:
      cache_dir: copies from a URL are kept in `cache_dir/mirrors`; None: the data home.

    Raises:
      StorageError: none is there, or its description is torn.
      NetworkError, ConfigError: the URL cannot be read.
    """
    if not is_remote(place):
      return cls(place)
    remote = RemoteFolder(str(place))
    description = remote.read(_DESCRIPTION)
    # Named by what it holds: another store at the same URL has other windows.
    name = _parsed(description, f"{remote.url}/{_DESCRIPTION}")["fingerprint"][:16]
    directory = Path(cache_dir or data_home()) / "mirrors" / name
    write_whole(directory / _DESCRIPTION, description)
    for file in remote.names("vocabulary"):
      remote.copied(file, directory)
    return cls(directory, remote)

  @property
  def rows(self) -> int:
    """Rows that are ready."""
    return self._ends[-1] if self._ends else 0

  def row(self, index: int) -> list[StoredExample]:
    """The examples of a row, found without reading what is before it.

    Raises:
      StorageError: the row is not prepared, or its window is torn.
    """
    if not 0 <= index < self.rows:
      raise StorageError(
        f"row {index} is not in {self.directory}, which has {self.rows}: prepare more rows."
      )
    number = bisect_right(self._ends, index)
    return self._window(number).row(index - self._begin(number))

  def provenance(self, index: int) -> list[Provenance]:
    """Where the examples of a row come from, in their order.

    Raises:
      StorageError: see `row`.
    """
    return [self._provenance(example) for example in self.row(index)]

  def rows_of(self, dataset: str, example: int | None = None) -> Iterator[int]:
    """The rows that hold examples of a dataset, text or SeqIO task, or one of its examples.

    Args:
      dataset: its name.
      example: see `Provenance.index`.

    Raises:
      UnknownName: the store has nothing of that name.
    """
    names = [task.name for task in self.tasks]
    if dataset not in names:
      raise UnknownName("dataset", dataset, names, f"They are those of the store {self.directory}.")
    for number in range(len(self._windows)):
      rows = self._window(number).rows_of(names.index(dataset), example)
      yield from (self._begin(number) + row for row in rows)

  def texts(self, example: StoredExample) -> tuple[str, str]:
    """What a model reads and what it is to write, in words; control tokens are left out."""
    ids = (example.inputs, example.targets)
    if self.layout == "decoder":
      ids = (example.targets[: example.prefix], example.targets[example.prefix :])
    read, written = [self.vocabulary.decode(part.tolist()) for part in ids]
    return read, written

  @cached_property
  def vocabulary(self) -> Vocabulary:
    """The vocabulary that it was made with."""
    return load_vocabulary(self.directory / "vocabulary")

  @cached_property
  def format(self) -> Format:
    """The format that it was made with, for evaluation to obey."""
    return format_from_dict(self.settings["format"])

  def encoder(self) -> Encoder:
    """What turned its renderings into ids."""
    return Encoder(
      self.vocabulary, self.format, self.layout, self.lengths, self.settings["loss_on"]
    )

  def counts(self) -> dict[str, TaskCounts]:
    """What became of the draws of each dataset, over all its windows."""
    totals = {task.name: TaskCounts() for task in self.tasks}
    for window in self._windows:
      for name, counts in window["counts"].items():
        totals[name].add(TaskCounts(**counts))
    return totals

  def _provenance(self, example: StoredExample) -> Provenance:
    task = self.tasks[example.task]
    return Provenance(
      dataset=task.name,
      split=self.settings["split"],
      index=example.example,
      epoch=example.epoch,
      template=task.templates[example.template] if task.templates else "",
      style=example.style,
      seed=self.settings["seed"],
      exemplars=example.exemplars,
    )

  def _begin(self, number: int) -> int:
    """The first row of a window."""
    return self._ends[number - 1] if number else 0

  def _window(self, number: int) -> Window:
    with self._lock:
      if number not in self._open:
        path = window_path(self.directory, number)
        if self._remote is not None:
          self._remote.copied(str(path.relative_to(self.directory)), self.directory)
        self._open[number] = Window(path)
        if len(self._open) > _OPEN_WINDOWS:
          self._open.popitem(last=False)
      self._open.move_to_end(number)
      return self._open[number]


def directory_of(description: Mapping[str, Any], data_dir: Path | str) -> Path:
  """Where a store so described belongs."""
  name = f"{description['mixture']}-{description['fingerprint'][:16]}"
  return Path(data_dir) / "stores" / name


def window_path(directory: Path, number: int) -> Path:
  """The file of a window."""
  return directory / "windows" / f"{number:06d}.safetensors"


def read_description(directory: Path) -> dict[str, Any]:
  """What `store.json` says.

  Raises:
    StorageError: it is missing or torn.
  """
  path = directory / _DESCRIPTION
  try:
    return _parsed(path.read_bytes(), str(path))
  except FileNotFoundError:
    raise StorageError(
      f"{directory} holds no prepared store: `flan-jax prepare` makes one."
    ) from None


def write_description(directory: Path, description: Mapping[str, Any]) -> None:
  """Writes `store.json`, whole or not at all."""
  write_whole(directory / _DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())


def _parsed(description: bytes, place: str) -> dict[str, Any]:
  try:
    about = json.loads(description)
    if missing := {"fingerprint", "mixture", "settings", "tasks", "windows"} - about.keys():
      raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return about
  except (ValueError, AttributeError) as error:
    raise StorageError(
      f"{place} is torn, or describes no store ({error}): delete its folder and prepare it again."
    ) from None


def _task(entry: Mapping[str, Any]) -> StoreTask:
  names = ("name", "cluster", "licence", "citation", "examples", "share")
  return StoreTask(**{name: entry[name] for name in names}, templates=tuple(entry["templates"]))
