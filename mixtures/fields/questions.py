"""Questions about texts and their answers, for datasets of several clusters."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from flan_jax.mixtures.fields.mending import final_mark, one_line

Item = TypeVar("Item")


def asked(question: str) -> str:
  """A question or order as it was typed, with the mark that some forgot."""
  question = one_line(question)
  return question + final_mark(question) if question[-1:].isalnum() else question


def distinct(texts: Iterable[str]) -> list[str]:
  """The texts in their order, each once and none empty."""
  return list(dict.fromkeys(filter(None, map(one_line, texts))))


def drawn(items: Sequence[Item], *key: str) -> Item:
  """One of the items, always the same for the same key.

  What to say where a text holds no answer is drawn like this, and told in the prompt: were it always the
  same, a model would learn it by heart and need not read the prompt.
  """
  digest = hashlib.blake2b("\0".join(key).encode("utf-8", "replace"), digest_size=8).digest()
  return items[int.from_bytes(digest, "big") % len(items)]
