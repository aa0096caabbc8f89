"""Templates: from the named fields of a record to the turns that a model reads and writes.

A template is compiled once, when its file is read, into `%`-formats over the fields it names, so
that whatever a field holds, braces and percent signs included, stays text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flan_jax.errors import RecordError, TemplateError, nearest
from flan_jax.prompting.draw import Draw
from flan_jax.prompting.options import BLOCK_STYLES, STYLES, letters, show_options

OPTION_SETTINGS = ("any", *STYLES, "none")
"""What a template may say under `options`."""


@dataclass(frozen=True, slots=True)
class Turn:
  """One exchange: what the model reads, what it should write, and whether it is trained to write it."""

  input: str
  target: str
  loss: bool = True


@dataclass(frozen=True, slots=True)
class Rendering:
  """A record in words.

  Attributes:
    turns: few-shot exemplars, then earlier turns of a conversation, then the query.
    options: the candidate targets of the query, in the order shown; empty for free text.
    golds: the accepted targets of the query; where there are options, those that are right.
    style: how the options are shown: "list", "letters", "inline" or "none".
    template: the template's name.
    shots: the number of turns of each few-shot exemplar, in order.
  """

  turns: tuple[Turn, ...]
  options: tuple[str, ...]
  golds: tuple[str, ...]
  style: str
  template: str
  shots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
  """Where a dataset keeps its answers.

  Attributes:
    field: holds the label's name (fixed choices), the right option's text, or the answer itself.
    labels: label name -> words, for fixed choices.
    options_field: the list field with each record's own options.
    shuffled: whether the options are shown in a drawn order.
    golds_field: the list field with every accepted answer (free text).
  """

  field: str
  labels: Mapping[str, str] | None = None
  options_field: str | None = None
  shuffled: bool = False
  golds_field: str | None = None

  @property
  def has_choices(self) -> bool:
    return self.labels is not None or self.options_field is not None


@dataclass(frozen=True)
class TurnText:
  """One turn as the template's author wrote it, with `{field}`, `{answer}` and `{options}` in it."""

  input: str
  target: str
  loss: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
  """A stretch of literal text, or the name of a placeholder, and where in the text it began."""

  text: str
  is_placeholder: bool
  offset: int


