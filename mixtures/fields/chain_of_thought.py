"""Fields of the chain-of-thought sets: a question, the reasoning that leads to its answer, and the answer.

They are published as tables of `question`, `answer` and `rationale`, in which a line break is spelt as a backslash
and an n, and the options of a question stand below it. Records that lack one of the three are dropped.
"""

import re

from flan_jax.mixtures.fields.mending import capitalised, lines, one_line, repair_encoding
from flan_jax.mixtures.fields.questions import asked, distinct

_OPTIONS = re.compile(r"\noptions:\n", re.I)
_LETTER = re.compile(r"(?:- )?\(([A-Z])\) *")
_QUOTED = re.compile(r'"([^"\n]+)"')
_STRAY = re.compile(r"\\(?:inline|fn_jvn|therefore\b)? *|^.*\brefer\b.*\bdiagram\b.*$", re.M)
_BLANKS = re.compile(r"(?<=[\w)%]) +(?=[?,;!](?:\s|$)|\.(?:$|\s+[A-Z]))", re.M)
_TWICE = re.compile(r"(\?)\?+|(?<!\.)(\.)\.(?!\.)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def word_problem(record: dict) -> dict | None:
  """A problem in words whose answer is a number.

  `pattern` is the problem with its numbers taken out, since some differ in nothing else.
  """
  question, _, answer, rationale = _columns(record)
  return _complete(
    question=one_line(question),
    answer=answer,
    rationale=one_line(rationale),
    pattern=_without_numbers(question),
  )


def yes_or_no(record: dict) -> dict | None:
  """A question whose answer is yes or no; `reply` is the answer with a capital."""
  question, _, answer, rationale = _columns(record)
  return _complete(
    question=asked(question),
    answer=answer,
    reply=answer.capitalize(),
    rationale=one_line(rationale),
  )


def claim(record: dict) -> dict | None:
  """A claim, taken out of the question in which it is quoted; is it true, yes or no?"""
  question, _, answer, rationale = _columns(record)
  quoted = _QUOTED.search(question)
  if quoted is None or answer not in ("yes", "no"):
    return None
  return _complete(
    claim=one_line(quoted[1].strip("\\ ")),
    verdict="true" if answer == "yes" else "false",
    reply=answer,
    rationale=one_line(rationale),
  )


def two_sentences(record: dict) -> dict | None:
  """Two sentences, the letter of the one that makes no sense, and both by what they are."""
  _, options, answer, rationale = _columns(record)
  sentences = [_sentence(quoted[1]) for quoted in map(_QUOTED.search, options) if quoted]
  letter = answer[-1:]
  if len(sentences) != 2 or letter not in ("A", "B"):
    return None
  nonsense, sense = sentences if letter == "A" else reversed(sentences)
  return _complete(
    first=sentences[0],
    second=sentences[1],
    letter=letter,
    nonsense=nonsense,
    sense=sense,
    rationale=one_line(rationale),
  )


def everyday_choice(record: dict) -> dict | None:
  """A question and its options, each of them once."""
  question, options, answer, rationale = _columns(record)
  return _choice(
    asked(question), distinct(option.removeprefix("- ") for option in options), answer, rationale
  )


def lettered_choice(record: dict) -> dict | None:
  """A question whose answer is the letter of one of its options.

  Those with two equal options are dropped: either could be right, and letters cannot be moved, for some
  rationales name them.
  """
  question, lettered, answer, rationale = _columns(record)
  options = [_without_letters(option) for option in lettered]
  letters = [f"({letter[1]})" for letter in map(_LETTER.match, lettered) if letter]
  if len(distinct(options)) < len(options) or letters.count(answer) != 1:
    return None
  return _choice(question, options, options[letters.index(answer)], rationale)


def worked_choice(record: dict) -> dict | None:
  """A mathematical problem with lettered options; its signs and working need mending.

  `pattern` is the problem with its numbers taken out, since many differ in nothing else.
  """
  mended = {
    column: _STRAY.sub("", repair_encoding(text.replace("\\n", "\n")))
    for column, text in record.items()
  }
  fields = lettered_choice(mended)
  return fields and fields | {"pattern": _without_numbers(fields["question"])}


def inference(record: dict) -> dict | None:
  """A question about what follows from a sentence, in the words in which it is published.

  `scene` is the longer of the texts that it quotes, the sentence from which something is to follow.
  """
  question, _, answer, rationale = _columns(record)
  scene = max(_QUOTED.findall(question), key=len, default=question)
  return _complete(
    question=question, answer=answer, rationale=one_line(rationale), scene=one_line(scene)
  )


def passage_question(record: dict) -> dict | None:
  """A passage with a question about it, as they are published; `passage` is the longest line of both."""
  question, _, answer, rationale = _columns(record)
  passage = max(question.splitlines(), key=len, default="")
  return _complete(question=question, answer=answer, rationale=lines(rationale), passage=passage)


def _columns(record: dict) -> tuple[str, list[str], str, str]:
  """The question, the lines of its options, the answer and the rationale."""
  question, answer, rationale = (
    _tidied(record[column]) for column in ("question", "answer", "rationale")
  )
  question, *options = _OPTIONS.split(question, maxsplit=1)
  return question, options[0].splitlines() if options else [], answer, rationale


def _tidied(text: str) -> str:
  """The lines of a text, without blanks before punctuation or a mark that is there twice."""
  return _TWICE.sub(r"\1\2", _BLANKS.sub("", lines(text.replace("\\n", "\n"))))


def _sentence(text: str) -> str:
  text = capitalised(one_line(text))
  return text + "." if text[-1:].isalnum() else text


def _choice(question: str, options: list[str], answer: str, rationale: str) -> dict | None:
  if answer not in options:
    return None
  letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
  return _complete(
    question=question,
    listed="\n".join(f"- {option}" for option in options),
    lettered="\n".join(map("({}) {}".format, letters, options)),
    answer=answer,
    letter=letters[options.index(answer)],
    rationale=rationale,
  )


def _complete(**fields: str) -> dict | None:
  return fields if all(fields.values()) else None


def _without_letters(option: str) -> str:
  """The words of an option; some have their letter twice, as in "(A) A) 46"."""
  letter = _LETTER.match(option)
  if letter is None:
    return option
  return option[letter.end() :].removeprefix(f"{letter[1]})").strip()


def _without_numbers(text: str) -> str:
  return _NUMBER.sub("#", one_line(text))
