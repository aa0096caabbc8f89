"""Fields of BIG-bench's tasks: `input` taken apart, the right one of `target_scores`.

What BIG-bench's authors say around an example (names of its parts, the question that all of a task share) is left
behind: templates have words of their own for it.
"""

import re

from flan_jax.mixtures.fields.mending import capitalised, lines, one_line

_SO = re.compile(r"(?P<premise>.*?[.!?]) (?:So|Therefore),? (?P<conclusion>.*)", re.DOTALL)
_FACT = re.compile(r"Fact: (?P<fact>.*) Q: (?P<question>.*)", re.DOTALL)
_SENTENCES = re.compile(
  r"Sentence 1: (?P<text>.*)\nSentence 2: (?P<statement>.*?)\s*The answer is:\s*", re.DOTALL
)
_PREMISE = re.compile(r"Premise: (?P<premise>.*) Hypothesis: (?P<hypothesis>.*)", re.DOTALL)
_REASON = re.compile(
  r"(?P<sentence>.*?) The '(?P<pronoun>[^']+)' refers to (?P<noun>.*?) because (?P<reason>.*)",
  re.DOTALL,
)
_SPEAKERS = re.compile(r"Speaker 1: '(?P<question>.*)' Speaker 2: '(?P<reply>.*)'", re.DOTALL)
_MASKED = re.compile(r"Which phrase best fits the <MASK> span\? Context:\s*(?P<dialogue>.*)", re.S)
_MORAL = " What is the moral of this story?"
_LAST_SENTENCE = re.compile(r"(?P<story>.*[.!?\"'”’])\s+(?P<question>[^.!?]+\?)", re.DOTALL)


def analytic_entailment(record: dict) -> dict | None:
  """A sentence, and another one that is said to follow from what its words mean."""
  if (parts := _parts(_SO, record)) is None:
    return None
  return _labelled({**parts, "conclusion": capitalised(parts["conclusion"])}, record)


def entailed_polarity(record: dict) -> dict | None:
  """A fact told by way of somebody's managing, failing, forgetting to do it, and a question about it."""
  return _labelled(_parts(_FACT, record), record)


def presuppositions(record: dict) -> dict | None:
  """Three sentences of a book or a newspaper, and what the last of them may take for granted."""
  if (parts := _parts(_SENTENCES, record)) is None:
    return None
  return _labelled({**parts, "statement": _sentence(parts["statement"])}, record)


def epistemic_reasoning(record: dict) -> dict | None:
  """What somebody knows or believes, and what may follow from that."""
  return _labelled(_parts(_PREMISE, record), record)


def winowhy(record: dict) -> dict | None:
  """A Winograd schema, what its pronoun refers to, and somebody's reason for that."""
  return _labelled(_parts(_REASON, record), record)


def implicatures(record: dict) -> dict | None:
  """A question of yes or no, and a reply that says neither."""
  return _labelled(_parts(_SPEAKERS, record), record)


def yes_or_no(record: dict) -> dict | None:
  """A question that stands by itself."""
  return _labelled({"question": one_line(record["input"])}, record)


def judgement(record: dict) -> dict | None:
  """A story, and a question of yes or no about somebody in it, which is its last sentence."""
  return _labelled(_parts(_LAST_SENTENCE, record), record)


def disambiguation(record: dict) -> dict | None:
  """A sentence with a pronoun, and what it may mean."""
  return _chosen({"sentence": _sentence(record["input"])}, record)


def social_iqa(record: dict) -> dict | None:
  """What happened, and a question about the people."""
  situation, stop, question = one_line(record["input"]).rpartition(". ")
  return _chosen({"situation": situation + stop.rstrip(), "question": question}, record, count=3)


def timedial(record: dict) -> dict | None:
  """A conversation with a gap where somebody says when or how long."""
  match = _MASKED.fullmatch(record["input"].strip())
  if match is None or match["dialogue"].count("<MASK>") != 1:
    return None
  return _chosen({"dialogue": lines(match["dialogue"]).replace("<MASK>", "____")}, record, count=3)


def fable(record: dict) -> dict | None:
  """A fable, and five morals."""
  story = one_line(record["input"])
  if not story.endswith(_MORAL):
    return None
  return _chosen({"fable": story.removesuffix(_MORAL)}, record, count=5)


def ethical_question(record: dict) -> dict | None:
  """A question, often with the situation in which it comes up, and four things to say to it."""
  return _chosen({"question": one_line(record["input"])}, record, count=4)


def _parts(pattern: re.Pattern[str], record: dict) -> dict[str, str] | None:
  """What the groups of a pattern find in the input, each in one line; None where it does not fit."""
  match = pattern.fullmatch(record["input"].strip())
  return {name: one_line(text) for name, text in match.groupdict().items()} if match else None


def _labelled(fields: dict[str, str] | None, record: dict) -> dict | None:
  """With the label in lower case."""
  right = _right(record)
  if fields is None or not all(fields.values()) or not right:
    return None
  return {**fields, "label": right.lower()}


def _chosen(fields: dict, record: dict, count: int | None = None) -> dict | None:
  """With the options and the right one; two that are equal leave no right one, and the record is dropped."""
  options, right = [one_line(option) for option in record["target_scores"]], _right(record)
  different = len({option.casefold().rstrip(".") for option in options})
  if not right or not all(fields.values()) or different < (count or len(options)):
    return None
  return {**fields, "options": options, "answer": one_line(right)}


def _right(record: dict) -> str:
  """What has the highest score; "" where several have it."""
  scores = record["target_scores"]
  best = [option for option, score in scores.items() if score == max(scores.values())]
  return best[0] if len(best) == 1 else ""


def _sentence(text: str) -> str:
  """One sentence with its full stop."""
  text = capitalised(one_line(text))
  return text if text.endswith((".", "!", "?", '"')) else f"{text}."
