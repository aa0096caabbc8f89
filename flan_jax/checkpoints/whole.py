"""Whether a checkpoint is as it was written: every file with its size and checksum, noted beside them."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

NOTES = "sizes.json"

_AT_ONCE = 2**24  # bytes


def note_files(folder: Path) -> None:
  """Notes what a whole checkpoint consists of, so that a damaged one is told before it is read."""
  # Files beside the parts are Orbax's own marks, which it writes again when it renames.
  files = [file for file in sorted(folder.glob("*/**/*")) if file.is_file()]
  with ThreadPoolExecutor() as threads:
    sums = threads.map(_checksum, files)
    noted = {
      str(file.relative_to(folder)): [file.stat().st_size, checksum]
      for file, checksum in zip(files, sums, strict=True)
    }
  (folder / NOTES).write_text(json.dumps(noted, indent=1))


def check_files(folder: Path) -> None:
  """Raises ValueError where a file is missing or is not what was written.

  Several processes read a share of the files each, and all of them raise.
  """
  reason = _reason(folder, jax.process_index(), jax.process_count())
  if jax.process_count() > 1:
    found = multihost_utils.process_allgather(np.int32(reason is not None))
    if found.any() and reason is None:
      reason = f"process {int(np.argmax(found))} finds it damaged"
  if reason is not None:
    raise ValueError(reason)


def damage(folder: Path) -> str | None:
  """What is wrong with the files, all read by this process; None: nothing."""
  return _reason(folder, 0, 1)


def _reason(folder: Path, share: int, shares: int) -> str | None:
  """What is wrong with a share of the files; None: nothing."""
  try:
    noted = json.loads((folder / NOTES).read_text())
    for name, expected in noted.items():
      # Those of earlier versions are sizes alone.
      size = expected[0] if isinstance(expected, list) else expected
      file = folder / name
      if not file.is_file():
        return f"no {name}"
      if file.stat().st_size != size:
        return f"{name} has {file.stat().st_size} bytes, not {size}"
    sums = {name: each[1] for name, each in noted.items() if isinstance(each, list)}
    mine = list(sums)[share::shares]
    with ThreadPoolExecutor() as threads:
      for name, found in zip(mine, threads.map(lambda n: _checksum(folder / n), mine), strict=True):
        if found != sums[name]:
          return f"the bytes of {name} have changed"
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    return f"{NOTES}: {type(error).__name__}: {str(error)[:160]}"
  return None


def _checksum(file: Path) -> int:
  checksum = 0
  with file.open("rb") as content:
    while part := content.read(_AT_ONCE):
      checksum = zlib.crc32(part, checksum)
  return checksum
