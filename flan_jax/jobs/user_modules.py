"""A user's own modules, which register datasets, mixtures and SeqIO tasks when they are imported."""

import ast
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from flan_jax.errors import ConfigError, FlanJaxError, UnknownName

IMPORTED: list[str] = []
"""Every module imported so far by name or path, for a child process to import as well."""

WAITING: list[str] = []
"""Modules that import SeqIO, and with it TensorFlow: a process that prepares data imports them."""

_HEAVY = ("seqio", "t5", "tensorflow", "tensorflow_datasets", "tensorflow_text")
_LATER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def register(name: str) -> None:
  """Imports a module now; or, if it imports SeqIO, has it imported where data is prepared.

  So the process that trains stays free of TensorFlow, and can train from a prepared store where neither is
  installed. Only what the module itself imports at its top is seen, not what its own imports do.

  Raises:
    ConfigError: there is no such module or file.
  """
  if not _imports_seqio(name):
    import_module(name)
  elif name not in WAITING:
    WAITING.append(name)


def import_waiting() -> None:
  """Imports the modules that were put off.

  Raises:
    ConfigError: one cannot be imported.
  """
  while WAITING:
    import_module(WAITING.pop(0))


def require_own(mixture: str, kind: str, hint: str) -> None:
  """Raises UnknownName where a name is no mixture, dataset or text of ours, or of a user's modules.

  Args:
    kind: what the name was to be.
    hint: said besides.
  """
  from flan_jax.data.mixtures import (  # NumPy with it, which `--help` does without
    is_known,
    known_names,
  )

  if not is_known(mixture):
    import_waiting()
  if not is_known(mixture):
    raise UnknownName(kind, mixture, known_names(), hint)


def import_module(name: str) -> ModuleType:
  """Imports a module given as a dotted name, or as a path that ends in .py.

  Raises:
    ConfigError: there is no such module or file.
  """
  module = _imported(name)
  if name not in IMPORTED:
    IMPORTED.append(name)
  return module


def _imported(name: str) -> ModuleType:
  path = Path(name)
  if path.suffix != ".py":
    try:
      return importlib.import_module(name)
    except ModuleNotFoundError as error:
      if error.name is None or not f"{name}.".startswith(f"{error.name}."):
        raise _failed(name, error) from error
      raise ConfigError(
        f"--module {name}: {error}. Give a dotted name, or a path ending in .py."
      ) from error
    except FlanJaxError:
      raise
    except (Exception, SystemExit) as error:
      raise _failed(name, error) from error
  if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(
    path.resolve()
  ):
    return sys.modules[path.stem]
  if not path.is_file():
    raise ConfigError(f"--module {name}: there is no such file.")
  spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
  assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
  module = importlib.util.module_from_spec(spec)
  sys.modules[path.stem] = module
  try:
    spec.loader.exec_module(module)
  except FlanJaxError:
    raise
  except (Exception, SystemExit) as error:
    raise _failed(name, error) from error
  return module


def _imports_seqio(name: str) -> bool:
  path = Path(name)
  try:
    if path.suffix != ".py":
      spec = importlib.util.find_spec(name)
      path = Path(spec.origin) if spec and spec.origin else path
    top = ast.parse(path.read_bytes()).body
  except (ImportError, OSError, SyntaxError, ValueError):
    return False  # importing it tells what is wrong
  names: list[str] = []
  for statement in (
    node for each in top if not isinstance(each, _LATER) for node in ast.walk(each)
  ):
    if isinstance(statement, ast.Import):
      names += [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom) and not statement.level:
      names.append(statement.module or "")
  return any(imported.split(".")[0] in _HEAVY for imported in names)


def _failed(name: str, error: BaseException) -> ConfigError:
  """What went wrong in a user's module, and where."""
  frames = traceback.extract_tb(error.__traceback__)
  if isinstance(error, SyntaxError):
    place = f"{error.filename}:{error.lineno}"
  else:
    place = f"{frames[-1].filename}:{frames[-1].lineno}"
  return ConfigError(f"--module {name}: {place}: {type(error).__name__}: {error}")
