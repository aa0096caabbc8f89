"""Fields of the paraphrase datasets: sentences as they would be printed, and similarity in whole steps."""

import re

from flan_jax.mixtures.fields.mending import one_line

_SPACE_OF_A_TOKENISER = re.compile(r" (?=[,.;:?!%)]|'(?:s|t|re|ve|ll|d|m)\b)|(?<=[($]) ")


def glue_mrpc(record: dict) -> dict | None:
  """Two sentences from the news, which came with spaces around their punctuation."""
  if record["label"] is None:
    return None
  return {
    "sentence1": _as_printed(record["sentence1"]),
    "sentence2": _as_printed(record["sentence2"]),
    "label": record["label"],
  }


def stsb(record: dict) -> dict | None:
  """Two sentences and how alike people found them, from 0 to 5: the mean, to the nearest whole number."""
  if record["label"] < 0:
    return None
  return {
    "sentence1": one_line(record["sentence1"]),
    "sentence2": one_line(record["sentence2"]),
    "score": str(int(record["label"] + 0.5)),
  }


def _as_printed(text: str) -> str:
  """`He said , " It isn 't . "` as `He said, "It isn't."`; a quote without its partner is left alone."""
  pieces = _SPACE_OF_A_TOKENISER.sub("", one_line(text)).split('"')
  if len(pieces) % 2 or not pieces[0]:
    pieces[1::2] = [quoted.strip() for quoted in pieces[1::2]]
  return '"'.join(pieces)
