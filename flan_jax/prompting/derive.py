"""Finding a dataset's derive function by name, and knowing when its code has changed."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from types import CodeType, FunctionType, ModuleType
from typing import Any

from flan_jax.errors import TemplateError, nearest

DeriveFunction = Callable[[dict[str, Any]], dict[str, Any] | None]


@cache
def derive_function(name: str) -> DeriveFunction:
  """The function named "module:function".

  Raises:
    TemplateError: the name has another form, or nothing stands there; says which name is nearest.
  """
  module_name, colon, function_name = name.partition(":")
  if not (module_name and colon and function_name):
    raise TemplateError(f"derive should be 'module:function', not {name!r}")
  module = _module(module_name)
  function = getattr(module, function_name, None)
  if not callable(function):
    known = [
      key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"
    ]
    raise TemplateError(
      f"module {module_name} has no function {function_name!r}{_suggestion(function_name, known)}"
    )
  return function


def source_of(function: Callable) -> str:
  """The function's source, and that of everything in its own package that it uses, constants included.

  Two versions of the code with the same text are taken to derive the same fields. What the
  function reaches through other packages, or through a module's attributes, is not followed.
  """
  function = inspect.unwrap(function)
  root = (function.__module__ or "").partition(".")[0]
  texts: dict[str, str] = {}
  waiting: list[Callable] = [function]
  while waiting:
    function = waiting.pop()
    key = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    if key in texts:
      continue
    try:
      texts[key] = inspect.getsource(function)
    except (OSError, TypeError):
      texts[key] = ""
    if not isinstance(function, FunctionType):
      continue
    for name in sorted(_names(function.__code__)):
      value = function.__globals__.get(name)
      unwrapped = inspect.unwrap(value) if callable(value) else value
      if isinstance(unwrapped, (FunctionType, type)):
        if unwrapped.__module__.partition(".")[0] == root:
          waiting.append(unwrapped)
      elif name in function.__globals__ and not isinstance(value, ModuleType):
        texts[f"{key} {name}"] = _constant(value)
  return "\n".join(f"# {key}\n{texts[key]}" for key in sorted(texts))


def _module(name: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise TemplateError(f"importing {name} failed: {error}") from error
    parent, _, last = error.name.rpartition(".")
    known = [
      module.name for module in pkgutil.iter_modules(getattr(_loaded(parent), "__path__", []))
    ]
    raise TemplateError(f"there is no module {error.name}{_suggestion(last, known)}") from error
  except Exception as error:
    raise TemplateError(f"importing {name} failed: {type(error).__name__}: {error}") from error


def _loaded(name: str) -> ModuleType | None:
  return importlib.import_module(name) if name else None


def _suggestion(name: str, known: list[str]) -> str:
  close = nearest(name, known)
  if close:
    return f"; did you mean {' or '.join(map(repr, close))}?"
  return f"; it has {', '.join(sorted(known)[:12])}" if known else ""


def _names(code: CodeType) -> Iterator[str]:
  yield from code.co_names
  for constant in code.co_consts:
    if isinstance(constant, CodeType):
      yield from _names(constant)


def _constant(value: Any) -> str:
  """A text that is the same in every process for equal plain data, patterns included."""
  if isinstance(value, (set, frozenset)):
    return "{" + ", ".join(sorted(map(_constant, value))) + "}"
  if isinstance(value, dict):
    return "{" + ", ".join(f"{_constant(k)}: {_constant(v)}" for k, v in value.items()) + "}"
  if isinstance(value, (list, tuple)):
    return "[" + ", ".join(map(_constant, value)) + "]"
  if value is None or isinstance(value, (str, bytes, int, float, re.Pattern)):
    return repr(value)
  known = getattr(value, "_fingerprint", "")  # of a dataset of Hugging Face's, whatever its size
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    known = _constant(
      {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    )
  elif hasattr(value, "tobytes") and hasattr(value, "dtype"):  # an array
    known = f"{value.dtype} {value.shape} {sha256(value.tobytes()).hexdigest()}"
  return f"<{type(value).__module__}.{type(value).__qualname__} {known}>"
