"""Reads gin files and bindings so strictly that every setting which is accepted is obeyed.

Gin itself lets an unused macro pass (`STPES=5`), and a binding for a configurable that the launch never
calls. Here the statements are read once by gin's own parser before gin sees them: each binding must name
a known configurable and one of its parameters, and must be reachable from the job that is launched.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config_parser

from flan_jax.errors import ConfigError, nearest
from flan_jax.jobs.typed_calls import typed
from flan_jax.jobs.user_modules import import_module

CONFIG_DIRECTORY = Path(__file__).resolve().parent.parent / "gin_configs"
COMMAND_LINE = "command line"


def launch(job: str, files: Sequence[str], bindings: Sequence[str]) -> Any:
  """Runs the configurable `job` under the given gin files and `NAME=VALUE` bindings.

  Where they set the macro PHASES = ("one", "two", ...), a job that knows phases is run once for each
  of these names, in order: `one/STEPS = 100` or `one/train.steps = 100` holds in the phase "one" alone,
  whatever is set without a phase. A job that returns False was stopped, and the phases after it are not
  begun.

  Args:
    job: name of the configurable to call, such as "train".
    files: gin files, read in order; a path, or a path inside the library's `gin_configs/`.
    bindings: `NAME=VALUE` strings that win over the files. A value that is no gin literal is a string.

  Returns:
    What the job returns, in the last of its phases.

  Raises:
    ConfigError: an unknown file, name or parameter, an unused macro, a binding out of reach of the job,
      a value of the wrong type.
  """
  result = None
  for phase in configure(job, files, bindings):
    with phase:
      result = CONFIGURABLES[job]()
    if result is False:
      break
  return result


@dataclasses.dataclass(frozen=True)
class Phase:
  """A part of a launch; within it as a context, its settings hold.

  Attributes:
    name: "" for a launch without phases.
    before: the name of the phase before it; "" for the first.
    texts: gin statements of the whole launch.
    own: the names of the settings that are of this phase alone.
  """

  name: str = ""
  before: str = ""
  texts: tuple[str, ...] = ()
  own: tuple[str, ...] = ()

  def __enter__(self) -> None:
    _running.append(self)
    gin.clear_config()
    try:
      gin.parse_config(self.texts)
      # Gin's own scopes end where a macro is read: a setting of the phase would not reach behind one.
      for setting in self.own:
        gin.bind_parameter(setting, gin.query_parameter(f"{self.name}/{setting}"))
    except (ValueError, SyntaxError) as error:
      raise ConfigError(f"gin refuses this launch: {error}") from error

  def __exit__(self, *error: object) -> None:
    _running.pop()


_running: list[Phase] = []


def current_phase() -> Phase:
  """The phase in which the running job was called."""
  return _running[-1] if _running else Phase()


def configure(job: str, files: Sequence[str], bindings: Sequence[str]) -> list[Phase]:
  """Checks a launch without running it, and returns its phases. See `launch`."""
  statements = [s for path in files for s in _read_file(_find(path), ())]
  lines = [_as_gin_line(binding) for binding in bindings]
  statements += [s for line in lines for s in _parse(line, COMMAND_LINE, ())]
  names = _phases(statements)
  _check(job, statements, names)
  texts = (*(_inlined(_find(path)) for path in files), *lines)
  if not names or job not in PHASED:
    return [Phase(texts=texts)]
  return [
    Phase(name, before, texts, tuple({s.setting: None for s in statements if s.scope == name}))
    for before, name in zip(("", *names), names, strict=False)
  ]


def operative_config() -> str:
  """The settings that this launch has used so far, as a gin file that repeats it."""
  return gin.operative_config_str()


def changed_settings(before: str) -> list[str]:
  """What this launch sets otherwise than an operative config did, as "train.steps = 80 (was 40)"."""

  def settings(text: str) -> dict[str, str]:
    # Values that are broken over several lines are joined by gin's own backslash.
    lines = text.replace("\\\n", " ").splitlines()
    pairs = (line.partition(" = ") for line in lines if " = " in line and line[:1] != "#")
    return {name.strip(): " ".join(value.split()) for name, _, value in pairs}

  old, new = settings(before), settings(operative_config())
  shared = sorted(old.keys() & new.keys())
  return [f"{name} = {new[name]} (was {old[name]})" for name in shared if new[name] != old[name]]


CONFIGURABLES: dict[str, Callable[..., Any]] = {}
"""Every factory and job that a gin file can name; filled by `configurable`."""


JOBS: set[str] = set()
"""Those of them that can be launched."""

PHASED: set[str] = set()
"""Those of the jobs that are run once in each phase."""


def configurable(
  function: Callable[..., Any],
  name: str | None = None,
  *,
  job: bool = False,
  phased: bool = False,
) -> Callable[..., Any]:
  """Registers a top-level factory or a job under its name, for gin files to bind."""
  name = name or function.__name__
  if job:
    JOBS.add(name)
  if phased:
    PHASED.add(name)
  checked = typed(function, name, CONFIGURABLES)
  CONFIGURABLES[name] = gin.configurable(name, module="flan_jax")(checked)
  return CONFIGURABLES[name]


@dataclasses.dataclass(frozen=True)
class _Statement:
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


def _find(path: str, where: str = "") -> Path:
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


def _inlined(path: Path) -> str:
  """A file's text with the files that it includes in their places.

  Gin's own search for them would log every folder in which it does not find one.
  """
  text = _text(path)
  return _INCLUDE.sub(lambda match: _inlined(_find(match["path"])), text)


def _read_file(path: Path, above: tuple[Path, ...]) -> Iterator[_Statement]:
  if path.resolve() in above:
    raise ConfigError(f"{above[-1]} includes {path}, which includes it in turn: leave one out.")
  yield from _parse(_text(path), str(path), (*above, path.resolve()))


def _parse(text: str, where: str, above: tuple[Path, ...]) -> Iterator[_Statement]:
  delegate = _References()
  try:
    parser = config_parser.ConfigParser(text, delegate)
    while (statement := parser.parse_statement()) is not None:
      if isinstance(statement, config_parser.IncludeStatement):
        place = f"{where}:{statement.location.line_num}: "
        yield from _read_file(_find(statement.filename, place), above)
      elif isinstance(statement, config_parser.ImportStatement):
        import_module(statement.module)
      elif isinstance(statement, config_parser.BindingStatement):
        yield _Statement(
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


def _as_gin_line(binding: str) -> str:
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


_PHASES = "PHASES"


def _phases(statements: Sequence[_Statement]) -> tuple[str, ...]:
  """What the last definition of the macro PHASES says."""
  found = [s for s in statements if s.selector == _PHASES and not s.argument]
  if not found or not found[-1].value:
    return ()
  names, where = found[-1].value, found[-1].where
  if not isinstance(names, list | tuple) or not all(
    isinstance(name, str) and name.isidentifier() for name in names
  ):
    raise ConfigError(
      f'{where}: PHASES is {names!r}; it must be a list of names, such as ("pretrain", "tune").'
    )
  if len(set(names)) < len(names):
    raise ConfigError(f"{where}: PHASES names a phase twice: {names}.")
  return tuple(names)


def _check_scopes(job: str, statements: Sequence[_Statement], phases: Sequence[str]) -> None:
  """A scope is a phase; what was typed holds in at least one."""
  known = {name for s in statements for name in _phases([s])}
  scoped = {(s.scope, s.name) for s in statements if s.scope}
  here = phases if job in PHASED else ()
  for s in statements:
    if s.scope and s.scope not in (here if s.typed else known):
      close = nearest(s.scope, known)
      hint = f"Did you mean {close[0]!r}?" if close else f"Phases: {', '.join(here) or 'none'}."
      raise ConfigError(
        f"{s.where}: {s.scope}/{s.name} is for a phase that this launch of {job!r} does not have. {hint}"
      )
    if s.typed and not s.scope and here and all((phase, s.name) in scoped for phase in here):
      raise ConfigError(
        f"{s.where}: every phase has a {s.name} of its own, which wins: write --gin.{here[0]}/{s.name}."
      )


def _check(job: str, statements: Sequence[_Statement], phases: Sequence[str]) -> None:
  _check_scopes(job, statements, phases)
  for s in statements:
    if s.argument:
      _check_binding(s)
    for name in s.references:
      _require(name, CONFIGURABLES, "configurable", s.where)
  macros = {s.selector for s in statements if not s.argument}
  _check_cycles(statements)
  for s in statements:
    for name in s.macros:
      _require(name, macros, "macro", s.where)
  _check_reach(job, statements, macros)


def _check_cycles(statements: Sequence[_Statement]) -> None:
  """What is defined by itself has no value: a macro, or what a function makes of its own result."""
  defined: dict[str, list[_Statement]] = {}
  for s in {(s.scope, s.selector, s.argument): s for s in statements}.values():  # the last wins
    defined.setdefault(f"@{s.selector}()" if s.argument else f"%{s.selector}", []).append(s)

  def walk(name: str, above: tuple[str, ...], where: str) -> None:
    if name in above:
      what = f"the macro {name[1:]!r}" if name[0] == "%" else name
      cycle = " = ".join((*above[above.index(name) :], name))
      raise ConfigError(f"{where}: {what} is defined by itself: {cycle}.")
    for s in defined.get(name, ()):
      for each in (*(f"%{macro}" for macro in s.macros), *(f"@{made}()" for made in s.references)):
        walk(each, (*above, name), s.where)

  for name in defined:
    walk(name, (), "")


def _check_binding(s: _Statement) -> None:
  _require(s.selector, CONFIGURABLES, "configurable", s.where)
  parameters = inspect.signature(inspect.unwrap(CONFIGURABLES[s.selector])).parameters
  _require(s.argument, parameters, f"parameter of {s.selector}", s.where)


def _require(name: str, known: Iterable[str] | Mapping[str, Any], kind: str, where: str) -> None:
  known = list(known)
  if name not in known:
    close = nearest(name, known)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."
    raise ConfigError(f"{where}: unknown {kind} {name!r}. {hint}")


def _check_reach(job: str, statements: Sequence[_Statement], macros: set[str]) -> None:
  """What the job never meets would be accepted and ignored.

  A file's binding may lose its use when a later file chooses another model or optimizer, and it may be
  for another job. What was typed on the command line has to take effect.
  """
  # The last one wins.
  effective = list({(s.scope, s.selector, s.argument): s for s in statements}.values())
  used, usable = _reachable({job}, effective), _reachable(JOBS | {job}, statements)
  for s in statements:
    if s.selector in (used if s.typed else usable) or (s.selector == _PHASES and job in PHASED):
      continue
    if s.argument:
      raise ConfigError(
        f"{s.where}: {s.selector}.{s.argument} is set, but this launch of {job!r} never calls "
        f"{s.selector!r}. Remove it, or refer to @{s.selector}() from what is launched."
      )
    known = sorted(used & macros)
    close = nearest(s.selector, known)
    hint = (
      f"Did you mean {close[0]!r}?" if close else f"Macros in use: {', '.join(known) or 'none'}."
    )
    raise ConfigError(
      f"{s.where}: nothing in this launch of {job!r} uses the macro {s.selector!r}. {hint}"
    )


def _reachable(jobs: set[str], statements: Sequence[_Statement]) -> set[str]:
  """Names of the configurables and macros met on a walk from the jobs through the bindings."""
  mentions: dict[str, list[str]] = {}
  for s in statements:
    mentions.setdefault(s.selector, []).extend((*s.references, *s.macros))
  reached, frontier = set[str](), list(jobs)
  while frontier:
    name = frontier.pop()
    if name not in reached:
      reached.add(name)
      frontier += mentions.get(name, ())
  return reached
