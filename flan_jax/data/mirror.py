"""A remote folder, read through copies of its files on the local disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from flan_jax.data.atomic import write_whole
from flan_jax.errors import ConfigError, NetworkError, StorageError


def is_remote(place: Path | str) -> bool:
  """Whether a place is a URL, such as "gs://bucket/stores/mini-1f3a9c"."""
  return "://" in str(place)


class RemoteFolder:
  """A folder at a URL.

  Args:
    url: of any protocol that fsspec knows; `gs://` needs the package gcsfs, `s3://` s3fs.

  Raises:
    ConfigError: the protocol is unknown, or its package is not installed.
  """

  def __init__(self, url: str):
    self.url = url.rstrip("/")
    try:
      self._files, self._root = fsspec.core.url_to_fs(self.url)
    except (ImportError, ValueError) as error:
      raise ConfigError(f"{self.url} cannot be read: {error}.") from error

  def names(self, folder: str) -> list[str]:
    """The files in one of its folders, each with the folder's name before it."""
    with _told(f"{self.url}/{folder}"):
      found = self._files.ls(f"{self._root}/{folder}", detail=False)
    return sorted(f"{folder}/{Path(name).name}" for name in found)

  def read(self, name: str) -> bytes:
    """A file's content."""
    with _told(f"{self.url}/{name}"):
      return self._files.cat_file(f"{self._root}/{name}")

  def copied(self, name: str, directory: Path) -> Path:
    """The copy of a file in a local folder, made if it is not there yet."""
    path = directory / name
    if not path.exists():
      write_whole(path, self.read(name))
    return path


@contextmanager
def _told(place: str) -> Iterator[None]:
  """Turns what a remote file system raises into an error that names the file."""
  try:
    yield
  except FileNotFoundError as error:
    raise StorageError(f"there is no {place}: no prepared store is there.") from error
  except OSError as error:
    raise NetworkError(f"{place} cannot be read: {error}.") from error
