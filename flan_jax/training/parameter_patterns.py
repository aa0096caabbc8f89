"""Parameters chosen by their paths.

A pattern is a shell's, such as "*kernel" or "decoder/layers/*norm*"; `*` also crosses slashes. One
with a leading "!" takes parameters out again, and "|" stands between alternatives: ("*",
"!*norm*|*bias*") is everything but the parameters with "norm" or "bias" in their path. Where several
patterns speak of a parameter, the last one counts.
"""

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax

from flan_jax.errors import ConfigError, nearest
from flan_jax.training.partitioning import path_of

PyTree = Any


def matching(params: PyTree, patterns: Iterable[str]) -> PyTree:
  """A tree of booleans: which parameters the patterns choose."""
  patterns = tuple(patterns)

  def chosen(path: tuple[Any, ...], leaf: Any) -> bool:
    spoken = [p for p in patterns if matches("/".join(path_of(path)), p)]
    return bool(spoken) and not spoken[-1].startswith("!")

  return jax.tree_util.tree_map_with_path(chosen, params)


def matches(name: str, pattern: str) -> bool:
  """Whether a pattern speaks of the parameter with this path, be it to take it out."""
  return any(fnmatch.fnmatchcase(name, each) for each in pattern.removeprefix("!").split("|"))


def require_matches(params: PyTree, setting: str, patterns: Iterable[str]) -> None:
  """Raises ConfigError for a pattern that speaks of no parameter.

  Args:
    setting: what the patterns were given as, such as "adamw.decay".
  """
  names = ["/".join(path_of(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  words = {word for name in names for part in name.split("/") for word in (part, *part.split("_"))}
  for pattern in patterns:
    if not any(matches(name, pattern) for name in names):
      meant = nearest(pattern.split("/")[-1].strip("!*"), words, count=1)
      close = [name for name in names if meant and meant[0] in name] or sorted(names)
      hint = f"Did you mean {meant[0]!r}? " if meant else ""
      raise ConfigError(
        f"{setting}: the parameter pattern {pattern!r} matches no parameter. {hint}Parameters are named like "
        + ", ".join(map(repr, close[:4]))
      )
