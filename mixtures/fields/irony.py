"""Fields of the irony datasets."""

import re

from flan_jax.mixtures.fields.mending import one_line, repair_encoding

_FEWEST_WORDS = 3  # nobody can tell the tone of "clean machine"
_MOST_WORDS = 60  # above stands half an article
_PUBLISHER = re.compile(r"\bhuff(?:po|ington)|\bthe onion\b", re.IGNORECASE)


def sarcasm(record: dict) -> dict | None:
  """A headline, taken out of its chat turn: of a satirical paper (1) or of a news site (0)."""
  headline = one_line(re.sub(r"[\x80-\x9f]", "", repair_encoding(record["input"][-1]["content"])))
  label = {"1": "sarcastic", "0": "sincere"}.get(str(record["ideal"]).strip())
  # Whose headline it is gives its tone away.
  if _PUBLISHER.search(headline):
    return None
  if label is None or not _FEWEST_WORDS <= len(headline.split()) <= _MOST_WORDS:
    return None
  return {"headline": headline, "label": label}
