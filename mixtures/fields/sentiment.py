"""Fields of the sentiment datasets: raters' mean scores turned into labels, text mended.

The four sets come from one archive of tab-separated files with the columns id, mean, text. The mean
runs from -4 to 4 over about twenty raters, and half a point on either side of zero counts as neutral.
"""

import html
import re

from flan_jax.mixtures.fields.mending import text_key

_THRESHOLD = 0.5
_SIGNATURE = re.compile(r".*, [A-Z][a-z]+\.? \d+, (?:19|20)\d\d(?: The writers? .*)?")


def rotten_tomatoes(record: dict) -> dict | None:
  """Film review snippets; neutral ones are dropped."""
  label = _polarity(record["mean"])
  # The source lost its dashes: runs of three spaces or more stand where " -- " was.
  text = re.sub(r"(?<=\S) {3,}(?=\S)", " - ", record["text"])
  return _example(text.replace("''", '"'), label)


def amazon_snippets(record: dict) -> dict | None:
  """Sentences of product reviews, all in lower case in the source; neutral ones are dropped."""
  label = _polarity(record["mean"])
  text = _unescape(record["text"])
  # Undo the source's tokenisation: `at & t`, `$ 30`, `" menu "`, `* are *`.
  text = re.sub(r"\bat & t\b", "at&t", text)
  text = re.sub(r"\$ (?=[\d$])", "$", text)
  text = re.sub(r'"\s*([^"]*?)\s*"', r'"\1"', text)
  text = re.sub(r"\*\s+([^*]+?)\s+\*", r"*\1*", text)
  text = re.sub(r"(?<!\w)' ([^']+?) '(?!\w)", r"'\1'", text)
  text = re.sub(r"\s+([.,!?;])(?!\.)", r"\1", text)
  # Sentences were cut apart inside brackets and quotes, which leaves the closing mark in front.
  text = re.sub(r'^[\s).,"]+(?=\s)', "", text)
  if text.count('"') == 1:
    text = text.replace('"', "")
  example = _example(text, label)
  return example and {**example, "review": _document(record["id"])}


def tweets(record: dict) -> dict | None:
  """Tweets with their handles; removed addresses become [link], neutral tweets are dropped."""
  label = _polarity(record["mean"])
  text = re.sub(r"(?:https?://)?url_removed", "[link]", _unescape(record["text"]))
  # Nothing but handles and links says nothing; an emoticon does.
  if not re.sub(r"@\w+|\[link\]", "", text).strip():
    return None
  example = _example(text, label)
  # The raters were given variants of some tweets, which differ in capitals and exclamation marks.
  return example and {**example, "words": text_key(re.sub(r"@\w+|\[link\]", "", text))}


def nyt_editorials(record: dict) -> dict | None:
  """Sentences of newspaper editorials and letters, neutral ones included."""
  text = _unescape(record["text"])
  # Letter writers' names with place and date are no opinion.
  if _SIGNATURE.fullmatch(text):
    return None
  text = text.replace("''", '"')
  text = re.sub(r"\[\s+(.*?)\s+\]( (?=[,.]))?", r"[\1]", text)
  example = _example(text, _polarity(record["mean"]) or "neutral")
  return example and {**example, "editorial": _document(record["id"])}


def _polarity(mean: str) -> str | None:
  score = float(mean)
  if abs(score) < _THRESHOLD:
    return None
  return "positive" if score > 0 else "negative"


def _example(text: str, label: str | None) -> dict | None:
  text = " ".join(_unescape(text).split())
  # Without a letter there is nothing to judge ("3.", "...").
  if label is None or not re.search(r"[^\W\d_]", text):
    return None
  return {"text": text, "label": label}


def _unescape(text: str) -> str:
  """Entities were escaped twice in places, and `&#38;` lost its ampersand to `&amp;`."""
  return html.unescape(html.unescape(text))


def _document(sentence_id: str) -> str:
  """`12_3` is the third sentence of document 12."""
  return sentence_id.split("_")[0]
