"""Fields of the datasets that take something out of a sentence: its capitals, its punctuation or its spaces.

The sentences are the English side of ParaCrawl, written on web pages; menus, titles and slogans are dropped.
"""

from flan_jax.mixtures.fields.mending import one_line, text_key

_FEWEST_WORDS, _MOST_WORDS = 6, 60
_MOST_CAPITALS = 0.5  # share of words that begin with one; above stand titles and menus
_FEWEST_LETTERS = 0.65  # share of characters, spaces aside; below stand addresses and prices
_MARKS = '.,;:!?…"“”„«»()[]–—'


def true_case(record: dict) -> dict | None:
  """A sentence and the same in small letters; `capitals` are the words that have any other letters."""
  text = _sentence(record["en"])
  lower = text.lower()
  capitals = dict.fromkeys(word.strip(_MARKS) for word in text.split() if word != word.lower())
  return _example(text, lower=lower, capitals=", ".join(capitals))


def fix_punct(record: dict) -> dict | None:
  """A sentence and its words alone: marks inside words (`9.30`, `well-known`, `it's`) stay."""
  text = _sentence(record["en"])
  words = (word.strip(_MARKS) for word in text.split())
  return _example(text, bare=" ".join(filter(None, words)))


def word_segment(record: dict) -> dict | None:
  """A sentence without its spaces, and with a slash in place of each."""
  text = _sentence(record["en"])
  if "/" in text:
    return None
  return _example(text, joined=text.replace(" ", ""), slashed=text.replace(" ", "/"))


def _example(text: str, **fields: str) -> dict | None:
  if not text or text in fields.values():
    return None
  # The same sentence stands on many pages, with other marks or capitals.
  return {"text": text, **fields, "words": text_key(text)}


def _sentence(text: str) -> str:
  """The text on one line; empty if it is no whole sentence in ordinary writing."""
  text = one_line(text)
  words = text.split()
  if not _FEWEST_WORDS <= len(words) <= _MOST_WORDS:
    return ""
  if not text[0].isupper() or not text.endswith((".", "!", "?")):
    return ""
  capitals = sum(word[0].isupper() for word in words)
  letters = sum(map(str.isalpha, text))
  if capitals > _MOST_CAPITALS * len(words) or letters < _FEWEST_LETTERS * len("".join(words)):
    return ""
  return text
