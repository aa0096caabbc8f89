"""The little language of template texts: `{field}`, and `{{` and `}}` for braces themselves."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flan_jax.errors import TemplateError
from flan_jax.prompting.options import BLOCK_STYLES

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What a field may be called."""


@dataclass(frozen=True, slots=True)
class Piece:
  """A stretch of literal text, or the name of a placeholder, and where in the text it began."""

  text: str
  is_placeholder: bool
  offset: int


class PlaceholderError(TemplateError):
  """A brace that is no `{field}`; `offset` says where in the text."""

  def __init__(self, message: str, offset: int):
    super().__init__(message)
    self.offset = offset


def parse(text: str) -> tuple[Piece, ...]:
  """A template's text as literal pieces and placeholders.

  Raises:
    PlaceholderError: a brace stands alone, or holds more than a field's name.
  """
  pieces: list[Piece] = []
  for match in _TOKEN.finditer(text):
    token, start = match.group(), match.start()
    if match.lastgroup == "wrong":
      excerpt = text[start : start + 30].split("\n")[0]
      raise PlaceholderError(
        f"{excerpt!r}: only {{field}} can stand in braces; write {{{{ or }}}} for a brace itself",
        start,
      )
    if match.lastgroup == "field":
      pieces.append(Piece(token[1:-1], True, start))
    else:
      pieces.append(Piece(token[0] if match.lastgroup == "escaped" else token, False, start))
  return tuple(pieces)


def names_in(pieces: Sequence[Piece]) -> set[str]:
  """The names of the placeholders."""
  return {piece.text for piece in pieces if piece.is_placeholder}


def options_end_their_line(pieces: Sequence[Piece]) -> bool:
  """Whether nothing follows `{options}` on its line, so that a style may take whole lines."""
  for index, piece in enumerate(pieces):
    if piece.is_placeholder and piece.text == "options":
      # A placeholder's name stands for whatever it will hold.
      rest = "".join(later.text for later in pieces[index + 1 :])
      if rest.split("\n", 1)[0].strip():
        return False
  return True


def laid_out(pieces: Sequence[Piece], style: str) -> list[Piece]:
  """The pieces, with options that take whole lines moved to a new line unless they begin one."""
  if style not in BLOCK_STYLES:
    return list(pieces)
  result: list[Piece] = []
  for piece in pieces:
    if piece.is_placeholder and piece.text == "options" and result:
      before = result[-1]
      text = "" if before.is_placeholder else result.pop().text.rstrip(" \t")
      result.append(Piece(text if text.endswith("\n") else text + "\n", False, before.offset))
    result.append(piece)
  return result


class CompiledText:
  """A text that is filled in with values and stripped; what the values hold is never interpreted.

  Args:
    pieces: the parsed text.
    alias: placeholder -> the name that its value goes by, where that is another.
  """

  __slots__ = ("_format", "_names", "_only")

  def __init__(self, pieces: Sequence[Piece], alias: Mapping[str, str]):
    self._names = [alias.get(piece.text, piece.text) for piece in pieces if piece.is_placeholder]
    self._format = "".join(
      "%s" if piece.is_placeholder else piece.text.replace("%", "%%") for piece in pieces
    ).strip()
    self._only = self._names[0] if self._format == "%s" else None

  @property
  def words(self) -> list[Any]:
    """What decides the text, as JSON has it."""
    return [self._format, *self._names]

  def fill(self, values: Mapping[str, str]) -> str:
    """The text with its placeholders' values, without white space around it."""
    if self._only is not None:
      return values[self._only]
    return (self._format % tuple([values[name] for name in self._names])).strip()

  def fill_each(self, values: Mapping[str, str], name: str, several: Sequence[str]) -> list[str]:
    """The text once for each of several values of one placeholder."""
    if self._only == name:
      return list(several)
    return [self.fill({**values, name: value}) for value in several]


_TOKEN = re.compile(
  r"(?P<escaped>\{\{|\}\})"
  rf"|(?P<field>\{{{NAME.pattern}\}})"
  r"|(?P<literal>[^{}]+)"
  r"|(?P<wrong>[{}])"
)
