"""Reads gin files and bindings so strictly that every setting which is accepted is obeyed.

Gin itself lets an unused macro pass (`STPES=5`), and a binding for a configurable that the launch never
calls. Here the statements are read once by gin's own parser before gin sees them: each binding must name
a known configurable and one of its parameters, and must be reachable from the job that is launched.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin

from flan_jax.errors import ConfigError, FlanJaxError, nearest
from flan_jax.jobs.gin_files import Statement, as_gin_line, find, inlined, read_statements
from flan_jax.jobs.planned_models import UnreadVocabulary
from flan_jax.jobs.typed_calls import typed


def launch(job: str, files: Sequence[str], bindings: Sequence[str]) -> Any:
  """Runs the configurable `job` under the given gin files and `NAME=VALUE` bindings.

  Where they set the macro PHASES = ("one", "two", ...), a job that knows phases is run once for each
  of these names, in order: `one/STEPS = 100` or `one/train.steps = 100` holds in the phase "one" alone,
  whatever is set without a phase. A job that returns False was stopped, and the phases after it are not
  begun. Training is rehearsed first: what no phase can go on with is told before the first one begins.

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
  phases, result = configure(job, files, bindings), None
  for phase in phases if job in REHEARSED else ():
    if phase.name:
      with dataclasses.replace(phase, rehearsal=True, rehearsed_before=result):
        result = CONFIGURABLES[job]()
  for phase in phases:
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
    before, after: the names of the phases beside it; "" where there is none.
    names: of all phases, in order.
    texts: gin statements of the whole launch.
    own: the names of the settings that are of this phase alone.
    rehearsal: the job is to go as far as it can without beginning its work.
    rehearsed_before: what the rehearsal of the phase before returned.
    planning: shapes alone are asked for; no vocabulary and no parameters are opened.
  """

  name: str = ""
  before: str = ""
  after: str = ""
  names: tuple[str, ...] = ()
  texts: tuple[str, ...] = ()
  own: tuple[str, ...] = ()
  rehearsal: bool = False
  rehearsed_before: Any = None
  planning: bool = False

  def __enter__(self) -> None:
    _running.append(self)
    gin.clear_config()
    try:
      gin.parse_config(self.texts)
      # Gin's own scopes end where a macro is read: a setting of the phase would not reach behind one.
      for setting in self.own:
        gin.bind_parameter(setting, gin.query_parameter(f"{self.name}/{setting}"))
      for setting, unread in _OPENED.items() if self.planning else ():
        gin.bind_parameter(setting, unread)
    except (ValueError, SyntaxError) as error:
      raise ConfigError(f"gin refuses this launch: {error}") from error

  def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> None:
    _running.pop()
    if self.name and isinstance(error, FlanJaxError):
      raise ConfigError(f"phase {self.name}: {error}") from error


_running: list[Phase] = []

# What factories of models open and shapes do not depend on.
_OPENED = {"scratch.vocabulary": UnreadVocabulary(), "pretrained.vocabulary": UnreadVocabulary()}


def current_phase() -> Phase:
  """The phase in which the running job was called."""
  return _running[-1] if _running else Phase()


def configure(job: str, files: Sequence[str], bindings: Sequence[str]) -> list[Phase]:
  """Checks a launch without running it, and returns its phases. See `launch`."""
  statements = read_statements(files, bindings)
  names = _phases(statements)
  _check(job, statements, names)
  texts = (*(inlined(find(path)) for path in files), *map(as_gin_line, bindings))
  if not names or job not in PHASED:
    return [Phase(texts=texts)]
  return [
    Phase(
      name,
      before,
      after,
      names,
      texts,
      tuple({s.setting: None for s in statements if s.scope == name}),
    )
    for before, name, after in zip(("", *names), names, (*names[1:], ""), strict=False)
  ]


def settings_of(job: str) -> dict[str, Any]:
  """What the running launch would call a job with, defaults included, without calling it.

  Raises:
    ConfigError: a parameter is missing, or of the wrong type.
  """
  function = inspect.unwrap(CONFIGURABLES[job])

  @functools.wraps(function)
  def settings(**given: Any) -> dict[str, Any]:
    bound = inspect.signature(function).bind(**given)
    bound.apply_defaults()
    return dict(bound.arguments)

  return typed(settings, job, CONFIGURABLES)(**gin.get_bindings(f"flan_jax.{job}"))


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

REHEARSED: set[str] = set()
"""Those of them that know `Phase.rehearsal`."""


def configurable(
  function: Callable[..., Any],
  name: str | None = None,
  *,
  job: bool = False,
  phased: bool = False,
  rehearsed: bool = False,
) -> Callable[..., Any]:
  """Registers a top-level factory or a job under its name, for gin files to bind."""
  name = name or function.__name__
  if job:
    JOBS.add(name)
  if phased:
    PHASED.add(name)
  if rehearsed:
    REHEARSED.add(name)
  checked = typed(function, name, CONFIGURABLES)
  CONFIGURABLES[name] = gin.configurable(name, module="flan_jax")(checked)
  return CONFIGURABLES[name]


_PHASES = "PHASES"


def _phases(statements: Sequence[Statement]) -> tuple[str, ...]:
  """What the last definition of the macro PHASES says."""
  found = [s for s in statements if s.selector == _PHASES and not s.argument]
  if not found or found[-1].value is None:
    return ()
  names, where = found[-1].value, found[-1].where
  if (
    not names
    or not isinstance(names, list | tuple)
    or not all(isinstance(name, str) and name.isidentifier() for name in names)
  ):
    raise ConfigError(
      f'{where}: PHASES is {names!r}; it must be a list of names, such as ("pretrain", "tune"), or None.'
    )
  if len(set(names)) < len(names):
    raise ConfigError(f"{where}: PHASES names a phase twice: {names}.")
  return tuple(names)


def _check_scopes(job: str, statements: Sequence[Statement], phases: Sequence[str]) -> None:
  """A scope is a phase; what was typed holds in at least one."""
  known = {name for s in statements for name in _phases([s])}
  scoped = {(s.scope, s.name) for s in statements if s.scope}
  here = phases if job in PHASED else ()
  unused = {scope for scope, _ in scoped} - set(phases)
  for phase in here:
    close = nearest(phase, unused)
    if close and phase not in {scope for scope, _ in scoped}:
      raise ConfigError(f"nothing is set for the phase {phase!r}. Did you mean {close[0]!r}?")
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


def _check(job: str, statements: Sequence[Statement], phases: Sequence[str]) -> None:
  _check_scopes(job, statements, phases)
  for s in statements:
    if s.argument:
      _check_binding(s)
    for name in s.references:
      _require(name, CONFIGURABLES, "configurable", s.where)
  macros = {s.selector for s in statements if not s.argument}
  _check_cycles(statements)
  # What a later file has taken the use from may want a macro that nobody gives any more.
  alive = _reachable(JOBS | {job}, _effective(statements))
  for s in statements:
    for name in s.macros if s.selector in alive else ():
      _require(name, macros, "macro", s.where)
  here = {
    phase: [s for s in statements if s.scope in ("", phase)]
    for phase in (phases if job in PHASED else ()) or ("",)
  }
  _check_reach(job, statements, here, macros)
  for phase, those in here.items():
    _check_macros(job, those, phase, statements)


def _check_macros(
  job: str, statements: Sequence[Statement], phase: str, everywhere: Sequence[Statement]
) -> None:
  """A macro that the job needs may be set for other phases alone."""
  effective = _effective(statements)
  needed = _reachable({job}, effective)
  for s in effective:
    for name in s.macros if s.selector in needed else ():
      if any(not each.argument and each.selector == name for each in effective):
        continue
      scopes = sorted({each.scope for each in everywhere if each.selector == name})
      who = f"the phase {phase!r}" if phase else f"this launch of {job!r}"
      raise ConfigError(
        f"{s.where}: {who} has no {name}, which {s.name} takes; it is set for {', '.join(scopes)} alone."
      )


def _check_cycles(statements: Sequence[Statement]) -> None:
  """What is defined by itself has no value: a macro, or what a function makes of its own result."""
  defined: dict[str, list[Statement]] = {}
  for s in _effective(statements):
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


def _check_binding(s: Statement) -> None:
  _require(s.selector, CONFIGURABLES, "configurable", s.where)
  parameters = inspect.signature(inspect.unwrap(CONFIGURABLES[s.selector])).parameters
  _require(s.argument, parameters, f"parameter of {s.selector}", s.where)


def _require(name: str, known: Iterable[str] | Mapping[str, Any], kind: str, where: str) -> None:
  known = list(known)
  if name not in known:
    close = nearest(name, known)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."
    raise ConfigError(f"{where}: unknown {kind} {name!r}. {hint}")


def _check_reach(
  job: str, statements: Sequence[Statement], here: Mapping[str, list[Statement]], macros: set[str]
) -> None:
  """What the job never meets would be accepted and ignored.

  A file's binding may lose its use when a later file chooses another model or optimizer, and it may be
  for another job. What was typed on the command line has to take effect, in its phase if it names one.

  Args:
    here: those of the statements that hold in each phase.
  """
  met = {phase: _reachable({job}, _effective(those)) for phase, those in here.items()}
  usable = _reachable(JOBS | {job}, statements)
  for s in statements:
    used = met[s.scope] if s.scope in met else set[str]().union(*met.values())
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


def _effective(statements: Iterable[Statement]) -> list[Statement]:
  """Of those that set the same in the same scope, the last."""
  return list({(s.scope, s.selector, s.argument): s for s in statements}.values())


def _reachable(jobs: set[str], statements: Sequence[Statement]) -> set[str]:
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