class Template:
  """One way to put a dataset's records into words.

  Args:
    name: unique within the dataset.
    turns: the texts; the last turn is the query.
    fields: field name -> "text", "long" or "list".
    answer: where the answers are; None where the target is plain text over the fields.
    options: "any" (a style drawn among those that fit), one of `STYLES`, or "none".
    choices: label name -> words, in place of the dataset's words for the same labels.
    turned_around: the template asks for an input given the answer.
    unseen: kept out of training.
    metrics: the metrics of the query.

  Raises:
    TemplateError: the texts are not well formed. The reader of dataset files says more about where.
  """

  def __init__(
    self,
    name: str,
    turns: Sequence[TurnText],
    fields: Mapping[str, str],
    answer: Answer | None = None,
    *,
    options: str = "none",
    choices: Mapping[str, str] | None = None,
    turned_around: bool = False,
    unseen: bool = False,
    metrics: Sequence[str] = (),
  ):
    self.name = name
    self.texts = tuple(turns)
    self.turned_around = turned_around
    self.unseen = unseen
    self.metrics = tuple(metrics)
    self.options = options
    self.fields_used: frozenset[str] = frozenset()
    self._long = next((field for field, kind in fields.items() if kind == "long"), None)
    self._answer = answer
    labels = choices if choices is not None else answer.labels if answer else None
    self._label_words = (
      {label: words.strip() for label, words in labels.items()} if labels else None
    )
    self._label_names = list(self._label_words) if self._label_words else []
    self._compile(fields)

  def render(
    self, record: Mapping[str, Any], draw: Draw, long_limit: int | None = None
  ) -> Rendering:
    """The record in this template's words.

    Args:
      record: the fields, after the dataset's `derive`.
      draw: chooses the style and, where the dataset says so, the order of the options. It is
        forked, not read, so the same draw always gives the same choice, at any `long_limit`.
      long_limit: how many characters of the long field to keep at most, cut between words.

    Raises:
      RecordError: a field is missing or of the wrong kind, the answer is not among the options,
        or a text comes out empty.
    """
    style, order = self._style_and_order(record, draw)
    return self._render(record, style, order, long_limit)

  def styles(self) -> tuple[str, ...]:
    """The styles that a draw may choose among; ("none",) where no options are shown."""
    return self._styles

  def every_rendering(
    self, record: Mapping[str, Any], long_limit: int | None = None
  ) -> Iterator[Rendering]:
    """The record in every style, with the options in their own order."""
    for style in self._styles:
      yield self._render(record, style, None, long_limit)

  def __repr__(self) -> str:
    return f"Template({self.name!r})"

  # Compiling.

  def _compile(self, fields: Mapping[str, str]) -> None:
    inputs = [parse(turn.input) for turn in self.texts]
    targets = [parse(turn.target) for turn in self.texts]
    used = {
      piece.text for pieces in (*inputs, *targets) for piece in pieces if piece.is_placeholder
    }
    self._styles = self._fitting_styles(inputs)
    free_answer = self._answer.field if self._answer and not self._answer.has_choices else None
    # In free text {answer} is nothing but its field.
    alias = {"answer": free_answer} if free_answer else {}
    names = {alias.get(name, name) for name in used} - {"options"}
    if not self._answer or free_answer:
      self._fields = tuple(sorted(names))
    else:
      self._fields = tuple(sorted(names - {"answer"}))
    self.fields_used = frozenset(self._fields) | (
      {self._answer.field} if "answer" in used and self._answer else set()
    )
    self._asks_for_choice = bool(
      self._answer and self._answer.has_choices and "answer" in used_in(targets[-1])
    )
    self._needs_words = bool(self._answer and self._answer.has_choices and "answer" in used)
    self._asks_for_answer = bool(free_answer and used_in(targets[-1]) & {"answer", free_answer})
    shown = self._styles if self._styles != ("none",) else ("none",)
    self._input_formats = {
      style: tuple(_Format(_laid_out(pieces, style), alias) for pieces in inputs) for style in shown
    }
    self._target_formats = tuple(_Format(pieces, alias) for pieces in targets)
    self._losses = tuple(turn.loss for turn in self.texts)
    del fields

  def _fitting_styles(self, inputs: Sequence[Sequence[Piece]]) -> tuple[str, ...]:
    if self.options == "none":
      return ("none",)
    if self.options != "any":
      return (self.options,)
    return STYLES if all(ends_its_line(pieces) for pieces in inputs) else ("inline",)

  # Rendering.

  def _style_and_order(self, record: Mapping[str, Any], draw: Draw) -> tuple[str, list[int] | None]:
    styles = self._styles
    shuffled = self._answer is not None and self._answer.shuffled and self._asks_for_choice
    if len(styles) == 1 and not shuffled:
      return styles[0], None
    stream = draw.fork("options")
    style = styles[stream.below(len(styles))]
    if not shuffled:
      return style, None
    return style, stream.shuffled(self._option_count(record))

  def _option_count(self, record: Mapping[str, Any]) -> int:
    if self._label_words is not None:
      return len(self._label_words)
    assert self._answer is not None and self._answer.options_field is not None
    return len(list_of_texts(record, self._answer.options_field))

  def _render(self, record, style, order, long_limit):
    values = {name: text_of(record, name) for name in self._fields}
    if long_limit is not None and self._long in values:
      values[self._long] = shortened(values[self._long], long_limit)
    options: tuple[str, ...] = ()
    words: Sequence[str] = ()
    right: list[int] = []
    if self._needs_words or style != "none":
      words, right = self._words(record, order)
      if style != "none":
        values["options"] = show_options(words, style)
    last = self._target_formats[-1]
    if self._asks_for_choice:
      shown = letters(len(words)) if style == "letters" else words
      options = tuple(last.fill({**values, "answer": word}) for word in shown)
      golds = tuple(dict.fromkeys(options[i] for i in right))
      values["answer"] = shown[right[0]]
    elif self._needs_words:
      values["answer"] = words[right[0]]
    turns = tuple(
      Turn(source.fill(values), target.fill(values), loss)
      for source, target, loss in zip(
        self._input_formats[style], self._target_formats, self._losses, strict=True
      )
    )
    if not self._asks_for_choice:
      golds = self._free_golds(record, values, turns[-1].target)
    for turn in turns:
      if not turn.input or not turn.target:
        part = "target" if turn.input else "input"
        raise RecordError(f"template {self.name!r}: the {part} is empty for {_excerpt(record)}")
    return Rendering(turns, options, golds, style, self.name)

  def _words(
    self, record: Mapping[str, Any], order: list[int] | None
  ) -> tuple[Sequence[str], list[int]]:
    """The options' words in the order shown, and which of them are right."""
    assert self._answer is not None
    if self._label_words is not None:
      label = label_of(record, self._answer.field, self._label_names)
      words: Sequence[str] = list(self._label_words.values())
      gold = self._label_words[label]
    else:
      assert self._answer.options_field is not None
      words = list_of_texts(record, self._answer.options_field)
      gold = text_of(record, self._answer.field)
    if order is not None:
      words = [words[i] for i in order]
    right = [i for i, word in enumerate(words) if word == gold]
    if not right:
      raise RecordError(
        f"the answer {gold!r} (field {self._answer.field!r}) is not among the options {list(words)!r}"
      )
    return words, right

  def _free_golds(
    self, record: Mapping[str, Any], values: dict[str, str], target: str
  ) -> tuple[str, ...]:
    golds_field = self._answer.golds_field if self._answer and self._asks_for_answer else None
    if golds_field is None or self._answer is None:
      return (target,)
    last = self._target_formats[-1]
    accepted = list_of_texts(record, golds_field)
    golds = (last.fill({**values, self._answer.field: gold}) for gold in accepted if gold)
    return tuple(dict.fromkeys(golds)) or (target,)


