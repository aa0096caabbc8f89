"""Fields of the open-domain question answering datasets: trivia, search queries, science exams."""

from collections.abc import Iterable

from flan_jax.mixtures.fields.mending import as_question, one_line, unquoted, without_final_stop
from flan_jax.mixtures.fields.questions import distinct

_LETTERS = "ABCDE"


def trivia_qa(record: dict) -> dict | None:
  """A quiz question; the other names of what it asks for count as answers too."""
  question = unquoted(one_line(record["question"]))
  if question[-1:].isalnum():
    question = as_question(question)
  answer = record["answer"]
  answers = _tidied((answer["value"], *answer["aliases"]))
  if not question or not answers:
    return None
  return {"question": question, "answer": answers[0], "answers": answers}


def natural_questions(record: dict) -> dict | None:
  """A search query, as it was typed and as a question, and what each annotator took for its answer."""
  question, answers = as_question(record["question"]), _tidied(record["answer"])
  if not question or not answers:
    return None
  return {
    "query": one_line(record["question"]),
    "question": question,
    "answer": answers[0],
    "answers": answers,
  }


def arc(record: dict) -> dict | None:
  """A question, or a sentence to be finished, with three to five choices.

  The choices' labels come as numbers (0 is A), the key as a letter. Records with equal choices are dropped, and those
  whose lists differ in length.
  """
  choices = record["choices"]
  options = [without_final_stop(one_line(text)) for text in choices["text"]]
  question, key = one_line(record["question"]), _LETTERS.index(record["answerKey"])
  if not question or not all(options) or key not in choices["label"]:
    return None
  if len(options) != len(choices["label"]):
    return None
  if len({option.casefold() for option in options}) < len(options):
    return None
  return {
    "question": question,
    "options": options,
    "answer": options[choices["label"].index(key)],
  }


def _tidied(answers: Iterable[str]) -> list[str]:
  """The answers in their order, each once, without the quotes and commas around them."""
  return distinct(unquoted(one_line(answer).strip(" ,;")) for answer in answers)
