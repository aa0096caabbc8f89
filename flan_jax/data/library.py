"""What is known by name: the library's own dataset files and mixtures, and the folders that a user registers."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flan_jax
from flan_jax.data import archives
from flan_jax.data.atomic import build_once
from flan_jax.data.home import data_home
from flan_jax.errors import ConfigError, NetworkError, UnknownName
from flan_jax.prompting import DatasetSpec, given_dataset, read_dataset

PROMPTSOURCE = "promptsource==0.2.3"
"""Bach et al. 2022, "PromptSource": the templates that T0 was tuned on."""

PROMPTSOURCE_SHA256 = "f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5"
_template_folders: list[Path] = []
_given: dict[str, DatasetSpec] = {}


def register_templates(place: Path | str) -> None:
  """Makes known the dataset files of a folder, or one file. None is read yet.

  Args:
    place: a folder with `<cluster>/<dataset>.yaml` in it, or with `<dataset>.yaml`; or one such file.

  Raises:
    ConfigError: there is no such place, no file in it, or a dataset of that name elsewhere.
  """
  place = Path(place).expanduser().resolve()
  if place in _template_folders:
    return
  files = _dataset_files(place)
  if not files:
    raise ConfigError(
      f"{place} holds no dataset file; expected <cluster>/<dataset>.yaml or <dataset>.yaml."
    )
  known = dataset_files()
  for name, path in files.items():
    if known.get(name, path) != path:
      raise ConfigError(f"the dataset {name!r} is described twice: {known[name]} and {path}.")
  _template_folders.append(place)


def register_dataset(
  name: str, content: Mapping[str, Any], folder: Path | str = "."
) -> DatasetSpec:
  """Makes a dataset known without a file of its own.

  Args:
    name: how mixtures call it.
    content: what a dataset file says, `source`, `fields`, `templates` and all.
    folder: what the file patterns of its source are relative to.

  Raises:
    TemplateError: the content is wrong; the message names the keys where it is.
    ConfigError: another dataset has this name.
  """
  spec = given_dataset(name, content, folder, promptsource_file)
  known = _given.get(name)
  if known and (known.data, known.folder) == (spec.data, spec.folder):
    return known
  if path := dataset_file(name):
    raise ConfigError(f"the dataset {name!r} is described twice: {path} and by register_dataset.")
  _given[name] = spec
  return spec


class Registered(NamedTuple):
  """What was registered in a process, for another one to be given."""

  places: tuple[Path, ...]
  given: Mapping[str, DatasetSpec]


def registered() -> Registered:
  """What `register_templates` and `register_dataset` have made known in this process."""
  return Registered(tuple(_template_folders), dict(_given))


def register_again(there: Registered) -> None:
  """Makes known here what another process knew."""
  for place in there.places:
    register_templates(place)
  _given.update(there.given)


def dataset_names() -> list[str]:
  """Every dataset that is known."""
  return sorted(dataset_files())


def dataset_spec(name: str) -> DatasetSpec:
  """The dataset of this name, its file read and checked.

  Raises:
    UnknownName: there is none.
    TemplateError: the file is wrong.
  """
  path = dataset_file(name)
  if path is None:
    raise UnknownName("dataset", name, dataset_files(), "`flan-jax templates` lists them.")
  if name in _given:
    return _given[name]
  return _read(path, path.stat().st_mtime_ns)


def dataset_file(name: str) -> Path | None:
  """That of one dataset, as `dataset_files` has it, whose time does not grow with their number; None: there is none."""
  if name in _given:
    return _given[name].path
  for files in map(_dataset_files, reversed(_template_folders)):
    if name in files:
      return files[name]
  return _library_files().get(name)


def dataset_files() -> dict[str, Path]:
  """Every dataset's file, by name; of a dataset given from Python, which has none, the name itself."""
  files = dict(_library_files())
  for place in _template_folders:
    files |= _dataset_files(place)
  return files | {name: spec.path for name, spec in _given.items()}


def promptsource_file(name: str) -> Path:
  """The `templates.yaml` that promptsource has for a dataset, such as "glue/mrpc".

  Its package is fetched with the first that is asked for; no code of it runs.

  Raises:
    UnknownName: promptsource has none.
    NetworkError, ArchiveError: the package cannot be had.
  """
  folder = _promptsource_folder(data_home())
  if isinstance(folder, NetworkError):
    raise folder
  path = folder / name / "templates.yaml"
  if not path.is_file():
    known = [str(file.parent.relative_to(folder)) for file in folder.glob("**/templates.yaml")]
    raise UnknownName("dataset of promptsource", name, known)
  return path


@cache
def import_library() -> None:
  """Imports the modules of `flan_jax.mixtures`, which register the library's mixtures and texts."""
  import flan_jax.mixtures

  for module in pkgutil.iter_modules(flan_jax.mixtures.__path__):
    importlib.import_module(f"flan_jax.mixtures.{module.name}")


@cache
def _promptsource_folder(home: Path) -> Path | NetworkError:
  """Where its templates are unpacked; or why they cannot be had, which is tried once and not for every dataset."""

  def unpack(directory: Path) -> None:
    archive = archives.fetch(
      PROMPTSOURCE, PROMPTSOURCE_SHA256, archive="sdist", cache_dir=home / "archives"
    )
    for member, stream in archives.members(archive, "promptsource/templates/**/templates.yaml"):
      path = directory / member.partition("/templates/")[2]
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(stream.read())

  try:
    return build_once(home / PROMPTSOURCE.replace("==", "-"), unpack)
  except NetworkError as error:
    return error


@cache
def _read(path: Path, changed_ns: int) -> DatasetSpec:
  del changed_ns
  return read_dataset(path, promptsource_file)


@cache
def _library_files() -> Mapping[str, Path]:
  """Those of the library, which do not change; a user's may while a notebook is open."""
  return _dataset_files(Path(flan_jax.__file__).parent / "templates")


def _dataset_files(place: Path) -> dict[str, Path]:
  if place.is_file():
    return {place.stem: place}
  if not place.is_dir():
    raise ConfigError(f"{place} is neither a dataset file nor a folder of them.")
  found = sorted(place.glob("*/*.yaml")) or sorted(place.glob("*.yaml"))
  return {path.stem: path for path in found}