def parse(text: str) -> tuple[Piece, ...]:
  """A template's text as literal pieces and placeholders; `{{` and `}}` are literal braces.

  Raises:
    PlaceholderError: a brace stands alone, or holds more than a field's name.
  """
  pieces: list[Piece] = []
  for match in _TOKEN.finditer(text):
    token = match.group()
    if match.lastgroup == "literal":
      pieces.append(Piece(token, False, match.start()))
    elif match.lastgroup == "escaped":
      pieces.append(Piece(token[0], False, match.start()))
    elif match.lastgroup == "field":
      pieces.append(Piece(token[1:-1], True, match.start()))
    else:
      raise PlaceholderError(_wrong_brace(text, match.start()), match.start())
  return tuple(pieces)


class PlaceholderError(TemplateError):
  """A brace that is no `{field}`; `offset` says where in the text."""

  def __init__(self, message: str, offset: int):
    super().__init__(message)
    self.offset = offset


def used_in(pieces: Sequence[Piece]) -> set[str]:
  """The names of the placeholders."""
  return {piece.text for piece in pieces if piece.is_placeholder}


def ends_its_line(pieces: Sequence[Piece]) -> bool:
  """Whether nothing follows `{options}` on its line, so that a style may take whole lines."""
  text = "".join(
    "\0" if piece.is_placeholder and piece.text == "options" else piece.text for piece in pieces
  )
  return all(not rest.split("\n", 1)[0].strip() for rest in text.split("\0")[1:])


def text_of(record: Mapping[str, Any], name: str) -> str:
  """The field as text without white space around it; numbers and truth values as JSON writes them.

  Raises:
    RecordError: the field is missing, null, a list or a mapping.
  """
  try:
    value = record[name]
  except KeyError:
    raise RecordError(_missing(record, name)) from None
  if type(value) is str:
    return value.strip()
  return _as_text(value, name)


