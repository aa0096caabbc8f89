"""Files and directories that are whole or absent."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flan_jax.errors import StorageError

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR)


def build_once(directory: Path, build: Callable[[Path], None]) -> Path:
  """Makes `directory` with `build`, unless it exists already.

  `build` fills a directory beside it, which is then renamed; of several processes that ask at once
  one builds and the others wait. What a killed process left unfinished is cleared away.

  Raises:
    StorageError: the disk is full or may not be written to.
  """
  if directory.is_dir():
    return directory
  unfinished = directory.with_name(f".{directory.name}.unfinished")
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(directory.with_name(f".{directory.name}.lock")):
      if not directory.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
          build(unfinished)
          unfinished.rename(directory)
        finally:
          shutil.rmtree(unfinished, ignore_errors=True)
  except OSError as error:
    if error.errno not in _REFUSED:
      raise
    raise StorageError(
      f"cannot write {directory}: {error.strerror}. Nothing was kept; free some space or name "
      "another data directory."
    ) from error
  return directory


def check_local(path: Path | str) -> None:
  """Raises StorageError where a URL is named for what is written to a disk."""
  scheme = re.match(r"([a-z][a-z0-9+.-]+):/", str(path))
  if scheme:
    raise StorageError(
      f"{path} is a URL ({scheme[1]}), and runs, checkpoints and reports are written to a disk: name a folder "
      "that all processes share, such as a bucket that is mounted as one. Prepared stores alone are read from URLs "
      "(data.prepared)."
    )


def write_whole(path: Path, content: bytes | Iterable[str]) -> None:
  """Writes a file so that it is complete or, whatever happens, as it was. Makes its folder.

  Args:
    content: bytes, or texts to be written one after the other.

  Raises:
    StorageError: the disk refused.
  """
  check_local(path)
  parts = [content] if isinstance(content, bytes) else (text.encode() for text in content)
  unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with unfinished.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
      unfinished.replace(path)
    finally:
      unfinished.unlink(missing_ok=True)
  except OSError as error:
    raise StorageError(
      f"cannot write {path}: {error.strerror}. Nothing half-written was kept; make room or name "
      "another directory, then run the same command again."
    ) from error


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
  """Makes a folder and keeps other processes that would claim it away from it.

  Raises:
    StorageError: another process holds it.
  """
  check_local(directory)
  directory.mkdir(parents=True, exist_ok=True)
  with _sole_holder(
    directory / ".lock", f"{directory}: wait until it ends, or name another folder"
  ):
    yield


@contextmanager
def claimed_file(path: Path) -> Iterator[None]:
  """Keeps other processes that would claim a file away from it; makes its folder.

  Raises:
    StorageError: another process holds it.
  """
  check_local(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  lock = path.with_name(f".{path.name}.lock")
  with _sole_holder(lock, f"{path}: wait until it ends, or name another file"):
    yield


@contextmanager
def _sole_holder(lock: Path, place: str) -> Iterator[None]:
  with lock.open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise StorageError(f"another process is writing to {place}.") from None
    except OSError:  # a file system without locks
      pass
    yield


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
  """Holds a lock file while other processes that want it wait, and removes it on leaving."""
  while True:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # The holder before us may have removed the file that we opened: then ours locks nothing.
    if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
      break
    os.close(descriptor)
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(descriptor)
