"""What is known by name: the library's own dataset files and mixtures, and the folders that a user registers."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

import flan_jax
from flan_jax.errors import ConfigError, UnknownName
from flan_jax.prompting import DatasetSpec, read_dataset

_template_folders: list[Path] = []


def register_templates(directory: Path | str) -> None:
  """Makes known the dataset files `directory/<cluster>/<dataset>.yaml`. None is read yet.

  Raises:
    ConfigError: there is no such folder, no file in it, or a dataset of that name elsewhere.
  """
  directory = Path(directory).expanduser().resolve()
  if directory in _template_folders:
    return
  files = _dataset_files(directory)
  if not files:
    raise ConfigError(f"{directory} holds no dataset file; expected <cluster>/<dataset>.yaml.")
  known = dataset_files()
  for name, path in files.items():
    if name in known:
      raise ConfigError(f"the dataset {name!r} is described twice: {known[name]} and {path}.")
  _template_folders.append(directory)


def dataset_names() -> list[str]:
  """Every dataset that has a file."""
  return sorted(dataset_files())


def dataset_spec(name: str) -> DatasetSpec:
  """The dataset of this name, its file read and checked.

  Raises:
    UnknownName: no file has this name.
    TemplateError: the file is wrong.
  """
  files = dataset_files()
  if name not in files:
    raise UnknownName("dataset", name, files, "`flan-jax templates` lists them.")
  path = files[name]
  return _read(path, path.stat().st_mtime_ns)


def dataset_files() -> dict[str, Path]:
  """Every dataset's file, by name."""
  library = Path(flan_jax.__file__).parent / "templates"
  files: dict[str, Path] = {}
  for folder in (library, *_template_folders):
    files.update(_dataset_files(folder))
  return files


@cache
def import_library() -> None:
  """Imports the modules of `flan_jax.mixtures`, which register the library's mixtures and texts."""
  import flan_jax.mixtures

  for module in pkgutil.iter_modules(flan_jax.mixtures.__path__):
    importlib.import_module(f"flan_jax.mixtures.{module.name}")


@cache
def _read(path: Path, changed_ns: int) -> DatasetSpec:
  del changed_ns
  return read_dataset(path)


def _dataset_files(directory: Path) -> dict[str, Path]:
  if not directory.is_dir():
    raise ConfigError(f"{directory} is no folder of dataset files.")
  return {path.stem: path for path in sorted(directory.glob("*/*.yaml"))}
