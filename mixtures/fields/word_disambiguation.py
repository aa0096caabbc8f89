"""Fields of the word disambiguation datasets."""

from flan_jax.mixtures.fields.mending import one_line


def wic(record: dict) -> dict:
  """A word in two sentences, which also come with asterisks around it; is its sense the same?"""
  return {
    "word": one_line(record["word"]),
    "sentence1": one_line(record["sentence1"]),
    "sentence2": one_line(record["sentence2"]),
    "marked1": _marked(record["sentence1"], record["start1"], record["end1"]),
    "marked2": _marked(record["sentence2"], record["start2"], record["end2"]),
    "label": record["label"],
  }


def _marked(sentence: str, start: int, end: int) -> str:
  return one_line(f"{sentence[:start]}*{sentence[start:end]}*{sentence[end:]}")
