"""Gin files and bindings read into statements, by gin's own parser, before gin sees them."""

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from flan_jax.errors import ConfigError, nearest
from flan_jax.jobs.user_modules import import_module

CONFIG_DIRECTORY = Path(__file__).resolve().parent.parent / "gin_configs"
COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True)
class Statement:
  """One `scope/selector.argument = value`, or a macro where there is no argument."""

  scope: str
  selector: str
  argument: str
  references: tuple[str, ...]  # names of configurables in the value
  macros: tuple[str, ...]  # names of macros in the value
  value: Any  # as the parser gives it
  where: str

  @property
  def typed(self) -> bool:
    """Whether it stands on the command line."""
    return self.where == COMMAND_LINE

  @property
  def name(self) -> str:
    """As it is written, without scope."""
    return f"{self.selector}.{self.argument}" if self.argument else self.selector

  @property
  def setting(self) -> str:
    """As gin knows it, without scope."""
    return self.name if self.argument else f"{self.selector}/gin.macro.value"


class _References(config_parser.ParserDelegate):
  """Notes which configurables and macros a value mentions instead of resolving them."""

  def __init__(self) -> None:
    self.references: list[str] = []
    self.macros: list[str] = []

  def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> str:
    self.references.append(scoped_configurable_name.split("/")[-1].split(".")[-1])
    return scoped_configurable_name

  def macro(self, macro_name: str) -> str:
    self.macros.append(macro_name.split(".")[-1])
    return macro_name


def read_statements(files: Sequence[str], bindings: Sequence[str]) -> list[Statement]:
  """All that gin files and `NAME=VALUE` bindings set, in this order. See `flan_jax.jobs.launch.launch`."""
  read = [s for path in files for s in read_file(find(path), ())]
  return read + [s for each in bindings for s in parse(as_gin_line(each), COMMAND_LINE, ())]


def find(path: str, where: str = "") -> Path:
  """The file of this name.

  Args:
    where: it is included.
  """
  for candidate in (Path(path), CONFIG_DIRECTORY / path, CONFIG_DIRECTORY.parent / path):
    if candidate.is_file():
      return candidate
  known = [str(p.relative_to(CONFIG_DIRECTORY)) for p in sorted(CONFIG_DIRECTORY.rglob("*.gin"))]
  beside = [str(p) for p in sorted(Path(path).parent.glob("*.gin"))]
  close = nearest(path.removeprefix("gin_configs/"), [*beside, *known])
  hint = f" Did you mean {close[0]!r}?" if close else ""
  raise ConfigError(f"{where}no gin file {path!r}, neither here nor in {CONFIG_DIRECTORY}.{hint}")


def _text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ConfigError(f"{path}: not a gin file: byte {error.start + 1} is not UTF-8.") from None


_INCLUDE = re.compile(r"""^include\s+(["'])(?P<path>[^"']+)\1\s*(#.*)?$""", re.MULTILINE)


def inlined(path: Path) -> str:
  """A file's text with the files that it includes in their places.

  Gin's own search for them would log every folder in which it does not find one.
  """
  text = _text(path)
  return _INCLUDE.sub(lambda match: inlined(find(match["path"])), text)


def read_file(path: Path, above: tuple[Path, ...]) -> Iterator[Statement]:
  if path.resolve() in above:
    raise ConfigError(f"{above[-1]} includes {path}, which includes it in turn: leave one out.")
  yield from parse(_text(path), str(path), (*above, path.resolve()))


def parse(text: str, where: str, above: tuple[Path, ...]) -> Iterator[Statement]:
  delegate = _References()
  try:
    parser = config_parser.ConfigParser(text, delegate)
    while (statement := parser.parse_statement()) is not None:
      if isinstance(statement, config_parser.IncludeStatement):
        place = f"{where}:{statement.location.line_num}: "
        yield from read_file(find(statement.filename, place), above)
      elif isinstance(statement, config_parser.ImportStatement):
        import_module(statement.module)
      elif isinstance(statement, config_parser.BindingStatement):
        yield Statement(
          scope=statement.scope,
          selector=statement.selector.split(".")[-1],
          argument=statement.arg_name,
          references=tuple(delegate.references),
          macros=tuple(delegate.macros),
          value=statement.value,
          where=where if where == COMMAND_LINE else f"{where}:{statement.location.line_num}",
        )
      delegate.references.clear()
      delegate.macros.clear()
  except SyntaxError as error:
    line = f":{error.lineno}" if error.lineno and where != COMMAND_LINE else ""
    raise ConfigError(
      f"{where}{line}: not gin syntax: {error.msg}: {(error.text or text).strip()!r}"
    ) from error


_REFERENCE = re.compile(r"^[@%][\w/.]+(\(\))?$")


def as_gin_line(binding: str) -> str:
  """`NAME=VALUE` as typed in a shell, where quotes are lost: what is no literal becomes a string."""
  name, equals, value = binding.partition("=")
  if not equals:
    raise ConfigError(f"--gin.{binding} has no value; write --gin.NAME=VALUE.")
  value = value.strip()
  if not _REFERENCE.match(value) and not _is_literal(value) and not re.search(r"[@%]\w", value):
    value = repr(value)
  return f"{name.strip()} = {value}"


def _is_literal(value: str) -> bool:
  try:
    ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return False
  return True
