"""Fields of generated exercises in algebra."""

from flan_jax.mixtures.fields.mending import one_line


def math_dataset(record: dict) -> dict | None:
  """An order to solve an equation for its unknown, x; the answers "3" and "x = 3" are equally right."""
  question, answer = one_line(record["question"]), one_line(record["answer"])
  equation, for_, variable = question.removeprefix("Solve ").removesuffix(".").rpartition(" for ")
  if not question.startswith("Solve ") or not for_ or "=" not in equation:
    return None
  return {
    "question": question,
    "equation": equation,
    "variable": variable,
    "answer": answer,
    "answers": [answer, f"{variable} = {answer}"],
  }
