"""Examples for promptsource's templates where the datasets themselves cannot be had.

What a template does with a variable tells what it holds: a field that is iterated is a list, one compared with
"effect" is at times "effect", one that indexes a list is a small number. `examples` makes records so.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2 import nodes

TEXT_METHODS = {
  *("split", "lower", "upper", "replace", "strip", "title", "startswith", "endswith", "format"),
  *("capitalize", "rstrip", "lstrip", "index", "find", "join", "count", "isnumeric", "isdigit"),
  *("splitlines", "rsplit", "isupper", "rfind", "swapcase", "partition"),
}
LIST_METHODS = {"append", "pop", "extend", "insert"}
DICT_METHODS = {"items", "keys", "values", "update", "get"}
TEXT_FILTERS = {"lower", "upper", "replace", "trim", "capitalize", "title", "striptags"}
LIST_FILTERS = {
  *(
    "join",
    "first",
    "last",
    "list",
    "unique",
    "map",
    "selectattr",
    "rejectattr",
    "choice",
    "random",
  ),
  *("most_frequent", "select", "reject", "sum", "min", "max", "reverse", "sort", "batch"),
}
NUMBER_FILTERS = {"round", "abs"}
WORDS = ("A", "grey", "heron", "stood", "in", "shallow", "water", ".", "It", "was", "cold")


@dataclass
class Value:
  """What is known of a variable, or of a part of one."""

  keys: dict[str, "Value"] = field(default_factory=dict)
  item: "Value | None" = None
  kinds: set[str] = field(default_factory=set)
  seen: list[Any] = field(default_factory=list)

  def key(self, name: str) -> "Value":
    return self.keys.setdefault(name, Value())

  def items(self) -> "Value":
    self.item = self.item or Value()
    return self.item

  def made(self, name: str, variant: int) -> Any:
    if self.keys and not (self.item and "list" in self.kinds):
      return {key: value.made(key, variant) for key, value in self.keys.items()}
    if self.item is not None and not (self.kinds & {"text"} and not self.item.keys):
      inner = self.item
      if self.keys and not inner.keys:
        inner = Value(self.keys)
      return [inner.made(f"{name} {i}", variant + i) for i in range(4)]
    if self.kinds & {"list"}:
      return [f"{name} {i}" for i in range(4)]
    if self.seen and variant % 4 < 3:
      return self.seen[variant % len(self.seen)]
    if "number" in self.kinds:
      return variant % 5
    start = variant % 7
    return f"{name} {' '.join(WORDS[start : start + 4 + variant % 9])}{'.?!'[variant % 3]}"


class Reader:
  """Collects what templates do with the variables of a record."""

  def __init__(self):
    self.record = Value()
    self.scope: dict[str, Value | None] = {}

  def read(self, tree: nodes.Template) -> None:
    self.scope = {"answer_choices": Value(kinds={"list"})}
    self.visit(tree)

  def visit(self, node: nodes.Node | None) -> Value | None:
    if node is None:
      return None
    method = getattr(self, f"visit_{type(node).__name__.lower()}", None)
    if method is not None:
      return method(node)
    for child in node.iter_child_nodes():
      self.visit(child)
    return None

  def visit_name(self, node):
    if node.name in self.scope:
      return self.scope[node.name]
    return self.record.key(node.name)

  def visit_getattr(self, node):
    base = self.visit(node.node)
    if base is None:
      return None
    if node.attr in TEXT_METHODS:
      base.kinds.add("text")
    elif node.attr in LIST_METHODS:
      base.kinds.add("list")
    elif node.attr not in DICT_METHODS:
      return base.key(node.attr)
    return None

  def visit_getitem(self, node):
    base, index = self.visit(node.node), node.arg
    if isinstance(index, nodes.Const) and isinstance(index.value, str):
      return base.key(index.value) if base else None
    inner = self.visit(index)
    if inner is not None:
      if isinstance(node.node, nodes.Dict):
        inner.seen += [p.key.value for p in node.node.items if isinstance(p.key, nodes.Const)]
      elif not inner.kinds & {"text"}:
        inner.kinds.add("number")
    if isinstance(index, nodes.Slice):
      if base is not None:
        base.kinds.add("text")  # unless something else says that it is a list
      return base
    return base.items() if base is not None else None

  def visit_filter(self, node):
    value = self.visit(node.node)
    for argument in node.args:
      self.visit(argument)
    if value is None:
      return None
    if node.name in TEXT_FILTERS:
      value.kinds.add("text")
    elif node.name in NUMBER_FILTERS:
      value.kinds.add("number")
    elif node.name in LIST_FILTERS:
      if node.name == "map" and node.kwargs:
        return value.items().key(node.kwargs[0].value.value)
      value.items()
      value.kinds.add("list")
      return value.item if node.name in ("first", "last", "choice", "random") else value
    return value

  def visit_compare(self, node):
    value = self.visit(node.expr)
    for operand in node.ops:
      other = self.visit(operand.expr)
      constants = (
        [operand.expr]
        if isinstance(operand.expr, nodes.Const)
        else getattr(operand.expr, "items", [])
      )
      for constant in constants:
        if isinstance(constant, nodes.Const) and value is not None:
          value.seen.append(constant.value)
      if (
        other is not None
        and isinstance(node.expr, nodes.Const)
        and isinstance(node.expr.value, str)
      ):
        if operand.op in ("in", "notin"):
          if other.item is None:
            other.seen.append(f"some {node.expr.value} text")
        else:
          other.seen.append(node.expr.value)

  def _sum(self, node):
    sides = (self.visit(node.left), self.visit(node.right))
    for value, constant in zip(sides, (node.right, node.left), strict=True):
      if value is not None and isinstance(constant, nodes.Const):
        value.kinds.add("text" if isinstance(constant.value, str) else "number")

  visit_add = visit_sub = visit_mul = visit_div = visit_mod = visit_floordiv = _sum

  def visit_assign(self, node):
    value = self.visit(node.node)
    if isinstance(node.target, nodes.Name):
      self.scope[node.target.name] = value

  def visit_for(self, node):
    values = self._iterated(node.iter)
    targets = node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]
    before = dict(self.scope)
    if len(values) < len(targets):
      values = [*values, *([None] * len(targets))]
    self.scope.update({target.name: value for target, value in zip(targets, values, strict=False)})
    self.scope["loop"] = None
    for child in (node.test, *node.body, *node.else_):
      self.visit(child)
    self.scope = before

  def _iterated(self, node) -> list[Value | None]:
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
      if node.node.name == "zip":
        return [self._items(argument) for argument in node.args]
      for argument in node.args:
        value = self.visit(argument)
        if value is not None:
          value.kinds.add("number")
      return [None]
    return [self._items(node)]

  def _items(self, node) -> Value | None:
    value = self.visit(node)
    if value is None:
      return None
    value.kinds.add("list")
    return value.items()


def examples(jinjas: list[str], count: int) -> Iterator[dict[str, Any]]:
  """Records for the templates of one dataset."""
  reader = Reader()
  environment = jinja2.Environment()
  environment.filters.update(dict.fromkeys(("choice", "most_frequent", "highlight"), str))
  for jinja in jinjas:
    reader.read(environment.parse(jinja))
  known = {"range", "zip", "dict", "namespace", "loop", "cycler", "joiner"}
  for variant in itertools.islice(itertools.count(), count):
    yield {
      name: value.made(name, variant * (1 + place % 3) + place % 2)
      for place, (name, value) in enumerate(reader.record.keys.items())
      if name not in known
    }


def raw_records() -> dict[str, list[dict[str, Any]]]:
  """By promptsource's name of the dataset: records written for this purpose, and those of T0's dataset files."""
  here = Path(__file__).parent
  records = yaml.safe_load((here / "promptsource_records.yaml").read_text())
  for path in here.parents[1].glob("templates/*/p3_*.yaml"):
    data = yaml.safe_load(path.read_text())
    if "derive" not in data:
      records.setdefault(data["templates"]["promptsource"], []).append(data["record"])
  return records


def drawn_out(value: Any) -> Any:
  """The value with so many words of one letter behind each text of several words that every cut is seen."""
  if isinstance(value, str):
    return value + " q" * 1300 if " " in value else value
  if isinstance(value, list):
    return [drawn_out(item) for item in value]
  if isinstance(value, dict):
    return {key: drawn_out(item) for key, item in value.items()}
  return value


def lengthened(value: Any, length: float) -> Any:
  """The value with every longer text in it repeated up to a length."""
  if isinstance(value, str):
    return value if len(value) < 25 else f"{value} " * (1 + int(length / len(value)))
  if isinstance(value, list):
    return [lengthened(item, length) for item in value]
  if isinstance(value, dict):
    return {key: lengthened(item, length) for key, item in value.items()}
  return value
