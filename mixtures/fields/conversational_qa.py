"""Fields of the datasets in which questions about a text follow one another."""

from flan_jax.mixtures.fields.mending import lines, one_line
from flan_jax.mixtures.fields.questions import asked, distinct, drawn

_CANNOT = "CANNOTANSWER"
_DONT_KNOW = (
  "I don't know",
  "no answer",
  "not mentioned",
  "I cannot tell from the text",
  "The article does not say",
)

_UNKNOWN = "unknown"
_TURNS_BEFORE = 2


def quac(record: dict) -> dict | None:
  """A student's question about a section of an article, and what the teacher quotes in reply.

  `decline` is what the record's prompts want to hear where the section says nothing. Where several people
  replied and half of them found nothing, nothing counts as right; else their quotations count, as the
  dataset's own scorer has it.
  """
  title, section = one_line(record["title"]), one_line(record["section_title"])
  question = asked(record["question"])
  decline = drawn(_DONT_KNOW, title, section, question)
  replies = [one_line(text) for text in record["answers"]["text"]]
  if 2 * replies.count(_CANNOT) >= len(replies):
    answers = [decline]
  else:
    given = one_line(record["orig_answer"]["text"])
    answers = distinct([given] * (given in replies) + replies)
    answers = [answer for answer in answers if answer != _CANNOT]
  if not question or not replies or not answers:
    return None
  return {
    "title": title,
    "section": section,
    "background": one_line(record["background"]),
    "passage": one_line(record["context"].replace(_CANNOT, "")),
    "question": question,
    "answer": answers[0],
    "answers": answers,
    "decline": decline,
  }


def coqa(record: dict) -> dict | None:
  """A story and one turn of a conversation about it, with the turns before.

  The turn is drawn among those that have two before them and an answer, so that short and long
  conversations occur.
  """
  questions = [asked(question) for question in record["questions"]]
  answers = [one_line(answer) for answer in record["answers"]["input_text"]]
  turns = [
    turn
    for turn, answer in enumerate(answers)
    if turn >= _TURNS_BEFORE and answer and answer.casefold().rstrip(".") != _UNKNOWN
  ]
  story = lines(record["story"])
  if not turns or len(questions) != len(answers):
    return None
  turn = drawn(turns, story)
  before = list(zip(questions[:turn], answers[:turn], strict=True))
  return {
    "story": story,
    "history": exchanges("Q: {}\nA: {}", before),
    "dialogue": exchanges("- {}\n- {}", before),
    "earlier": exchanges("Q: {}\nA: {}", before[:-1]),
    "last_question": before[-1][0],
    "last_answer": before[-1][1],
    "question": questions[turn],
    "answer": answers[turn],
  }


def exchanges(form: str, pairs: list[tuple[str, str]]) -> str:
  """Questions and answers in turn, each pair in the same form."""
  return "\n".join(form.format(question, answer) for question, answer in pairs)
