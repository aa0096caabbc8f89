"""Files at a URL, read through copies on the local disk."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec

from flan_jax.data.atomic import build_once, write_whole
from flan_jax.errors import ConfigError, NetworkError, SourceError, StorageError

_LOG = logging.getLogger(__name__)


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
    self._files, self._root = _file_system(self.url)

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


def copies(url: str, cache_dir: Path | str) -> list[Path]:
  """The files at a URL, which may have `*` in it, as they were when they were first asked for.

  Args:
    url: of any protocol that fsspec knows: "https://...", "hf://datasets/OWNER/NAME@REVISION/...".
    cache_dir: the copies are kept in a folder of their own in it.

  Raises:
    SourceError: no file is there.
    NetworkError: it cannot be reached.
    ConfigError: the protocol is unknown, or its package is not installed.
  """

  def download(directory: Path) -> None:
    files, root = _file_system(url)
    _LOG.info("downloading %s", url)
    try:
      names = sorted(files.glob(root)) if "*" in root else [root]
      for name in names:
        files.get_file(name, str(directory / name.strip("/").replace("/", "+")))
    except FileNotFoundError:
      names = []
    except Exception as error:  # each file system has exceptions of its own
      raise NetworkError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    if not names:
      raise SourceError(f"there is no file at {url}.")

  name = f"url-{sha256(url.encode()).hexdigest()[:16]}"
  return sorted(build_once(Path(cache_dir) / name, download).iterdir())


def _file_system(url: str) -> tuple[Any, str]:
  try:
    return fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:
    raise ConfigError(f"{url} cannot be read: {error}.") from error


@contextmanager
def _told(place: str) -> Iterator[None]:
  """Turns what a remote file system raises into an error that names the file."""
  try:
    yield
  except FileNotFoundError as error:
    raise StorageError(f"there is no {place}: no prepared store is there.") from error
  except OSError as error:
    raise NetworkError(f"{place} cannot be read: {error}.") from error
