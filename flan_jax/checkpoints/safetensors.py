"""Safetensors files: read with `pread`, tensor by tensor, and written in shards.

A file is eight bytes (the length of the header), the header in JSON, and the tensors' bytes:
{"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}.
A folder holds `model.safetensors`, or shards and `model.safetensors.index.json` that names them.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flan_jax.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30

_DTYPES: dict[str, Any] = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class StoredTensor(NamedTuple):
  """Where a tensor lies."""

  file: Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int

  def read(self) -> np.ndarray:
    """Its content, and nothing else of the file."""
    array = np.empty(self.shape, self.dtype)
    rest = _bytes_of(array)
    descriptor, offset = os.open(self.file, os.O_RDONLY), self.offset
    try:
      while rest:
        count = os.preadv(descriptor, [rest], offset)
        if not count:
          raise CheckpointError(f"{self.file} ends within a tensor; fetch it again.")
        rest, offset = rest[count:], offset + count
    finally:
      os.close(descriptor)
    return array


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
  """Every tensor of a folder, by name. Headers alone are read.

  Raises:
    CheckpointError: the folder has no safetensors, a shard is missing or torn, or a tensor is not where
      the index says.
  """
  if not (folder / INDEX).is_file():
    if not (folder / SINGLE).is_file():
      raise CheckpointError(_absent(folder))
    return tensors_of(folder / SINGLE)
  try:
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    files = sorted(set(where.values()))
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise CheckpointError(f"{folder / INDEX} is no index of safetensors ({error}).") from None
  missing = [name for name in files if not (folder / name).is_file()]
  if missing:
    raise CheckpointError(
      f"{folder / INDEX} names {len(missing)} of {len(files)} files that are not there: "
      f"{', '.join(missing)}. Fetch them too."
    )
  found: dict[str, StoredTensor] = {}
  for name in files:
    found |= tensors_of(folder / name)
  lost = [
    name for name, file in where.items() if name not in found or found[name].file.name != file
  ]
  if lost:
    raise CheckpointError(
      f"{folder / INDEX} names tensors that its files do not hold: {', '.join(sorted(lost)[:5])}."
    )
  return found


def write_tensors(
  folder: Path,
  tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  read: Callable[[str], np.ndarray],
  shard_bytes: int = SHARD_BYTES,
) -> Iterator[str]:
  """Writes safetensors into a folder, one tensor at a time; yields each name once it is written.

  Args:
    tensors: shape and dtype by name.
    read: gives the tensor of a name.
    shard_bytes: largest file, a single larger tensor aside.
  """
  shards = _shards(tensors, shard_bytes)
  files = [SINGLE]
  if len(shards) > 1:
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, 1 + len(shards))]
  for file, names in zip(files, shards, strict=True):
    yield from write_file(folder / file, {name: tensors[name] for name in names}, read)
  if len(shards) > 1:
    where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    total = sum(_bytes(*each) for each in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_file(
  file: Path,
  tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  read: Callable[[str], np.ndarray],
) -> Iterator[str]:
  """Writes one file; see `write_tensors`."""
  with file.open("wb") as out:
    out.write(_header(tensors))
    for name, (shape, dtype) in tensors.items():
      array = np.ascontiguousarray(read(name), dtype)
      assert array.shape == shape, (name, array.shape, shape)
      out.write(_bytes_of(array))
      yield name


def tensors_of(file: Path) -> dict[str, StoredTensor]:
  """Every tensor of one file, by name.

  Raises:
    CheckpointError: it is torn.
  """
  size = file.stat().st_size
  try:
    with file.open("rb") as opened:
      (length,) = struct.unpack("<Q", opened.read(8))
      if length > size - 8:
        raise ValueError("its header is longer than the file")
      header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    tensors = {name: _stored(file, 8 + length, about) for name, about in header.items()}
    ends = [8 + length + about["data_offsets"][1] for about in header.values()]
  except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
    raise CheckpointError(
      f"{file} is torn or no safetensors file ({error}); fetch it again."
    ) from None
  if max(ends, default=size) != size:
    raise CheckpointError(
      f"{file} is torn: its header speaks of {max(ends):,} bytes, and it has {size:,}; fetch it again."
    )
  return tensors


def _stored(file: Path, start: int, about: Mapping[str, Any]) -> StoredTensor:
  if about["dtype"] not in _DTYPES:
    raise ValueError(f"tensors of type {about['dtype']} are not read")
  dtype, shape = np.dtype(_DTYPES[about["dtype"]]), tuple(about["shape"])
  begin, end = about["data_offsets"]
  if end - begin != _bytes(shape, dtype):
    raise ValueError(f"a tensor of shape {shape} and type {about['dtype']} has {end - begin} bytes")
  return StoredTensor(file, dtype, shape, start + begin)


def _header(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> bytes:
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, (shape, dtype) in tensors.items():
    end = offset + _bytes(shape, dtype)
    header[name] = {
      "dtype": _NAMES[np.dtype(dtype)],
      "shape": list(shape),
      "data_offsets": [offset, end],
    }
    offset = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # so that tensors are aligned
  return struct.pack("<Q", len(text)) + text


def _shards(
  tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], at_most: int
) -> list[Sequence[str]]:
  shards: list[list[str]] = [[]]
  held = 0
  for name, (shape, dtype) in tensors.items():
    size = _bytes(shape, dtype)
    if shards[-1] and held + size > at_most:
      shards.append([])
      held = 0
    shards[-1].append(name)
    held += size
  return [*shards]


def _bytes_of(array: np.ndarray) -> memoryview:
  return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  return math.prod(shape) * np.dtype(dtype).itemsize


def _absent(folder: Path) -> str:
  pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
  if pickles:
    return (
      f"{folder} holds pickles ({pickles[0].name}), which run whatever code they carry when they are opened, "
      'and are not read. Where you trust it, write it anew: python -c "from transformers import '
      f"AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\" "
      "(AutoModelForSeq2SeqLM for an encoder-decoder)."
    )
  return f"{folder} holds neither {SINGLE} nor {INDEX}."
