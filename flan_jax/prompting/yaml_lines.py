"""YAML that remembers on which line everything stood.

Scalars follow YAML 1.2's core schema: `yes`, `no`, `on`, `off` and dates are text, which is what the
writer of answer choices means. A key given twice is an error. Only plain data can be constructed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from flan_jax.errors import TemplateError

Keys = tuple[str | int, ...]

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class YamlFile:
  """A parsed YAML file: `data`, and the line of every key and item.

  Raises:
    TemplateError: the file is missing, is not UTF-8, is not YAML, or has a key twice.
  """

  def __init__(self, path: Path):
    self.path = path
    self._lines: dict[Keys, int] = {}
    self._literal_blocks: set[Keys] = set()
    try:
      text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise TemplateError(f"{path}: cannot be read: {error}") from error
    loader = _Loader(text)
    try:
      node = loader.get_single_node()
      self.data = None if node is None else self._construct(loader, node, (), ())
    except yaml.MarkedYAMLError as error:
      mark = error.problem_mark or error.context_mark
      line = mark.line + 1 if mark else 1
      raise TemplateError(
        f"{path}:{line}: not valid YAML: {error.problem or error.context}"
      ) from error
    except yaml.YAMLError as error:
      raise TemplateError(f"{path}: not valid YAML: {error}") from error
    finally:
      loader.dispose()

  def line(self, *keys: str | int) -> int:
    """The line, from 1, of the key or item at this path, or of its nearest ancestor that exists."""
    while keys and keys not in self._lines:
      keys = keys[:-1]
    return self._lines.get(keys, 1)

  def error(self, message: str, *keys: str | int) -> TemplateError:
    """An error that stands at this path."""
    return TemplateError(f"{self.path}:{self.line(*keys)}: {message}")

  def error_in_text(self, message: str, keys: Keys, offset: int) -> TemplateError:
    """An error at a character of a text value; the line is exact in literal (`|`) blocks."""
    line = self.line(*keys)
    if keys in self._literal_blocks:
      value: Any = self.data
      for key in keys:
        value = value[key]
      line += 1 + value.count("\n", 0, offset)
    return TemplateError(f"{self.path}:{line}: {message}")

  def _construct(self, loader: Any, node: yaml.Node, keys: Keys, above: tuple[int, ...]) -> Any:
    self._lines.setdefault(keys, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
      if node.style == "|":
        self._literal_blocks.add(keys)
      return loader.construct_object(node)
    if node.tag not in _COLLECTIONS:
      raise self.error(f"not valid YAML: the tag {node.tag} is not allowed", *keys)
    if id(node) in above:
      raise self.error("an alias contains itself", *keys)
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
      return [self._construct(loader, item, (*keys, i), above) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
      line = key_node.start_mark.line + 1
      if not isinstance(key_node, yaml.ScalarNode):
        raise TemplateError(
          f"{self.path}:{line}: a key must be a single word; quote text that begins with {{ or ["
        )
      key = loader.construct_object(key_node)
      if key in mapping:
        raise TemplateError(f"{self.path}:{line}: the key {key!r} is given twice")
      self._lines[(*keys, key)] = line
      mapping[key] = self._construct(loader, value_node, (*keys, key), above)
    return mapping


class GivenData:
  """What a file would hold, given from Python. Mistakes name the keys, where a file has lines.

  Args:
    name: what stands for the file's path.
    data: mappings, sequences and scalars; copied.
  """

  def __init__(self, name: str, data: Any):
    self.path, self.data = Path(name), _copied(data)

  def error(self, message: str, *keys: str | int) -> TemplateError:
    """An error that stands at this path."""
    return TemplateError(f"{'.'.join(map(str, (self.path, *keys)))}: {message}")

  def error_in_text(self, message: str, keys: Keys, offset: int) -> TemplateError:
    """An error in a text value."""
    del offset
    return self.error(message, *keys)


def _copied(value: Any) -> Any:
  """Mappings and sequences as YAML reads them."""
  if isinstance(value, Mapping):
    return {key: _copied(item) for key, item in value.items()}
  return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
  """The safe loader with YAML 1.2's reading of plain scalars."""

  yaml_implicit_resolvers: ClassVar[dict] = {}


for _tag, _pattern, _first in (
  ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
  ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
  ("int", r"[-+]?[0-9]+", list("-+0123456789")),
  ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
  _Loader.add_implicit_resolver(
    f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
  )
# The inherited constructors take 0123 for octal; these two read what the patterns match.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _loader, node: float(node.value))
