"""A user's own modules, which register datasets and mixtures when they are imported."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from flan_jax.errors import ConfigError, FlanJaxError

IMPORTED: list[str] = []
"""Every module imported so far by name or path, for a child process to import as well."""


def import_module(name: str) -> ModuleType:
  """Imports a module given as a dotted name, or as a path that ends in .py.

  Raises:
    ConfigError: there is no such module or file.
  """
  if name not in IMPORTED:
    IMPORTED.append(name)
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


def _failed(name: str, error: BaseException) -> ConfigError:
  """What went wrong in a user's module, and where."""
  frames = traceback.extract_tb(error.__traceback__)
  if isinstance(error, SyntaxError):
    place = f"{error.filename}:{error.lineno}"
  else:
    place = f"{frames[-1].filename}:{frames[-1].lineno}"
  return ConfigError(f"--module {name}: {place}: {type(error).__name__}: {error}")
