"""How the answers to choose from are shown.

    list             letters            inline
    - negative       (A) negative       negative, neutral or positive
    - neutral        (B) neutral
    - positive       (C) positive

In letters style the answer is the letter, so the letters are what a model is scored on.
"""

from collections.abc import Sequence
from functools import lru_cache
from string import ascii_uppercase

STYLES = ("list", "letters", "inline")
"""The styles that show the options, in the order in which a draw numbers them."""

BLOCK_STYLES = frozenset({"list", "letters"})
"""Styles that take whole lines; `inline` may stand within a sentence."""


def show_options(words: Sequence[str], style: str) -> str:
  """The options as one text, in the order given.

  Args:
    words: what each option says.
    style: one of `STYLES`.
  """
  if style == "list":
    return "\n".join([f"- {word}" for word in words])
  if style == "letters":
    return "\n".join(
      [f"({label}) {word}" for label, word in zip(letters(len(words)), words, strict=True)]
    )
  if style == "inline":
    return _sentence(words)
  raise ValueError(f"unknown style {style!r}; the styles are {', '.join(STYLES)}")


@lru_cache(maxsize=256)
def letters(count: int) -> tuple[str, ...]:
  """Labels of `count` options: A to Z, then AA, AB and so on, as a spreadsheet names its columns."""
  return tuple(_letter(i) for i in range(count))


def _letter(index: int) -> str:
  label = ""
  index += 1
  while index:
    index, digit = divmod(index - 1, len(ascii_uppercase))
    label = ascii_uppercase[digit] + label
  return label


def _sentence(words: Sequence[str]) -> str:
  if len(words) < 2:
    return "".join(words)
  *first, last = words
  # Options that hold commas or an "or" of their own would run into each other.
  if any("," in word or ";" in word or " or " in word for word in words):
    return "; ".join(first) + "; or " + last
  return ", ".join(first) + " or " + last
