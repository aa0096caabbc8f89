"""Templates: from the named fields of a record to the turns that a model reads and writes.

A template is compiled once, when its file is read, into `%`-formats over the fields it names, so
that whatever a field holds, braces and percent signs included, stays text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flan_jax.errors import RecordError
from flan_jax.prompting.answers import Answer
from flan_jax.prompting.draw import Draw
from flan_jax.prompting.field_values import shortened, text_of, texts_of
from flan_jax.prompting.options import STYLES, letters, show_options
from flan_jax.prompting.placeholders import (
  CompiledText,
  Piece,
  laid_out,
  names_in,
  options_end_their_line,
  parse,
)

OPTION_SETTINGS = ("any", *STYLES, "none")
"""What a template may say under `options`."""


@dataclass(frozen=True, slots=True)
class Turn:
  """One exchange: what the model reads, what it writes, and whether it is trained to write it."""

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
class TurnText:
  """One turn as its author wrote it, with `{field}`, `{answer}` and `{options}` in it."""

  input: str
  target: str
  loss: bool = True


class Template:
  """One way to put a dataset's records into words.

  Args:
    name: unique within the dataset.
    turns: the texts; the last turn is the query.
    long: the field that `long_limit` shortens.
    answer: where the answers are; None where the target is plain text over the fields.
    options: "any" (a style drawn among those that fit the text), one of `STYLES`, or "none".
    choices: label name -> words, in place of the dataset's words for the same labels.
    turned_around: the template asks for an input given the answer.
    unseen: kept out of training.
    metrics: the metrics of the query.

  Raises:
    PlaceholderError: a text is malformed. Whether the placeholders make sense together is checked
      by the reader of dataset files, which knows the lines.
  """

  def __init__(
    self,
    name: str,
    turns: Sequence[TurnText],
    *,
    long: str | None = None,
    answer: Answer | None = None,
    options: str = "none",
    choices: Mapping[str, str] | None = None,
    turned_around: bool = False,
    unseen: bool = False,
    metrics: Sequence[str] = (),
  ):
    self.name = name
    self.texts = tuple(turns)
    self.options = options
    self.turned_around = turned_around
    self.unseen = unseen
    self.metrics = tuple(metrics)
    self._long = long
    self._answer = answer
    self._choices = choices
    self._compile([parse(turn.input) for turn in turns], [parse(turn.target) for turn in turns])

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
    if len(self._styles) == 1 and not self._shuffled:
      return self._render(record, self._styles[0], None, long_limit)
    stream = draw.fork("options")
    style = self._styles[stream.below(len(self._styles))]
    return self._render(record, style, stream if self._shuffled else None, long_limit)

  def renderings(
    self, record: Mapping[str, Any], long_limit: int | None = None
  ) -> Iterator[Rendering]:
    """The record in every style that a draw could choose, with the options in their own order."""
    for style in self._styles:
      yield self._render(record, style, None, long_limit)

  @property
  def words(self) -> tuple[Any, ...]:
    """What decides the texts beside the answer's own choices, as JSON has it."""
    turns = [(turn.input.strip(), turn.target.strip(), turn.loss) for turn in self.texts]
    choices = list(self._choices.items()) if self._choices else None
    return self.name, turns, self._styles, choices, self._long if self._long in self._used else None

  @property
  def styles(self) -> tuple[str, ...]:
    """The styles that a draw chooses among; ("none",) where the options are not shown."""
    return self._styles

  @property
  def fields(self) -> frozenset[str]:
    """The fields that the texts use."""
    return self._used

  def __repr__(self) -> str:
    return f"Template({self.name!r})"

  def _compile(self, inputs: Sequence[Sequence[Piece]], targets: Sequence[Sequence[Piece]]) -> None:
    answer = self._answer
    has_choices = answer is not None and answer.has_choices
    used = set().union(*map(names_in, (*inputs, *targets)))
    asked = names_in(targets[-1])
    alias = {}
    if answer is not None and not has_choices:
      # In free text {answer} is another name for its field.
      alias = {"answer": answer.field}
      used, asked = ({alias.get(name, name) for name in names} for names in (used, asked))
    self._asks_for_choice = has_choices and "answer" in asked
    self._needs_options = has_choices and bool(used & {"answer", "options"})
    self._asks_for_answer = answer is not None and not has_choices and answer.field in asked
    self._shuffled = self._asks_for_choice and answer is not None and answer.shuffled
    self._names = sorted(used - {"answer", "options"} if has_choices else used)
    self._used = frozenset(self._names)
    if self.options == "any":
      self._styles = STYLES if all(map(options_end_their_line, inputs)) else ("inline",)
    else:
      self._styles = (self.options,)
    self._inputs = {
      style: [CompiledText(laid_out(pieces, style), alias) for pieces in inputs]
      for style in self._styles
    }
    self._targets = [CompiledText(pieces, alias) for pieces in targets]

  def _render(
    self, record: Mapping[str, Any], style: str, order: Draw | None, long_limit: int | None
  ) -> Rendering:
    values = {name: text_of(record, name) for name in self._names}
    if long_limit is not None and self._long in values:
      values[self._long] = shortened(values[self._long], long_limit)
    options: tuple[str, ...] = ()
    golds: tuple[str, ...] = ()
    if self._needs_options:
      options, golds = self._fill_options(record, values, style, order)
    turns = tuple(
      [
        Turn(source.fill(values), target.fill(values), text.loss)
        for source, target, text in zip(self._inputs[style], self._targets, self.texts, strict=True)
      ]
    )
    for turn in turns:
      if not turn.input or not turn.target:
        raise RecordError(self._empty("target" if turn.input else "input", record))
    golds = golds or self._free_golds(record, values) or (turns[-1].target,)
    return Rendering(turns, options, golds, style, self.name)

  def _fill_options(
    self, record: Mapping[str, Any], values: dict[str, str], style: str, order: Draw | None
  ) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Puts {answer} and {options} among the values; returns the candidates and the right ones."""
    assert self._answer is not None
    words, gold = self._answer.options(record, self._choices)
    if order is not None:
      words = [words[i] for i in order.shuffled(len(words))]
    if style != "none":
      values["options"] = show_options(words, style)
    if not self._asks_for_choice:
      values["answer"] = gold
      return (), ()
    shown = letters(len(words)) if style == "letters" else words
    values["answer"] = shown[words.index(gold)]
    candidates = self._targets[-1].fill_each(values, "answer", shown)
    right = [target for target, word in zip(candidates, words, strict=True) if word == gold]
    return tuple(candidates), tuple(dict.fromkeys(right))

  def _free_golds(self, record: Mapping[str, Any], values: dict[str, str]) -> tuple[str, ...]:
    answer = self._answer
    if answer is None or answer.golds_field is None or not self._asks_for_answer:
      return ()
    accepted = [gold for gold in texts_of(record, answer.golds_field) if gold]
    return tuple(dict.fromkeys(self._targets[-1].fill_each(values, answer.field, accepted)))

  def _empty(self, part: str, record: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}: {str(value)[:40]!r}" for name, value in record.items())
    return f"template {self.name!r}: the {part} is empty for {{{shown}}}"
