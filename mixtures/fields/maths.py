"""Fields of the maths datasets."""

import re

from flan_jax.mixtures.fields.mending import capitalised, one_line

_NUMBER_AND_UNIT = re.compile(r"(\d[\d.,]*) \D+")


def asdiv(record: dict) -> dict | None:
  """A word problem of primary school; the question may finish the passage's last sentence."""
  passage, question, answer = (one_line(record[key]) for key in ("passage", "question", "answer"))
  if not passage or not question or not answer:
    return None
  if not passage.endswith(","):
    question = capitalised(question)
  number = _NUMBER_AND_UNIT.fullmatch(answer)
  return {
    "problem": re.sub(r"\s+(?=[.,?])", "", f"{passage} {question}"),
    "answer": answer,
    # A number without its unit is right as well.
    "answers": [answer, number[1]] if number else [answer],
    "passage": passage,
  }
