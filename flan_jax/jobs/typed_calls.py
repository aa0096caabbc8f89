"""Calls whose arguments come from gin: each is there, and of the type that the signature says."""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable

from flan_jax.errors import ConfigError

_AN_INT_IS_A_FLOAT = BeartypeConf(is_pep484_tower=True)


def typed(
  function: Callable[..., Any], name: str, factories: Mapping[str, Any]
) -> Callable[..., Any]:
  """`function`, refusing what gin would let through.

  Args:
    name: how gin files call it.
    factories: what gin files refer to by name; such a function itself is never a valid value.

  Raises:
    ConfigError: when called: an argument is missing, or is of another type than its annotation.
  """
  signature = inspect.signature(function)
  hints = typing.get_type_hints(function)

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    given = signature.bind_partial(*args, **kwargs).arguments
    missing = [
      parameter.name
      for parameter in signature.parameters.values()
      if parameter.default is parameter.empty and parameter.name not in given
    ]
    if missing:
      raise ConfigError(
        f"nothing sets {', '.join(f'{name}.{parameter}' for parameter in missing)}. Start from a "
        "recipe, such as --gin_file=gin_configs/recipes/quickstart.gin, or bind what is missing."
      )
    for parameter, value in given.items():
      if itself := next((n for n, factory in factories.items() if factory is value), None):
        raise ConfigError(
          f"{name}.{parameter} is the function {itself} itself; write @{itself}() for what it makes."
        )
      hint = hints.get(parameter, Any)
      if not _fits(value, hint):
        raise ConfigError(
          f"{name}.{parameter} is {value!r}; it must be {_readable(hint)}.{_advice(value, hint)}"
        )
    return function(*args, **kwargs)

  return call


def _fits(value: Any, hint: Any) -> bool:
  """Whether a value is what a setting takes. In Python True is an int and a text a sequence of texts; here
  neither is meant."""
  if _is_union(hint):
    return any(_fits(value, kind) for kind in typing.get_args(hint))
  if isinstance(value, bool) and hint in (int, float):
    return False
  if isinstance(value, str) and typing.get_origin(hint) is Sequence:
    return False
  return is_bearable(value, hint, conf=_AN_INT_IS_A_FLOAT)


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _readable(hint: Any) -> str:
  if _is_union(hint):
    return " or ".join(map(_readable, typing.get_args(hint)))
  if typing.get_origin(hint) is typing.Literal:
    return " or ".join(map(repr, typing.get_args(hint)))
  if hint is type(None):
    return "None"
  if isinstance(hint, type) and not typing.get_args(hint):
    return hint.__name__
  return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(hint))


def _advice(value: Any, hint: Any) -> str:
  if bool in (hint, *typing.get_args(hint)):
    return " Write True or False."
  if isinstance(value, str) and value[:1] in "{[(":
    return " It was read as a text: check its brackets and quotes."
  if isinstance(value, str) and _fits((value,), hint):
    return f" Write ({value!r},)."
  return ""
