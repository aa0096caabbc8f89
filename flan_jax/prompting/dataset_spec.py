"""What a dataset file says, checked and compiled."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flan_jax.errors import RecordError, UnknownName
from flan_jax.prompting.answers import Answer
from flan_jax.prompting.derive import derive_function, source_of
from flan_jax.prompting.field_values import text_of, texts_of
from flan_jax.prompting.placeholders import CompiledText
from flan_jax.prompting.promptsource import AnyTemplate

RENDERING_VERSION = 2
"""Part of every fingerprint; raised whenever the same template and draw come to give another text."""


@dataclass(frozen=True)
class DatasetSpec:
  """One dataset: where it comes from, what its records hold, and the templates that put them into words.

  Attributes:
    name: the file's stem.
    cluster: the task cluster.
    path: the file; of a dataset given from Python its name.
    folder: what the file patterns of the source are relative to.
    source: where the records come from; read by `flan_jax.data`.
    splits: split -> part of the source, or split -> fraction of all records.
    group: the fields whose equal values never cross splits; () where each record stands alone.
    unique: the fields whose normalised text makes a record a duplicate.
    at_most: {field: n} where of the records with the same value of the field n are kept in a split at
      most, chosen by hash; {} where all are.
    balance: among records with equal values of these fields every label is kept equally often, so
      that the fields alone tell nothing about the answer; () where all records are kept.
    derive: "module:function", record -> record or None; None where records are used as they come.
    fields: field -> "text", "long" or "list"; {} where promptsource's templates read the raw record.
    long: the one field that may be shortened.
    record: a realistic raw record, on which every template was tried when the file was read.
    templates: () where the dataset is nothing but running text.
    text: what a record says as running text; None where it is not used as such.
  """

  name: str
  cluster: str
  path: Path
  folder: Path
  description: str
  source: Mapping[str, Any]
  splits: Mapping[str, str | float]
  group: tuple[str, ...]
  unique: tuple[str, ...]
  at_most: Mapping[str, int]
  balance: tuple[str, ...]
  derive: str | None
  fields: Mapping[str, str]
  long: str | None
  answer: Answer | None
  metrics: tuple[str, ...]
  licence: str
  citation: str
  url: str
  record: Mapping[str, Any]
  templates: tuple[AnyTemplate, ...]
  text: CompiledText | None
  data: Mapping[str, Any] = field(repr=False)

  def template(self, name: str) -> AnyTemplate:
    """The template of this name.

    Raises:
      UnknownName: there is none.
    """
    for template in self.templates:
      if template.name == name:
        return template
    names = [template.name for template in self.templates]
    raise UnknownName("template", name, names, f"`flan-jax templates {self.name}` shows them.")

  def training_templates(self) -> tuple[AnyTemplate, ...]:
    """The templates that training may draw: those that are not `unseen`."""
    return tuple(template for template in self.templates if not template.unseen)

  def evaluation_templates(self) -> tuple[AnyTemplate, ...]:
    """The templates that evaluation scores: those that are not turned around."""
    return tuple(template for template in self.templates if not template.turned_around)

  @property
  def evaluation_split(self) -> str:
    """The split that is judged unless another is asked for: many a test split is published without answers."""
    return "test" if "test" in self.splits else "validation"

  @property
  def keeps_raw_records(self) -> bool:
    """Whether a record is kept as its source gives it, for promptsource's templates to read."""
    return not self.fields

  @cached_property
  def asked_fields(self) -> tuple[str, ...]:
    """The fields that do not hold the answer; all of them, or () for a raw record's, where there is no other."""
    answers = {self.answer.field, self.answer.golds_field} if self.answer else set()
    return tuple(name for name in self.fields if name not in answers) or tuple(self.fields)

  @cached_property
  def label_field(self) -> str | None:
    """The field that holds the answer where that is one of some choices."""
    return self.answer.field if self.answer and self.answer.has_choices else None

  def derive_record(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """A raw record's fields as text and lists of text: those declared, grouped by, counted or balanced.

    Where promptsource's templates read the raw record, it is that.

    Returns:
      None if the derive function dropped the record.

    Raises:
      RecordError: the derive function failed, a field is missing or of the wrong kind, or the
        answer is not among the options.
    """
    record: Any = dict(raw)
    if self.derive is not None:
      try:
        record = derive_function(self.derive)(record)
      except Exception as error:
        raise RecordError(
          f"dataset {self.name!r}: {self.derive} failed with {type(error).__name__}: {error}; "
          f"the record has {', '.join(map(str, raw)) or 'no fields'}"
        ) from error
      if record is None:
        return None
      if not isinstance(record, Mapping):
        raise RecordError(
          f"dataset {self.name!r}: {self.derive} should return a dict or None, not {record!r:.80}"
        )
    try:
      return self._checked(record)
    except RecordError as error:
      raise RecordError(f"dataset {self.name!r}: {error}") from None

  @cached_property
  def fingerprint(self) -> str:
    """SHA-256 of what decides the texts that a record is trained on: the templates that are not `unseen`,
    the answer's choices, the way of rendering.

    What is only told (description, licence), tried (the record) or evaluated (metrics, other templates)
    has no part in it.
    """
    answer = self.answer
    choices = list(answer.labels.items()) if answer and answer.labels else None
    said = (choices, answer.field, answer.options_field, answer.shuffled) if answer else None
    templates = [template.words for template in self.training_templates()]
    return _sha256(self.name, RENDERING_VERSION, said, templates)

  @cached_property
  def records_fingerprint(self) -> str:
    """SHA-256 of what decides the derived records and their splits, the source apart; templates have no
    part in it, nor have the words of the choices."""
    answer = self.answer
    said = (answer.field, sorted(answer.labels or ()), answer.options_field) if answer else None
    names = (self.group, self.unique, self.balance, self.derive)
    pairs = (list(self.splits.items()), list(self.fields.items()), list(self.at_most.items()))
    return _sha256(self.name, *pairs, *names, said, self._derive_source)

  @property
  def _derive_source(self) -> str:
    return source_of(derive_function(self.derive)) if self.derive is not None else ""

  def _checked(self, record: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = dict(record) if self.keeps_raw_records else {}
    for name, kind in self.fields.items():
      checked[name] = texts_of(record, name) if kind == "list" else text_of(record, name)
    for name in (*self.group, *self.unique, *self.at_most, *self.balance):
      if name not in checked:
        checked[name] = text_of(record, name)
    if self.answer is not None and self.answer.has_choices:
      self.answer.options(checked)
    return checked


def _sha256(*parts: Any) -> str:
  # Keys are not sorted: the order of the choices is the order in which they are shown.
  text = json.dumps(parts, ensure_ascii=False)
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
