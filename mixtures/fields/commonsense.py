"""Fields of the commonsense datasets: lettered options taken apart, options kept as a list.

Records whose options repeat are dropped: with two equal options there is no single right answer.
"""

import re

from flan_jax.mixtures.fields.mending import without_final_stop

_LETTERED = re.compile(r"([A-F])\.\s*(.*)")
_SOCIAL = re.compile(r"(?P<head>.*?)\s*\bA: (?P<a>.*?); B: (?P<b>.*?); C: (?P<c>.*)", re.DOTALL)
_LONGEST_OPTION = 200  # characters; beyond it stands one web page pasted into an option


def piqa(record: dict) -> dict | None:
  """A goal and two ways to reach it."""
  options, answer = _lettered(record)
  return _example({"goal": _clean(record["question"])}, options, answer, count=2)


def piqa_solutions(record: dict) -> dict | None:
  """The same with the two solutions in fields of their own."""
  options = [_clean(record["sol1"]), _clean(record["sol2"])]
  return _example({"goal": _clean(record["goal"])}, options, options[int(record["label"])], count=2)


def commonsense_qa(record: dict) -> dict | None:
  """A question with five short answers."""
  options, answer = _lettered(record, sentences=False)
  question = _clean(record["question"])
  # Some questions left their question mark behind on the last option.
  if record["options"].rstrip().endswith("?") and question[-1:].isalnum():
    question += "?"
  return _example({"question": question}, options, answer, count=5)


def openbookqa(record: dict) -> dict | None:
  """Elementary science: a question, or the beginning of a statement, with four ways to go on."""
  options, answer = _lettered(record, sentences=False)
  return _example({"question": _clean(record["question"])}, options, answer, count=4)


def openbookqa_choices(record: dict) -> dict | None:
  """The same with a field for each choice, and the letter of the right one."""
  question = record["question"]
  options = [without_final_stop(_clean(question[f"choice_{letter}"])) for letter in "ABCD"]
  answer = options["ABCD".index(record["answerKey"])]
  return _example({"question": _clean(question["stem"])}, options, answer, count=4)


def social_iqa(record: dict) -> dict | None:
  """A situation, a question about it and three answers, all in one line of a chat turn."""
  match = _SOCIAL.fullmatch(record["input"][-1]["content"].strip())
  if match is None:
    return None
  situation, stop, question = _clean(match["head"]).rpartition(". ")
  options = [_clean(match[letter].rstrip(" .")) for letter in "abc"]
  if not question.endswith("?") or max(map(len, options)) > _LONGEST_OPTION:
    return None
  fields = {"situation": situation + stop.rstrip(), "question": question}
  return _example(fields, options, options["ABC".index(record["ideal"])], count=3)


def _lettered(record: dict, sentences: bool = True) -> tuple[list[str], str]:
  """Takes `A. movie` lines apart; a line without a letter is the end of the question.

  Args:
    sentences: the options may be sentences and keep their full stops.
  """
  lines = [_LETTERED.fullmatch(line.strip()) for line in record["options"].splitlines()]
  options = {line[1]: _clean(line[2].rstrip(" ?")) for line in lines if line}
  if not sentences:
    options = {letter: without_final_stop(option) for letter, option in options.items()}
  return list(options.values()), options.get(record["answer"].strip()[0], "")


def _example(fields: dict, options: list[str], answer: str, count: int) -> dict | None:
  if not all(fields.values()) or not all(options) or len(options) != count:
    return None
  if not answer or len({option.casefold().rstrip(".") for option in options}) < count:
    return None
  return {**fields, "options": options, "answer": answer}


def _clean(text: str) -> str:
  return " ".join(text.split())
