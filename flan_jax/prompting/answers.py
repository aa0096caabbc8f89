"""Where a dataset keeps its answers, and the words for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flan_jax.errors import RecordError, nearest
from flan_jax.prompting.field_values import text_of, texts_of


@dataclass(frozen=True)
class Answer:
  """The answers of a dataset: among fixed choices, among each record's own options, or free text.

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

  def options(
    self, record: Mapping[str, Any], labels: Mapping[str, str] | None = None
  ) -> tuple[Sequence[str], str]:
    """What the options say, in their own order, and which words are right.

    Args:
      record: the fields, after the dataset's `derive`.
      labels: other words for the same label names.

    Raises:
      RecordError: the answer is not among the options, or there are fewer than two of them.
    """
    gold = text_of(record, self.field)
    if self.labels is not None:
      labels = labels or self.labels
      if gold not in labels:
        raise RecordError(self._unknown_label(gold))
      return tuple(labels.values()), labels[gold]
    assert self.options_field is not None, "free text has no options"
    words = texts_of(record, self.options_field)
    if gold not in words:
      raise RecordError(
        f"the answer {gold!r} (field {self.field!r}) is not among the options {words!r}"
      )
    if len(words) < 2 or not all(words):
      raise RecordError(
        f"field {self.options_field!r} should hold at least two options, none empty, not {words!r}"
      )
    return words, gold

  def _unknown_label(self, label: str) -> str:
    known = list(self.labels or ())
    close = nearest(label, known)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
      f"field {self.field!r} is {label!r:.80}; {hint}the choices are {', '.join(map(repr, known))}"
    )
