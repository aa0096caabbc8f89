"""Fields of the closed-book question answering datasets."""

import re

from flan_jax.mixtures.fields.mending import as_question, one_line, unquoted


def nq_open(record: dict) -> dict | None:
  """A search query and its short answers.

  Half of the records carry system outputs that people judged to be right; those count as answers too, after
  the annotators' own.
  """
  found = [*record["answer"], *record.get("def_correct_predictions", ())]
  answers = list(dict.fromkeys(filter(None, map(_tidy, found))))
  question = as_question(record["question"])
  if not answers or not question:
    return None
  return {"question": question, "answer": answers[0], "answers": answers}


def _tidy(answer: str) -> str:
  """Escapes were written out (`Seasons 6\\u20137`), and footnote marks and quotes stayed."""
  answer = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), answer)
  return unquoted(one_line(re.sub(r"\[\d+\]", "", answer)).strip(" ,;"))
