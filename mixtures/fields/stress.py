"""Fields of the stress datasets."""

import html
import re

from flan_jax.mixtures.fields.mending import one_line

_FEWEST_WORDS = 8


def dreaddit(record: dict) -> dict | None:
  """A few sentences of a forum post; addresses become [link], Markdown's backslashes go."""
  post = html.unescape(record["text"]).replace("<url>", "[link]")
  post = one_line(re.sub(r"\\([^\w\s])", r"\1", post))
  label = {"1": "stressed", "0": "unstressed"}.get(record["label"].strip())
  if label is None or len(post.split()) < _FEWEST_WORDS:
    return None
  return {"post": post, "label": label}
