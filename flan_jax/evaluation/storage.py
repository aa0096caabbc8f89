"""Files that are whole or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from flan_jax.errors import StorageError


def write_atomically(path: Path, texts: Iterable[str]) -> None:
  """Write the texts one after the other to a file beside `path`, then put it in its place.

  Raises:
    StorageError: the disk refused; `path` is as it was.
  """
  unfinished: str | None = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
      file.writelines(texts)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(unfinished, 0o644)
    os.replace(unfinished, path)
  except OSError as error:
    raise StorageError(
      f"cannot write {path}: {error.strerror}. Free some space or name another directory."
    ) from error
  finally:
    if unfinished is not None:
      with contextlib.suppress(OSError):
        os.unlink(unfinished)
