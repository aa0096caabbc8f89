"""Fields of the datasets that begin a text and give alternative sentences to go with it.

Records whose alternatives are the same are dropped: with two equal options there is no single right answer. So are
those whose label names none of them.
"""

import re

from flan_jax.mixtures.fields.mending import capitalised, one_line

_SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["'])\s+""")
_HEADINGS = re.compile(r"\[(?:header|title|step|substeps)\]")
_ASKED = {"cause": "Why did this happen?", "effect": "What happened as a result?"}
_COUNTERPART = {"cause": "effect", "effect": "cause"}


def copa(record: dict) -> dict | None:
  """A sentence, and two that may tell its cause or its effect."""
  relation = record["question"]
  if relation not in _ASKED:
    return None
  fields = {
    "premise": one_line(record["premise"]),
    "relation": relation,
    "counterpart": _COUNTERPART[relation],
    "asked": _ASKED[relation],
  }
  options = [one_line(record["choice1"]), one_line(record["choice2"])]
  return _example(fields, options, ("choice1", "choice2").index(record["label"]))


def hellaswag(record: dict) -> dict | None:
  """The beginning of a video's description or of a how-to guide, with four endings."""
  context, is_video = _paragraph(record["context"]), record["source_id"].startswith("activitynet")
  if is_video:
    # The last sentence is unfinished, and was put there without its capital.
    before, stop, last = context.rpartition(". ")
    context = before + stop + capitalised(last)
  fields = {
    "context": context,
    "topic": one_line(record["activity_label"]),
    "kind": "description of a video" if is_video else "how-to guide",
    "source_id": record["source_id"],
  }
  options = [_paragraph(ending) for ending in record["endings"]]
  return _example(fields, options, int(record["label"]))


def story_cloze(record: dict) -> dict | None:
  """Four sentences of a story and two that may end it; the label counts from 1."""
  fields = {"story": one_line(record["context"])}
  return _example(fields, [one_line(ending) for ending in record["endings"]], record["label"] - 1)


def story_cloze_by_sentence(record: dict) -> dict | None:
  """The same with each sentence by itself, by the names that promptsource's templates read."""
  sentences = _SENTENCE_END.split(one_line(record["context"]), maxsplit=3)
  if len(sentences) != 4 or len(record["endings"]) != 2:
    return None
  first, second, third, fourth = sentences
  return {
    "input_sentence_1": first,
    "input_sentence_2": second,
    "input_sentence_3": third,
    "input_sentence_4": fourth,
    "sentence_quiz1": record["endings"][0],
    "sentence_quiz2": record["endings"][1],
    "answer_right_ending": record["label"],
  }


def _example(fields: dict, options: list[str], right: int) -> dict | None:
  if not all(fields.values()) or not all(options) or not 0 <= right < len(options):
    return None
  if len({option.casefold().rstrip(".") for option in options}) < len(options):
    return None
  return {**fields, "options": options, "answer": options[right]}


def _paragraph(text: str) -> str:
  """The parts of a guide, which are marked by headings in brackets, as one paragraph."""
  parts = [part for part in map(one_line, _HEADINGS.split(text)) if part]
  closed = [part + "." if part[-1].isalnum() else part for part in parts[:-1]]
  return " ".join([*closed, *parts[-1:]])
