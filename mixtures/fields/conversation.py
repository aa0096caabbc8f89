"""Fields of the conversation datasets."""

import re
from pathlib import PurePosixPath

from flan_jax.mixtures.fields.mending import capitalised, one_line

# Replies to insults, and talk about people who are not there: nothing to learn manners from.
_LEFT_OUT = frozenset(("gossip", "psychology"))
_MOST_CHARACTERS = 400


def chatterbot(record: dict) -> dict | None:
  """What a person types first, and the reply.

  Only the first two lines of a conversation are used: in some files the later lines go on with it, in others
  they are more replies to the first. Replies with program code are dropped, since nobody ran them.
  """
  lines = record["value"]
  if PurePosixPath(record["path"]).stem in _LEFT_OUT or len(lines) < 2 or "```" in lines[1]:
    return None
  prompt, response = (_tidy(line) for line in lines[:2])
  bare = [re.sub(r"\W+", " ", line).strip().casefold() for line in (prompt, response)]
  # Some lines were cut at an apostrophe ("it"), or say the same twice.
  if bare[0] == bare[1] or bare[1] in ("it", "n", "") or len(bare[0]) < 2:
    return None
  if len(response) > _MOST_CHARACTERS or _breaks_off(prompt):
    return None
  return {"prompt": prompt, "response": response}


def _breaks_off(text: str) -> bool:
  """Whether a line ends on a word that cannot end one."""
  return re.search(r"\b(?:the|a|an|of|inside)$", text, re.IGNORECASE) is not None


def _tidy(text: str) -> str:
  """No shouting, a capital first letter, and "I" with one too."""
  text = re.sub(r"(?<!\.)\.\.$", ".", one_line(text))
  if text.isupper() and len(text.split()) > 1:
    text = text.lower()
  return capitalised(re.sub(r"\bi\b(?=['’\s]|$)", "I", text))
