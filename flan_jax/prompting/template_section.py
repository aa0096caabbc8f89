"""Reading one template of a dataset file, and finding what is wrong with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flan_jax.errors import nearest
from flan_jax.prompting.answers import Answer
from flan_jax.prompting.placeholders import (
  NAME,
  Piece,
  PlaceholderError,
  names_in,
  options_end_their_line,
  parse,
)
from flan_jax.prompting.sections import Section
from flan_jax.prompting.template import OPTION_SETTINGS, Template, TurnText

TEMPLATE_KEYS = (
  "name",
  "input",
  "target",
  "turns",
  "options",
  "choices",
  "turned_around",
  "unseen",
  "metrics",
)


@dataclass(frozen=True)
class TemplateReader:
  """Reads the templates of one dataset.

  Attributes:
    fields: field -> "text", "long" or "list".
    answer: the dataset's answer.
    metrics: the dataset's metrics.
  """

  fields: Mapping[str, str]
  answer: Answer | None
  metrics: tuple[str, ...]

  def read(self, section: Section) -> Template:
    """The template that a section describes.

    Raises:
      TemplateError: a mistake, with its file and line.
    """
    name = section.text("name")
    if not NAME.fullmatch(name):
      raise section.error(f"a template's name is letters, digits and _, not {name!r}", "name")
    turned_around = section.flag("turned_around")
    turns = _turns(section, name)
    inputs = [self._pieces(turn, name, "input") for turn in turns]
    targets = [self._pieces(turn, name, "target") for turn in turns]
    for turn, asked, answered in zip(turns, inputs, targets, strict=True):
      self._check(turn, name, "input", asked, False, turned_around)
      self._check(turn, name, "target", answered, turn is turns[-1], turned_around)
    if not names_in(targets[-1]):
      raise turns[-1].error(f"template {name!r}: the target is the same for every record", "target")
    texts = [
      TurnText(turn.text("input"), turn.text("target"), turn.flag("loss", True)) for turn in turns
    ]
    return Template(
      name,
      texts,
      long=next((field for field, kind in self.fields.items() if kind == "long"), None),
      answer=self.answer,
      options=_options(section, name, inputs),
      choices=self._choices(section, name),
      turned_around=turned_around,
      unseen=section.flag("unseen"),
      metrics=self._metrics(section, turned_around),
    )

  def _metrics(self, section: Section, turned_around: bool) -> tuple[str, ...]:
    if "metrics" not in section:
      return self.metrics
    return read_metrics(section, None if turned_around else self.answer)

  def _pieces(self, turn: Section, name: str, part: str) -> tuple[Piece, ...]:
    try:
      return parse(turn.text(part))
    except PlaceholderError as error:
      raise turn.error_in_text(part, error.offset, f"template {name!r}: {error}") from error

  def _check(
    self,
    turn: Section,
    name: str,
    part: str,
    pieces: tuple[Piece, ...],
    is_query_target: bool,
    turned_around: bool,
  ) -> None:
    for piece in pieces:
      if piece.is_placeholder:
        mistake = self._mistake(piece.text, part, is_query_target, turned_around)
        if mistake:
          raise turn.error_in_text(part, piece.offset, f"template {name!r}: {mistake}")

  def _mistake(
    self, name: str, part: str, is_query_target: bool, turned_around: bool
  ) -> str | None:
    """What is wrong with a placeholder; None if it may stand where it does."""
    answer = self.answer
    if name == "options":
      return self._options_mistake(part, turned_around)
    is_answer = answer is not None and name in ("answer", answer.field)
    if is_answer and answer is not None and answer.has_choices and name == answer.field != "answer":
      return f"write {{answer}}, which has the words for it, in place of {{{name}}}"
    if is_answer and turned_around and is_query_target:
      return f"turned around, a template has {{{name}}} in its input, not in its target"
    if is_answer and not turned_around and not is_query_target:
      place = "an input" if part == "input" else "an earlier target"
      return f"{{{name}}} in {place} gives the answer away; is the template turned_around?"
    if not is_answer and name not in self.fields:
      known = [*self.fields, "answer", "options"] if answer is not None else list(self.fields)
      close = nearest(name, known)
      hint = f"did you mean {{{close[0]}}}?" if close else f"the fields are {', '.join(known)}"
      return f"unknown field {{{name}}}; {hint}"
    if self.fields.get(name) == "list":
      return f"{{{name}}} is a list; let the derive function join it into a text"
    return None

  def _options_mistake(self, part: str, turned_around: bool) -> str | None:
    if self.answer is None or not self.answer.has_choices:
      return "{options} needs an answer with choices"
    if part == "target":
      return "{options} can only be shown in an input"
    if turned_around:
      return "turned around, a template gives the answer and shows no {options}"
    return None

  def _choices(self, section: Section, name: str) -> dict[str, str] | None:
    if "choices" not in section:
      return None
    labels = self.answer.labels if self.answer else None
    if labels is None:
      raise section.error(
        f"template {name!r} has choices, and the dataset's answer has no fixed ones", "choices"
      )
    words = read_choices(section)
    for label in words:
      if label not in labels:
        raise section.unknown("choice", label, labels, "choices", label)
    missing = [label for label in labels if label not in words]
    if missing:
      raise section.error(f"template {name!r}: the choice {missing[0]!r} is missing", "choices")
    return {label: words[label] for label in labels}


RANKED_METRICS = ("accuracy", "macro_f1", "matthews", "pearson", "spearman")
"""What ranked options may be measured by: all but accuracy compare labels between examples, and the
correlations of `pearson` and `spearman` are of labels that are numbers.
"""

WRITTEN_METRICS = (
  "exact_match",
  "f1",
  "trivia_exact_match",
  "trivia_f1",
  "rouge1",
  "rouge2",
  "rougeL",
  "rougeLsum",
  "bleu",
  "chrf",
)
"""What free text may be measured by."""


def read_metrics(section: Section, answer: Answer | None) -> tuple[str, ...]:
  """The metrics that a section names: the one that counts, then those that are told beside it.

  Args:
    answer: what is asked for, which decides whether options are ranked.

  Raises:
    TemplateError: no such metric, or one that is not for this answer.
  """
  names = section.names("metrics")
  for name in names:
    if name not in (*RANKED_METRICS, *WRITTEN_METRICS):
      known = RANKED_METRICS if answer and answer.has_choices else WRITTEN_METRICS
      raise section.unknown("metric", name, known, "metrics")
    mistake = _metric_mistake(name, answer)
    if mistake:
      raise section.error(mistake, "metrics")
  return names


def _metric_mistake(name: str, answer: Answer | None) -> str | None:
  """Why a metric is not for an answer; None if it is."""
  if answer is None or not answer.has_choices:
    if name in RANKED_METRICS:
      return f"{name} is for an answer with choices; free text has {', '.join(WRITTEN_METRICS)}"
    return None
  if name not in RANKED_METRICS:
    return f"an answer with choices is ranked, which {', '.join(RANKED_METRICS)} measure"
  if name != "accuracy" and answer.labels is None:
    return f"{name} needs the same choices in every record; accuracy does not"
  if name in ("pearson", "spearman"):
    wrong = next((label for label in answer.labels or () if not _is_number(label)), None)
    if wrong is not None:
      return f"{name} needs choices that are numbers, which {wrong!r} is not"
  return None


def _is_number(label: str) -> bool:
  try:
    return math.isfinite(float(label))
  except ValueError:
    return False


def read_choices(section: Section) -> dict[str, str]:
  """Label name -> words, from the key `choices` of a section.

  Raises:
    TemplateError: a choice without words, two with the same words, or fewer than two choices.
  """
  choices = section.data["choices"]
  if not isinstance(choices, dict):
    raise section.error("choices maps label names to words, or names a list field", "choices")
  labels: dict[str, str] = {}
  for label, value in choices.items():
    words = _scalar(value)
    if not words:
      raise section.error(f"the choice {label!r} has no words", "choices", label)
    if words in labels.values():
      raise section.error(f"two choices have the same words, {words!r}", "choices", label)
    labels[_scalar(label)] = words
  if len(labels) < 2:
    raise section.error("an answer with choices needs at least two", "choices")
  return labels


def _turns(section: Section, name: str) -> list[Section]:
  """The sections with the input and target of each turn."""
  single = [key for key in ("input", "target") if key in section]
  if "turns" not in section:
    for key in ("input", "target"):
      if key not in section:
        raise section.error(f"template {name!r} has no {key}")
    return [section]
  if single:
    raise section.error(f"template {name!r} has turns, and {single[0]} beside them", single[0])
  return section.sections("turns", ("input", "target", "loss"), ("input", "target"))


def _options(section: Section, name: str, inputs: list[tuple[Piece, ...]]) -> str:
  """The options setting, checked against the inputs."""
  count = sum(
    piece.is_placeholder and piece.text == "options" for pieces in inputs for piece in pieces
  )
  if count > 1:
    raise section.error(f"template {name!r} shows {{options}} twice")
  setting = section.data.get("options", "any" if count else "none")
  if setting not in OPTION_SETTINGS:
    raise section.unknown("options setting", setting, OPTION_SETTINGS, "options")
  if setting == "none" and count:
    raise section.error(f"template {name!r} shows {{options}} and says options: none", "options")
  if setting != "none" and not count:
    raise section.error(f"template {name!r} has no {{options}} in its input", "options")
  if setting in ("list", "letters") and not all(map(options_end_their_line, inputs)):
    raise section.error(
      f"template {name!r}: options: {setting} takes whole lines, so nothing may follow {{options}} "
      "on its line; inline may stand within a sentence",
      "options",
    )
  return setting


def _scalar(value: Any) -> str:
  """A label or its words as text: YAML reads an unquoted true or 1 as something else."""
  if isinstance(value, bool):
    return "true" if value else "false"
  return str(value).strip() if isinstance(value, (str, int, float)) else ""
