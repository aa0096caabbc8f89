"""Fields of conversations in which one person seeks information and another gives it."""

from collections.abc import Sequence

from flan_jax.mixtures.fields.conversational_qa import exchanges
from flan_jax.mixtures.fields.mending import lines, one_line
from flan_jax.mixtures.fields.questions import asked, drawn

_TURNS_BEFORE = 2

Pairs = list[tuple[str, str]]


def wiki_dialog(record: dict) -> dict | None:
  """A passage, the conversation that it was made into, and one question of it with the exchanges before.

  The first thing said is a greeting by the one who answers, and left out. Conversations of a single
  exchange are dropped; of the others any question but the first may be drawn.
  """
  said = _pairs(list(map(one_line, record["utterances"]))[1:])
  if len(said) < 2 or not all(question and answer for question, answer in said):
    return None
  passage = lines(record["passage"])
  turn = drawn(range(1, len(said)), passage)
  return {
    "title": one_line(record["title"]),
    "passage": passage,
    "conversation": exchanges("- {}\n- {}", said),
    **_before(said[:turn]),
    "question": said[turn][0],
    "answer": said[turn][1],
  }


def qrecc(record: dict) -> dict | None:
  """A question within a conversation, by itself (`rewrite`) and as it was asked, and its answer.

  Questions with fewer than two exchanges before them are dropped: only a few depend on what was said.
  `opening` is how the conversation begins, by which its questions are known to belong together.
  """
  said = _pairs(list(map(one_line, record["context"])))
  question, rewrite = asked(record["question"]), asked(record["question_rewrite"])
  if len(said) < _TURNS_BEFORE or not question or not rewrite or not all(map(all, said)):
    return None
  return {
    "opening": said[0][0],
    **_before([(asked(question), answer) for question, answer in said]),
    "question": question,
    "rewrite": rewrite,
    "answer": one_line(record["answer"]),
  }


def _pairs(said: Sequence[str]) -> Pairs:
  """What was said as questions with their answers; a last question without one is left out."""
  return list(zip(said[::2], said[1::2], strict=False))


def _before(said: Pairs) -> dict[str, str]:
  """The exchanges before a question, in the forms that prompts want."""
  return {
    "history": exchanges("A: {}\nB: {}", said),
    "dialogue": exchanges("- {}\n- {}", said),
    "last_question": said[-1][0],
    "last_answer": said[-1][1],
  }
