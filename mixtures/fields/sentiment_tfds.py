"""Fields of the sentiment datasets that TFDS has: labels by name, text without the marks of its transport."""

import html
import re

from flan_jax.mixtures.fields.mending import lines, one_line, repair_encoding, text_key

_LINK = re.compile(r"(?:https?://|www\.)\S+")
_HANDLE_OR_LINK = re.compile(r"@\w+|\[link\]")


def imdb_reviews(record: dict) -> dict | None:
  """A film review of several paragraphs, which are marked by HTML's line breaks."""
  label = {"neg": "negative", "pos": "positive"}.get(record["label"])
  return _example(lines(re.sub(r"<br\s*/?>", "\n", record["text"])), label)


def yelp_polarity_reviews(record: dict) -> dict | None:
  r"""A review of a business; `\n` stands for a line break in it, and two quotation marks for one."""
  label = {"1": "negative", "2": "positive"}.get(record["label"])
  text = record["text"].replace("\\n", "\n").replace('\\"', '"').replace('""', '"')
  return _example(lines(text), label)


def sentiment140(record: dict) -> dict | None:
  """A tweet without its emoticon, which gave the label (0 or 4); the test split's neutral tweets (2) are dropped."""
  label = {0: "negative", 4: "positive"}.get(record["polarity"])
  text = _LINK.sub("[link]", html.unescape(html.unescape(repair_encoding(record["text"]))))
  words = text_key(_HANDLE_OR_LINK.sub("", text))
  example = _example(one_line(text), label)
  # Nothing but handles and links says nothing.
  if example is None or words == text_key(""):
    return None
  return {**example, "words": words}


def sst2(record: dict) -> dict | None:
  """A sentence or phrase of a film review, in small letters; `does n't -lrb- yet -rrb- .` is put together again."""
  text = record["sentence"].replace("-lrb-", "(").replace("-rrb-", ")")
  text = re.sub(r"`` ?| ?''", '"', text)
  text = re.sub(r"` ([^`]+?) '(?!\w)", r"'\1'", text)
  text = re.sub(r" (?=n't\b|'(?:s|re|ve|ll|d|m)\b|[,.;:!?)%])", "", text)
  text = re.sub(r"(?<=[($]) ", "", text)
  return _example(one_line(text), record["label"])


def _example(text: str, label: str | None) -> dict | None:
  if label is None or not any(map(str.isalpha, text)):
    return None
  return {"text": text, "label": label}
