"""Templates of promptsource (Bach et al. 2022, "PromptSource"): Jinja over the raw record, as T0 was tuned on.

A `templates.yaml` holds the templates of one dataset. Each is compiled once, in Jinja's sandbox, and gives the
text that promptsource 0.2.3 gives, but for what is mended here:

- `choice` and Jinja's `random` draw from the example's own draw, not from the global random state;
- a value is cut at 2,048 characters whatever expression it comes from: promptsource puts its filter behind the
  last operand, so that a sum of texts is hardly cut and one that ends in a number fails;
- `|||` in any value, lists and mappings included, is text; only the template's own separates input and target.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml
from jinja2.filters import do_truncate
from jinja2.runtime import Context

from flan_jax.errors import RecordError, TemplateError
from flan_jax.prompting.draw import Draw
from flan_jax.prompting.template import Rendering, Template, Turn, TurnText

VALUE_LIMIT = 2048
"""Characters that a value may have in a prompt; what is cut ends in "..."."""

_SEPARATOR = "|||"
_MARK = "\x00|\x00"  # stands for the separator where the template's author wrote it
_BARS = (
  "3ed2dface8203c4c9dfb1a5dc58e41e0"  # what authors write for bars that are text, as in multi_news
)
_DRAW, _LIMIT = " draw", " limit"  # variables that no template can name
_METRICS = {  # in the order in which they count, whatever order their authors wrote
  "ROUGE": ("rougeL", "rouge1", "rouge2"),
  "BLEU": ("bleu",),
  "Squad": ("f1", "exact_match"),
  "COQA F1": ("f1",),
  "Trivia QA": ("trivia_f1", "trivia_exact_match"),
}


class DoesNotApply(RecordError):
  """A template is for some records only, and not for this one."""


class PromptsourceTemplate:
  """One template; renders like `Template`, from the record as its source gives it.

  Args:
    title: what promptsource calls it; `name` is the same with letters, digits and _ alone.
    jinja: input and target, with `|||` between them.
    answer_choices: Jinja for the candidate targets, with `|||` between them; None for free text.
    metrics: as promptsource names them.
    original_task: it asks what the dataset was made for; others are trained on and not judged.

  Raises:
    TemplateError: the Jinja is malformed.
  """

  unseen = False
  styles = ("none",)

  def __init__(
    self,
    title: str,
    jinja: str,
    *,
    answer_choices: str | None = None,
    metrics: Sequence[str] = (),
    original_task: bool = True,
  ):
    self.title, self.name = title, template_name(title)
    self.turned_around = not original_task
    self.metrics = _metrics(metrics, answer_choices is not None)
    self._jinja, self._choices_jinja = jinja, answer_choices or ""
    try:
      self._template = _compiled(jinja)
      self._choices = None if answer_choices is None else _compiled(answer_choices)
    except jinja2.TemplateSyntaxError as error:
      raise TemplateError(f"template {title!r}: {error}") from error

  @property
  def words(self) -> tuple[str, str, str]:
    """Title, Jinja and answer choices, which decide what it renders."""
    return self.title, self._jinja, self._choices_jinja

  @cached_property
  def texts(self) -> tuple[TurnText, ...]:
    """Input and target as their author wrote them."""
    source, _, target = self._jinja.partition(_SEPARATOR)
    return (TurnText(source.strip(), target.strip()),)

  @cached_property
  def fields(self) -> frozenset[str]:
    """The fields that the Jinja reads."""
    trees = map(_environment.parse, (self._jinja, self._choices_jinja))
    names = set().union(*map(jinja2.meta.find_undeclared_variables, trees))
    return frozenset(names - {"answer_choices"})

  def parts(
    self, record: Mapping[str, Any], draw: Draw, limit: int = VALUE_LIMIT
  ) -> tuple[list[str], list[str] | None]:
    """What promptsource's `apply` and `get_answer_choices_list` give: the parts, and the choices.

    Args:
      limit: characters of each value at most, in the parts.

    Raises:
      RecordError: the Jinja fails on this record.
    """
    choices = None
    if self._choices is not None:
      choices = self._split(self._choices, record, draw.fork("answer choices"), None)
    given = {**record, "answer_choices": choices}
    return self._split(self._template, given, draw.fork("template"), limit), choices

  def render(
    self, record: Mapping[str, Any], draw: Draw, long_limit: int | None = None
  ) -> Rendering:
    """The record in this template's words.

    Args:
      record: as the source gives it.
      draw: what `choice` draws from. It is forked, not read.
      long_limit: characters of each value in the input at most.

    Raises:
      DoesNotApply: input or target come out empty, or there are more than these two parts.
      RecordError: the Jinja fails on this record.
    """
    parts, choices = self.parts(record, draw)
    if len(parts) != 2 or not all(parts):
      found = f"{sum(map(bool, parts))} of {len(parts)} parts have text"
      raise DoesNotApply(f"template {self.title!r} does not give one input and one target: {found}")
    prompt, target = parts
    if long_limit is not None and long_limit < VALUE_LIMIT:
      (prompt, *_), _ = self.parts(record, draw, long_limit)
    options = tuple(dict.fromkeys(choices or ()))
    if target not in options or not all(options) or len(options) < 2:
      options = ()
    return Rendering((Turn(prompt, target),), options, (target,), "none", self.name)

  def renderings(
    self, record: Mapping[str, Any], long_limit: int | None = None
  ) -> Iterator[Rendering]:
    """The record as one draw renders it."""
    yield self.render(record, Draw(self.name), long_limit)

  def __repr__(self) -> str:
    return f"PromptsourceTemplate({self.title!r})"

  def _split(
    self, template: jinja2.Template, record: Mapping[str, Any], draw: Draw, limit: int | None
  ) -> list[str]:
    try:
      text = template.render({**record, _DRAW: draw, _LIMIT: limit})
    except Exception as error:  # whatever an expression over a stranger's record may raise
      raise RecordError(
        f"template {self.title!r} fails with {type(error).__name__}: {error}"
      ) from error
    return [part.strip() for part in text.split(_MARK)]


AnyTemplate = Template | PromptsourceTemplate
"""What a dataset's templates are: all of the one kind, or all of the other."""


