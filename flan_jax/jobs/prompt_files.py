"""Prompts as people write them down: a file or standard input, a line, an object or a table's row each."""

import contextlib
import csv
import functools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flan_jax.errors import ConfigError, RecordError
from flan_jax.evaluation import Prompt

_FIELD = 2**31 - 1  # characters of a table's field, which the csv module would end at 131,072


class Question(NamedTuple):
  """What stands in one place of the input.

  Args:
    inputs: the prompt as text.
    error: why there is none that could be answered.
    origin: what its answer says besides of where it comes from.
    prompt: the same as ids, where it is not to be made of `inputs`.
  """

  place: int
  inputs: str
  error: str | None = None
  origin: Mapping[str, Any] = {}
  prompt: Prompt | None = None


class PromptFile:
  """The prompts of a file, in order.

  Attributes:
    fingerprint: None: each line of the output is held against its prompt, which is all that there is.

  Args:
    input_file: a prompt a line; .jsonl: objects with an `inputs`; .csv: with a column `inputs`; "-": standard input,
      a prompt a line.
  """

  fingerprint: str | None = None

  def __init__(self, input_file: str):
    self._name, self._kind = input_file, Path(input_file).suffix

  @functools.cached_property
  def total(self) -> int | None:
    """How many there are; None: nobody knows before the end."""
    if self._name == "-" or self._kind == ".csv":
      return None
    with _opened(self._name) as file:
      return sum(1 for _ in file)

  def __iter__(self) -> Iterator[Question]:
    """What stands in each place.

    Raises:
      ConfigError: there is no such file, or nothing in it.
    """
    place = -1
    with _opened(self._name) as file:
      lines = map(_text, file)
      rows = _csv(lines, self._name) if self._kind == ".csv" else lines
      for place, row in enumerate(rows):
        if isinstance(row, RecordError):
          yield Question(place, "", str(row))
        elif self._kind == ".jsonl":
          yield _json(place, row)
        else:
          yield Question(place, row.strip())
    if place < 0:
      raise ConfigError(f"infer.input_file: {self._name} holds no prompt.")


def _opened(input_file: str) -> contextlib.AbstractContextManager[BinaryIO]:
  if input_file == "-":
    return contextlib.nullcontext(sys.stdin.buffer)
  try:
    return Path(input_file).open("rb")
  except (FileNotFoundError, IsADirectoryError):
    raise ConfigError(f"infer.input_file: there is no file {input_file}.") from None


def _text(line: bytes) -> str | RecordError:
  try:
    return line.decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    return RecordError(f"byte {error.start + 1} of the line is not UTF-8")


def _json(place: int, line: str) -> Question:
  try:
    prompt = json.loads(line)["inputs"].strip()
    prompt.encode()
  except UnicodeEncodeError:
    return Question(place, "", "half of a surrogate pair is no text")
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return Question(place, "", 'the line is no JSON object with a text "inputs"')
  return Question(place, prompt)


def _csv(lines: Iterator[str | RecordError], input_file: str) -> Iterator[str | RecordError]:
  """The column `inputs`. A row may go over several lines, so that one line which is no text spoils them all."""

  def readable() -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
      if isinstance(line, RecordError):
        raise RecordError(f"{input_file}:{number}: {line}.")
      yield line

  csv.field_size_limit(_FIELD)
  table = csv.DictReader(readable())
  if "inputs" not in (table.fieldnames or ()):
    raise ConfigError(f"infer.input_file: {input_file} has no column 'inputs'.")
  for row in table:
    yield RecordError("the row has no column 'inputs'") if row["inputs"] is None else row["inputs"]