def list_of_texts(record: Mapping[str, Any], name: str) -> list[str]:
  """The field as a list of texts.

  Raises:
    RecordError: the field is missing, or is not a list of texts.
  """
  try:
    value = record[name]
  except KeyError:
    raise RecordError(_missing(record, name)) from None
  if not isinstance(value, (list, tuple)):
    raise RecordError(f"field {name!r} should be a list of texts, not {value!r:.80}")
  return [item.strip() if type(item) is str else _as_text(item, name) for item in value]


def label_of(record: Mapping[str, Any], name: str, labels: Sequence[str]) -> str:
  """The field as one of the label names.

  Raises:
    RecordError: it is none of them.
  """
  label = text_of(record, name)
  if label not in labels:
    close = nearest(label, labels)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise RecordError(
      f"field {name!r} is {label!r:.80}; {hint}the choices are {', '.join(map(repr, labels))}"
    )
  return label


def shortened(text: str, limit: int) -> str:
  """At most `limit` characters of the beginning of the text, cut between words where there are two."""
  if len(text) <= limit:
    return text
  if limit <= 0:
    return ""
  kept = text[:limit]
  if not text[limit].isspace():
    words = kept.rsplit(None, 1)
    if kept[-1].isspace() or len(words) == 2:
      kept = kept if kept[-1].isspace() else words[0]
  return kept.rstrip()


class _Format:
  """Compiled text: fills in the values of its placeholders and strips the result."""

  __slots__ = ("_bare", "_format", "_names")

  def __init__(self, pieces: Sequence[Piece], alias: Mapping[str, str]):
    names = [alias.get(piece.text, piece.text) for piece in pieces if piece.is_placeholder]
    self._format = "".join(
      "%s" if piece.is_placeholder else piece.text.replace("%", "%%") for piece in pieces
    )
    self._names = tuple(names)
    self._bare = names[0] if self._format == "%s" else None

  def fill(self, values: Mapping[str, str]) -> str:
    if self._bare is not None:
      return values[self._bare]
    return (self._format % tuple([values[name] for name in self._names])).strip()


_TOKEN = re.compile(
  r"(?P<escaped>\{\{|\}\})|(?P<field>\{[A-Za-z_][A-Za-z0-9_]*\})|(?P<literal>[^{}]+)|(?P<wrong>[{}])"
)


def _wrong_brace(text: str, offset: int) -> str:
  excerpt = text[offset : offset + 30].split("\n")[0]
  return f"{excerpt!r}: only {{field}} can stand in braces; write {{{{ or }}}} for a brace itself"


def _laid_out(pieces: Sequence[Piece], style: str) -> list[Piece]:
  """The pieces with a line break before options that take whole lines, unless they begin a line already."""
  if style not in BLOCK_STYLES:
    return list(pieces)
  laid_out: list[Piece] = []
  for piece in pieces:
    if piece.is_placeholder and piece.text == "options" and laid_out:
      before = laid_out[-1]
      if before.is_placeholder:
        laid_out.append(Piece("\n", False, piece.offset))
      else:
        text = before.text.rstrip(" \t")
        laid_out[-1] = Piece(text if text.endswith("\n") else text + "\n", False, before.offset)
    laid_out.append(piece)
  return laid_out


def _as_text(value: Any, name: str) -> str:
  if isinstance(value, str):
    return value.strip()
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, (int, float)):
    return str(value)
  kind = "null" if value is None else f"{type(value).__name__} {value!r:.80}"
  raise RecordError(
    f"field {name!r} should be text, not {kind}; let the dataset's derive function drop or mend it"
  )


def _missing(record: Mapping[str, Any], name: str) -> str:
  close = nearest(name, [key for key in record if isinstance(key, str)])
  hint = f"did you mean {close[0]!r}? " if close else ""
  return (
    f"field {name!r} is missing; {hint}the record has {', '.join(map(str, record)) or 'no fields'}"
  )


def _excerpt(record: Mapping[str, Any]) -> str:
  return "{" + ", ".join(f"{key}: {str(value)[:40]!r}" for key, value in record.items()) + "}"
