"""The values of a record's fields, as text."""

from collections.abc import Mapping
from typing import Any

from flan_jax.errors import RecordError, nearest


def text_of(record: Mapping[str, Any], name: str) -> str:
  """The field without white space around it; numbers and truth values as JSON writes them.

  Raises:
    RecordError: the field is missing, null, a list or a mapping.
  """
  try:
    value = record[name]
  except KeyError:
    raise RecordError(_missing(record, name)) from None
  return value.strip() if type(value) is str else _as_text(value, name)


def texts_of(record: Mapping[str, Any], name: str) -> list[str]:
  """The field as a list of texts, each without white space around it.

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


def shortened(text: str, limit: int) -> str:
  """The beginning of the text, at most `limit` characters, cut between words where it has two."""
  if limit < 0:
    raise ValueError(f"a text cannot be cut to {limit} characters")
  if len(text) <= limit:
    return text
  kept = text[: limit + 1]
  if kept[-1:].isspace():
    return kept.rstrip()
  # The last word of `kept` goes on beyond the limit; a single word has to be cut inside.
  words = kept.rsplit(None, 1)
  return words[0].rstrip() if len(words) == 2 else kept[:limit].rstrip()


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
