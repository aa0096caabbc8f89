"""One window of a store: encoded examples and the rows they are packed into, in one safetensors file.

Tensors (n examples, r rows):
    inputs, targets                tokens of all examples, one after the other (uint16 or uint32)
    input_offsets, target_offsets  [n + 1] where each example begins in them
    spans, span_offsets            [., 2] and [n + 1] stretches of targets that the loss is taken on
    prefix                         [n] how many of its first targets a decoder may read in both directions
    task, example, epoch           [n] which draw an example is
    template, style                [n] in which words: places in the task's templates and in `_STYLES`
    exemplars, exemplar_offsets    [.] and [n + 1] the examples that stand before it as few-shot exemplars
    row_examples, row_offsets      [n] and [r + 1] the examples of each row
The header's metadata holds a digest of the tensors and what was counted on the way.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int
from safetensors.numpy import save

from flan_jax.data.atomic import write_whole
from flan_jax.data.encode import Encoded
from flan_jax.errors import StorageError
from flan_jax.prompting import STYLES

_STYLES = ("none", *STYLES)
_DTYPES = {"U16": np.uint16, "U32": np.uint32, "I32": np.int32, "I64": np.int64}


@dataclass(frozen=True)
class StoredExample:
  """One encoded draw.

  Attributes:
    inputs: what an encoder reads; empty for a decoder.
    targets: what the decoder is to write; for a decoder the whole text.
    weights: how much the loss on each token of `targets` counts, before normalisation.
    task: index of the dataset in `Store.tasks`.
    example: index of the example in the dataset's records; of a SeqIO task, its place in the stream.
    epoch: the dataset's epoch.
    prefix: how many of the first `targets` stand before anything that is to be written.
    template: index of the template in `StoreTask.templates`; of a SeqIO task, which has none, 0.
    style: how the options are shown: "list", "letters", "inline" or "none".
    exemplars: indices of the few-shot exemplars in the dataset's records, in the order they are read.
  """

  inputs: Int[np.ndarray, "inputs"]
  targets: Int[np.ndarray, "targets"]
  weights: Float32[np.ndarray, "targets"]
  task: int = 0
  example: int = 0
  epoch: int = 0
  prefix: int = 0
  template: int = 0
  style: str = "none"
  exemplars: tuple[int, ...] = ()


@dataclass(frozen=True)
class Provenance:
  """Where an example comes from: what it takes to make it again from the sources.

  Attributes:
    dataset: the dataset; or the raw text, or the SeqIO task.
    split: of the dataset.
    index: of the record in `load_records(dataset_spec(dataset))[split]`; of a raw text the number of
      the stretch, of a SeqIO task the place in its stream.
    epoch: how often the dataset was gone through before.
    template: its name; of a raw text the objective, of a SeqIO task "".
    style: how the options are shown: "list", "letters", "inline" or "none".
    seed: of the run.
    exemplars: indices of the few-shot exemplars, in the order they are read.
  """

  dataset: str
  split: str
  index: int
  epoch: int
  template: str
  style: str
  seed: int
  exemplars: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drawn:
  """An encoded example, which draw it is, and in which words; see `StoredExample`."""

  encoded: Encoded
  task: int
  example: int
  epoch: int
  template: int = 0


class Window:
  """A window file, mapped into memory.

  Args:
    path: the file.

  Raises:
    StorageError: the file is missing, cut short or altered.
  """

  def __init__(self, path: Path):
    self.path = path
    try:
      self._arrays, about = _mapped(path)
      if about["digest"] != _digest(self._arrays):
        raise ValueError("its content does not match its digest")
      self.rows = len(self._arrays["row_offsets"]) - 1
      self.counts: dict[str, Any] = about["counts"]
    except FileNotFoundError:
      raise StorageError(f"{path} is missing: prepare the store again.") from None
    except (ValueError, KeyError, TypeError) as error:
      raise StorageError(
        f"{path} is torn ({error}): delete it and prepare the store again, the other windows are kept."
      ) from None

  def row(self, index: int) -> list[StoredExample]:
    """The examples of a row."""
    first, last = self._arrays["row_offsets"][index : index + 2]
    return [self.example(int(i)) for i in self._arrays["row_examples"][first:last]]

  def example(self, index: int) -> StoredExample:
    """An example by its place in the window."""
    arrays = self._arrays
    targets = self._part("targets", "target_offsets", index)
    weights = np.zeros(len(targets), np.float32)
    for start, end in self._part("spans", "span_offsets", index):
      weights[start:end] = 1
    return StoredExample(
      self._part("inputs", "input_offsets", index),
      targets,
      weights,
      int(arrays["task"][index]),
      int(arrays["example"][index]),
      int(arrays["epoch"][index]),
      int(arrays["prefix"][index]),
      int(arrays["template"][index]),
      _STYLES[arrays["style"][index]],
      tuple(self._part("exemplars", "exemplar_offsets", index).tolist()),
    )

  def rows_of(self, task: int, example: int | None = None) -> list[int]:
    """The rows that hold examples of a task, or one of its examples, in their order."""
    arrays = self._arrays
    wanted = arrays["task"] == task
    if example is not None:
      wanted = wanted & (arrays["example"] == example)
    places = np.flatnonzero(wanted[arrays["row_examples"]])
    rows = np.searchsorted(arrays["row_offsets"], places, side="right") - 1
    return np.unique(rows).tolist()

  def _part(self, values: str, offsets: str, index: int) -> np.ndarray:
    start, end = self._arrays[offsets][index : index + 2]
    return self._arrays[values][start:end]


def write_window(
  path: Path,
  examples: Sequence[Drawn],
  rows: Sequence[Sequence[int]],
  vocabulary_size: int,
  counts: Mapping[str, Any],
) -> None:
  """Writes a window file, whole or not at all.

  Raises:
    StorageError: the disk refused.
  """
  tokens = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
  encoded = [drawn.encoded for drawn in examples]
  spans = [np.asarray(e.spans, np.int32).reshape(-1, 2) for e in encoded]
  arrays = {
    "inputs": _joined([e.inputs for e in encoded], tokens),
    "input_offsets": _offsets([len(e.inputs) for e in encoded]),
    "targets": _joined([e.targets for e in encoded], tokens),
    "target_offsets": _offsets([len(e.targets) for e in encoded]),
    "spans": np.concatenate([np.empty((0, 2), np.int32), *spans]),
    "span_offsets": _offsets([len(e.spans) for e in encoded]),
    "prefix": np.array([e.prefix for e in encoded], np.int32),
    "task": np.array([drawn.task for drawn in examples], np.int32),
    "example": np.array([drawn.example for drawn in examples], np.int32),
    "epoch": np.array([drawn.epoch for drawn in examples], np.int32),
    "template": np.array([drawn.template for drawn in examples], np.int32),
    "style": np.array([_STYLES.index(e.style) for e in encoded], np.int32),
    "exemplars": np.array([i for e in encoded for i in e.exemplars], np.int32),
    "exemplar_offsets": _offsets([len(e.exemplars) for e in encoded]),
    "row_examples": np.array([i for row in rows for i in row], np.int32),
    "row_offsets": _offsets([len(row) for row in rows]),
  }
  # One entry, because safetensors writes several in a random order.
  about = json.dumps({"digest": _digest(arrays), "counts": counts})
  write_whole(path, save(arrays, {"about": about}))


def _mapped(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The tensors of a window file as views of the mapped file, and what is said about them."""
  if path.stat().st_size < 8:
    raise ValueError(f"{path.stat().st_size} bytes")
  file = np.memmap(path, np.uint8, mode="r")
  body = 8 + int.from_bytes(file[:8].tobytes(), "little")
  header = json.loads(file[8:body].tobytes())
  about = json.loads(header.pop("__metadata__")["about"])
  arrays = {}
  for name, tensor in header.items():
    start, end = tensor["data_offsets"]
    if body + end > len(file):
      raise ValueError(f"{len(file)} bytes of {body + end}")
    flat = file[body + start : body + end].view(_DTYPES[tensor["dtype"]])
    arrays[name] = np.asarray(flat).reshape(tensor["shape"])
  return arrays, about


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  digest = blake2b(digest_size=16)
  for name in sorted(arrays):
    digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
    digest.update(np.ascontiguousarray(arrays[name]).data)
  return digest.hexdigest()


def _joined(parts: Sequence[np.ndarray], dtype: type[np.unsignedinteger]) -> np.ndarray:
  return np.concatenate([np.empty(0, dtype), *(part.astype(dtype) for part in parts)])


def _offsets(lengths: Sequence[int]) -> Int[np.ndarray, "parts"]:
  return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
