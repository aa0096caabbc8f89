"""One window of a store: encoded examples and the rows they are packed into, in one safetensors file.

Tensors (n examples, r rows):
    inputs, targets                tokens of all examples, one after the other (uint16 or uint32)
    input_offsets, target_offsets  [n + 1] where each example begins in them
    spans, span_offsets            [., 2] and [n + 1] stretches of targets that the loss is taken on
    prefix                         [n] how many of its first targets a decoder may read in both directions
    task, example, epoch           [n] which draw an example is
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
  """

  inputs: Int[np.ndarray, "inputs"]
  targets: Int[np.ndarray, "targets"]
  weights: Float32[np.ndarray, "targets"]
  task: int = 0
  example: int = 0
  epoch: int = 0
  prefix: int = 0


@dataclass(frozen=True)
class Drawn:
  """An encoded example and which draw it is."""

  encoded: Encoded
  task: int
  example: int
  epoch: int


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
    )

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
