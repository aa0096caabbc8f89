"""Fields of the datasets that ask for more than stands in their text: gaps in news, everyday motives."""

import re

from flan_jax.mixtures.fields.mending import one_line

_GAP = "____"


def record(record: dict) -> dict | None:
  """A news story, a sentence about it with a gap, and the names in the story, of which one belongs there.

  Several spellings of the right name may be right ("Mugabe", "Robert Mugabe"): the longest is the answer, and
  the others are no options.
  """
  names = [one_line(name) for name in record["entities"]]
  right = {one_line(name).casefold() for name in record["answers"]}
  answer = max((name for name in names if name.casefold() in right), key=len, default="")
  wrong = {name.casefold(): name for name in names if name and name.casefold() not in right}
  before, mark, after = one_line(record["query"]).partition("@placeholder")
  if not answer or not wrong or not mark or "@placeholder" in after:
    return None
  story, *highlights = re.split(r"\s*@highlight\s*", record["passage"].strip())
  return {
    "story": "\n".join([one_line(story), *(f"- {one_line(line)}" for line in highlights if line)]),
    "sentence": before + _GAP + after,
    "statement": before + answer + after,
    "options": sorted([answer, *wrong.values()]),
    "answer": answer,
  }
