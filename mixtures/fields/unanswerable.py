"""Words to say where a text does not answer the question."""

import hashlib


def drawn(words: tuple[str, ...], *key: str) -> str:
  """One of the words, the same for the same key, so that prompts ask for one reply and then for another.

  A prompt says which words it wants for a question without an answer. Were they always the same, a model
  would learn them by heart and need not read the prompt.
  """
  digest = hashlib.blake2b("\0".join(key).encode("utf-8", "replace"), digest_size=8).digest()
  return words[int.from_bytes(digest, "big") % len(words)]
