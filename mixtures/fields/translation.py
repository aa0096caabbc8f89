"""Fields of the translation datasets: a text and its translation, by their languages' codes.

They are measured by f1, the words shared with the reference: it counts words of every alphabet, where ROUGE knows
the letters from a to z alone.
"""

import html

from flan_jax.mixtures.fields.mending import one_line


def pair(record: dict) -> dict | None:
  """Both texts, on one line each and without HTML's escapes; what nobody translated is dropped."""
  texts = {language: one_line(html.unescape(text)) for language, text in record.items()}
  distinct = {text.casefold() for text in texts.values()}
  return texts if "" not in distinct and len(distinct) == len(texts) else None
