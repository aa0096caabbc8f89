"""The arrays of one saved step, by name: written, compared, read back, digested."""

import contextlib
import functools
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flan_jax.errors import CheckpointError

PyTree = Any
State = Mapping[str, PyTree]

META = "meta"

_READ_AT_ONCE = 256 * 2**20  # bytes of arrays that a digest holds in memory


def compare(folder: Path, abstract: State) -> None:
  """Raises CheckpointError with every array that is not as the run wants it; the optimizer's alone are counted."""
  differences: dict[str, list[str]] = {}
  for part, tree in abstract.items():
    if not (folder / part).is_dir():
      raise CheckpointError(
        f"checkpoint {folder} keeps no {part}: it was saved under other settings; go on with those, or "
        "begin in another directory"
      )
    ours, theirs = named(tree), saved_arrays(folder / part)
    for name in sorted(ours.keys() | theirs.keys()):
      wanted, found = _signature(ours.get(name)), _signature(theirs.get(name))
      if wanted != found:
        line = f"  {part}/{name}: ours {wanted}, the checkpoint's {found}"
        differences.setdefault(part, []).append(line)
  if differences.keys() == {"optimizer"}:
    raise CheckpointError(
      f"checkpoint {folder} was saved with another optimizer, or with other parameters frozen: "
      f"{len(differences['optimizer'])} arrays of its state differ. Go on with the one that the run was begun with, or "
      "begin in another directory."
    )
  if differences:
    lines = [line for those in differences.values() for line in those]
    raise CheckpointError(
      f"checkpoint {folder} is of another model; {len(lines)} arrays differ:\n" + "\n".join(lines)
    )


def saved_arrays(folder: Path) -> dict[str, Any]:
  """Shape and dtype of every array in a part of a checkpoint, by name; none where it has no such part."""
  if not folder.is_dir():
    return {}
  with _reader() as reader:
    return named(reader.metadata(folder).item_metadata.tree)


def read_part(folder: Path, abstract: PyTree) -> PyTree:
  """Arrays laid out as `abstract` says, in its structure."""
  targets = named(abstract)
  arguments = {
    name: ocp.ArrayRestoreArgs(
      sharding=getattr(leaf, "sharding", None), global_shape=leaf.shape, dtype=leaf.dtype
    )
    if getattr(leaf, "sharding", None) is not None
    else ocp.RestoreArgs(restore_type=np.ndarray)
    for name, leaf in targets.items()
  }
  with _reader() as reader:
    restored = reader.restore(
      folder, args=ocp.args.PyTreeRestore(nested(targets), restore_args=nested(arguments))
    )
  found = named(restored)
  return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in targets])


def read_meta(folder: Path) -> dict:
  with quiet(), contextlib.closing(ocp.Checkpointer(ocp.JsonCheckpointHandler())) as reader:
    return reader.restore(folder / META, args=ocp.args.JsonRestore())


def digest_of(folder: Path) -> str:
  parts = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != META)
  digest = hashlib.sha256()
  for part in parts:
    for name, array in _arrays(folder / part):
      digest.update(f"{part}/{name} {_signature(array)}\n".encode())
      digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
  return digest.hexdigest()


def named(tree: PyTree) -> dict[str, Any]:
  """The leaves of a tree by path, such as "layers/mlp/up/kernel" or "1/mu/embed/embedding"."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    keys = (str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    found["/".join(key.replace("/", "|") for key in keys)] = leaf
  return found


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *above, last = name.split("/")
    folder = tree
    for key in above:
      folder = folder.setdefault(key, {})
    folder[last] = leaf
  return tree


@functools.cache
def ignore_late_writes() -> None:
  """Lets the writes that outlive a failed one end in silence.

  TensorStore tells each of them to the event loop that waited for all; closed by the first failure,
  it raises, once for every array, where nobody can catch it.
  """
  otherwise = sys.unraisablehook

  def hook(unraisable):
    error = unraisable.exc_value
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
      otherwise(unraisable)

  sys.unraisablehook = hook


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Orbax warns of options that reading implies, and of metadata that parts do not have."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _signature(leaf: Any) -> str:
  if leaf is None:
    return "missing"
  return f"{np.dtype(leaf.dtype).name}[{', '.join(map(str, leaf.shape))}]"


def _arrays(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
  """Every array of a part on the host, by name in order, some at a time."""
  waiting: dict[str, Any] = {}
  size = 0
  saved = sorted(saved_arrays(folder).items())
  for position, (name, leaf) in enumerate(saved):
    waiting[name] = leaf
    size += int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    if size < _READ_AT_ONCE and position + 1 < len(saved):
      continue
    arguments = dict.fromkeys(waiting, ocp.RestoreArgs(restore_type=np.ndarray))
    with _reader() as reader:
      read = named(
        reader.restore(
          folder,
          args=ocp.args.PyTreeRestore(
            nested(waiting), restore_args=nested(arguments), partial_restore=True
          ),
        )
      )
    yield from sorted(read.items())
    waiting, size = {}, 0


@contextlib.contextmanager
def _reader() -> Iterator[ocp.Checkpointer]:
  with quiet(), contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
    yield reader
