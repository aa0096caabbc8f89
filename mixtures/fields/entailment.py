"""Fields of the entailment datasets: two texts, of which the first may settle the second.

Pairs whose annotators did not agree have no label; they are dropped, and so are pairs with an empty side.
"""

import re

from flan_jax.mixtures.fields.mending import capitalised, one_line, without_final_stop

_SCENE_WORDS = 4


def premise_pair(record: dict) -> dict | None:
  """A premise as it was written or said, and a hypothesis as a sentence; SNLI's, MNLI's and RTE's form."""
  premise, hypothesis = one_line(record["premise"]), _sentence(record["hypothesis"])
  return _labelled({"premise": premise, "hypothesis": hypothesis}, record["label"])


def anli(record: dict) -> dict | None:
  """A passage, whose lines are parted by HTML's line breaks where it has more than one, and a hypothesis."""
  lines = filter(None, map(one_line, record["context"].split("<br>")))
  fields = {"context": "\n".join(lines), "hypothesis": _sentence(record["hypothesis"])}
  return _labelled(fields, record["label"])


def cb(record: dict) -> dict | None:
  """A stretch of talk or prose, and a clause of it that may follow the word "that"."""
  premise, clause = (
    re.sub("``|''", '"', one_line(record[key])) for key in ("premise", "hypothesis")
  )
  return _labelled({"premise": premise, "clause": without_final_stop(clause)}, record["label"])


def qnli(record: dict) -> dict | None:
  """A question, and a sentence of an encyclopaedia that may answer it."""
  fields = {key: one_line(record[key]) for key in ("question", "sentence")}
  return _labelled(fields, record["label"])


def wnli(record: dict) -> dict | None:
  """A sentence with a pronoun, and the part of it that has the pronoun, with something in its place.

  The sentences come in families that begin alike and turn on a word or two; `scene` is that beginning.
  """
  sentence, reading = one_line(record["sentence1"]), _sentence(record["sentence2"])
  scene = " ".join(re.findall(r"\w+", sentence.casefold())[:_SCENE_WORDS])
  return _labelled({"sentence": sentence, "reading": reading, "scene": scene}, record["label"])


def _labelled(fields: dict, label: str | None) -> dict | None:
  return {**fields, "label": label} if label is not None and all(fields.values()) else None


def _sentence(text: str) -> str:
  """The text with a capital first letter, and with a full stop where it has no mark at its end."""
  text = capitalised(one_line(text))
  return f"{text}." if text[-1:].isalnum() else text
