"""NAME=PLACE on the command line."""

import re
from pathlib import Path

_NAME = re.compile(r"[^=/:#@]+")


def named_place(word: str) -> tuple[str | None, str]:
  """Name and place of NAME=PLACE; of a place alone, which may hold "=" as well, no name."""
  name, equals, place = word.partition("=")
  if equals and _NAME.fullmatch(name) and not Path(word).exists():
    return name, place
  return None, word
