"""What is known by name: the library's own dataset files and mixtures, and the folders that a user registers."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path

import flan_jax
from flan_jax.data import archives
from flan_jax.data.atomic import build_once
from flan_jax.data.home import data_home
from flan_jax.errors import ConfigError, NetworkError, UnknownName
from flan_jax.prompting import DatasetSpec, read_dataset

PROMPTSOURCE = "promptsource==0.2.3"
"""Bach et al. 2022, "PromptSource": the templates that T0 was tuned on."""

PROMPTSOURCE_SHA256 = "f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5"
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


def _dataset_files(directory: Path) -> dict[str, Path]:
  if not directory.is_dir():
    raise ConfigError(f"{directory} is no folder of dataset files.")
  return {path.stem: path for path in sorted(directory.glob("*/*.yaml"))}
