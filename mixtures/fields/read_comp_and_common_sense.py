"""Fields of the datasets that ask for more than stands in their text: gaps in news, everyday motives."""

import re

from flan_jax.mixtures.fields.mending import one_line

_GAP = "____"
_NONE_OF_THESE = "None of the others."
_SPACE_BEFORE = re.compile(r"\s+(?=[.,!?;:]+(?:\s(?!\))|$)|n't\b|'(?:s|m|re|ve|ll|d)\b)")


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


def cosmos_qa(record: dict) -> dict | None:
  """A piece of somebody's diary, a question about what it leaves unsaid, and four answers.

  Where one of them is "none of the above", it means nothing without the others: `suggested` is for prompts
  without options, and `given` for those that want the question or the text. Records whose answers repeat are
  dropped: with two equal answers there is no single right one.
  """
  options = [_option(record[f"answer{number}"]) for number in range(4)]
  if record["label"] is None or not all(options) or len({o.casefold() for o in options}) < 4:
    return None
  answer = options[int(record["label"])]
  others = "\n".join(f"- {option}" for option in options if option != _NONE_OF_THESE)
  suggested, given = "", f'the answer is "{answer}"'
  if _NONE_OF_THESE in options:
    suggested = (
      f'These have been suggested; if none of them is right, write "{_NONE_OF_THESE}"\n{others}'
    )
  if answer == _NONE_OF_THESE:
    given = f"none of these answers is right:\n{others}"
  return {
    "entry": _spaced(record["context"]),
    "question": _spaced(record["question"]),
    "options": options,
    "answer": answer,
    "suggested": suggested,
    "given": given,
  }


def _option(text: str) -> str:
  """The option; "none of the above" in words that hold in any order."""
  text = _spaced(text)
  return _NONE_OF_THESE if text.casefold().startswith("none of the above") else text


def _spaced(text: str) -> str:
  """Without the spaces that were put before stops and parts of words: `it 's here .`"""
  return _SPACE_BEFORE.sub("", one_line(text))