def read_promptsource(path: str | Path) -> tuple[PromptsourceTemplate, ...]:
  """The templates of one of promptsource's `templates.yaml`, in the order of the file.

  Raises:
    TemplateError: the file is missing or no such file, or a template is malformed.
  """
  try:
    entries = yaml.load(Path(path).read_bytes(), _Loader)["templates"].values()
    return tuple(map(_from_entry, entries))
  except FileNotFoundError as error:
    raise TemplateError(f"{path}: there is no such file of promptsource's templates") from error
  except TemplateError as error:
    raise TemplateError(f"{path}: {error}") from error
  except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
    raise TemplateError(f"{path} is no templates.yaml of promptsource: {error!r}") from error


def template_name(title: str) -> str:
  """A title with its letters, digits and _ alone, as T0 names its tasks."""
  return re.sub(r"[^\w.]+", "_", title, flags=re.ASCII).strip("_")


def _from_entry(entry: Mapping[str, Any]) -> PromptsourceTemplate:
  metadata = entry.get("metadata") or {}
  return PromptsourceTemplate(
    entry["name"],
    entry["jinja"],
    answer_choices=entry.get("answer_choices"),
    metrics=metadata.get("metrics") or (),
    original_task=metadata.get("original_task") is not False,
  )


def _compiled(jinja: str) -> jinja2.Template:
  return _environment.from_string(jinja.replace(_SEPARATOR, _MARK).replace(_BARS, _SEPARATOR))


def _metrics(names: Sequence[str], has_choices: bool) -> tuple[str, ...]:
  if has_choices:
    return ("accuracy",)
  found = [metric for name in _METRICS if name in names for metric in _METRICS[name]]
  if not found or any(name not in _METRICS for name in names):
    found.append("exact_match")
  return tuple(dict.fromkeys(found))


@jinja2.pass_context
def _shown(context: Context, value: Any) -> str:
  """An expression's value as text, cut to the limit."""
  text = value if type(value) is str else str(value)
  limit = context.parent.get(_LIMIT)
  return text if limit is None or len(text) <= limit else do_truncate(_environment, text, limit)


@jinja2.pass_context
def _choice(context: Context, items: Sequence[Any]) -> Any:
  """One of the items, drawn."""
  return items[context.parent[_DRAW].below(len(items))]


def _most_frequent(items: Sequence[Any]) -> list[Any] | None:
  """The items that no other is more frequent than, in the order of their first appearance."""
  counts = Counter(items)
  most = max(counts.values(), default=0)
  return [item for item, count in counts.items() if count == most] or None


class _Loader(yaml.CSafeLoader):
  """Reads promptsource's tags as mappings."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
  return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
  _Loader.add_constructor(_tag, _mapping)

_environment = jinja2.sandbox.SandboxedEnvironment(finalize=_shown)
_environment.globals["zip"] = zip
_environment.filters.update(
  choice=_choice,
  random=_choice,
  most_frequent=_most_frequent,
  highlight=lambda text: f"<span style='color: #F08080'>{text}</span>",
)
