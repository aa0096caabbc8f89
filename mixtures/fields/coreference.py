"""Fields of the coreference datasets: where the pronoun or the gap stands, and whom it may mean.

Sentences come in pairs that begin alike and end with opposite answers, so `scene`, the text up to the
pronoun, keeps a pair together.
"""

import re

from flan_jax.mixtures.fields.mending import one_line

_GAP = "____"
_SMALL_WORDS = frozenset(
  ("A", "All", "An", "Her", "His", "My", "Our", "Some", "That", "The", "Their", "These", "This")
)


def definite_pronoun_resolution(record: dict) -> dict | None:
  """A sentence, the first of its pronouns of this form, and two candidates for what it stands for."""
  sentence, pronoun = one_line(record["sentence"]), one_line(record["pronoun"])
  place = re.search(rf"\b{re.escape(pronoun)}\b", sentence, re.IGNORECASE)
  if place is None:
    return None
  fields = _around(sentence[: place.start()], place[0], sentence[place.end() :])
  return _with_options(fields, record["candidates"], int(record["label"]))


def winogrande(record: dict) -> dict | None:
  """A sentence with a gap, and the two names or things of which one belongs there."""
  before, gap, after = one_line(record["sentence"]).partition("_")
  if not gap or record["label"] is None:
    return None
  options = [record["option1"], record["option2"]]
  fields = {"sentence": before + _GAP + after, "scene": before}
  chosen = _with_options(fields, options, int(record["label"]) - 1)
  return {**chosen, "filled": before + chosen["answer"] + after} if chosen else None


def wsc(record: dict) -> dict | None:
  """A text with a pronoun, and a noun of which the pronoun may be speaking or not.

  The places are numbers of words and not always right: of the words that are the pronoun the nearest counts.
  """
  words, pronoun = record["text"].split(), one_line(record["span2_text"]).casefold()
  places = [
    i for i, word in enumerate(words) if re.findall(r"\w+", word.casefold())[:1] == [pronoun]
  ]
  if not places or record["label"] is None:
    return None
  place = min(places, key=lambda i: abs(i - record["span2_index"]))
  before, word, after = words[:place], words[place], words[place + 1 :]
  start = word.casefold().index(pronoun)
  end = start + len(pronoun)
  fields = _around(
    " ".join([*before, word[:start]]), word[start:end], " ".join([word[end:], *after])
  )
  return {**fields, "noun": _within_a_sentence(record["span1_text"]), "label": record["label"]}


def wsc273(record: dict) -> dict | None:
  """A text with a pronoun whose place is told, and two nouns of which it can mean one."""
  text, start, end = record["text"], record["pronoun_start"], record["pronoun_end"]
  fields = _around(text[:start], text[start:end], text[end:])
  return _with_options(fields, [record["option1"], record["option2"]], record["label"])


def _around(before: str, pronoun: str, after: str) -> dict:
  return {
    "sentence": one_line(before + pronoun + after),
    "marked": one_line(f"{before}*{pronoun}*{after}"),
    "gapped": one_line(before + _GAP + after),
    "pronoun": pronoun,
    "scene": before,
  }


def _with_options(fields: dict, options: list[str], right: int) -> dict | None:
  """Adds the options, the right one and the other one; None where they are not two, or the right one is neither."""
  options = [_within_a_sentence(option) for option in options]
  if (
    len(options) != 2
    or not all(options)
    or right not in (0, 1)
    or options[0].casefold() == options[1].casefold()
  ):
    return None
  return {**fields, "options": options, "answer": options[right], "other": options[1 - right]}


def _within_a_sentence(noun: str) -> str:
  """`The Cat` as `the Cat`: articles and the like have a capital only where a text began with them."""
  noun = one_line(noun)
  return noun[0].lower() + noun[1:] if noun.partition(" ")[0] in _SMALL_WORDS else noun
