"""Bytes as ids, numbered as in ByT5 (https://arxiv.org/abs/2105.13626)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flan_jax.errors import VocabularyError
from flan_jax.vocabularies.vocabulary import Vocabulary, spelling_of

_FIRST_BYTE = 3
_CONTROL = ("<pad>", "</s>", "<unk>")


class ByteVocabulary(Vocabulary):
  """The UTF-8 bytes of a text, each plus 3; pad 0, eos 1, unk 2; `extra_ids` sentinels at the end.

  Args:
    added_tokens: control tokens after the sentinels; see `Vocabulary.grown`.
  """

  kind: ClassVar[str] = "bytes"

  def __init__(self, extra_ids: int = 0, added_tokens: Sequence[str] = ()):
    if extra_ids < 0:
      raise VocabularyError(f"extra_ids={extra_ids} must be 0 or more.")
    self.extra_ids, self.added_tokens = extra_ids, tuple(added_tokens)
    first_added = _FIRST_BYTE + 256 + extra_ids
    self.size = first_added + len(self.added_tokens)
    self._added_ids = {token: first_added + i for i, token in enumerate(self.added_tokens)}
    self._added_pattern = spelling_of(self.added_tokens)
    self.pad_id, self.eos_id, self.unk_id = 0, 1, 2

  def encode(self, text: str) -> list[int]:
    if self._added_pattern is None:
      return _spelt(text)
    return self.encode_with_ends(text)[0]

  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    ends: list[int] = []
    start = 0
    for part in self._added_pattern.split(text) if self._added_pattern else [text]:
      if part in self._added_ids:
        ids.append(self._added_ids[part])
        ends.append(start + len(part))
      else:
        ids += _spelt(part)
        ends += [end for end, char in enumerate(part, start + 1) for _ in char.encode()]
      start += len(part)
    return ids, ends

  def decode(self, ids: Iterable[int]) -> str:
    spelt = bytes(i - _FIRST_BYTE for i in ids if _FIRST_BYTE <= i < _FIRST_BYTE + 256)
    return spelt.decode(errors="ignore")

  def token(self, token_id: int) -> str:
    if token_id < _FIRST_BYTE:
      return _CONTROL[token_id]
    added = token_id - self.size + len(self.added_tokens)
    return self.added_tokens[added] if added >= 0 else self.decode([token_id])

  def hugging_face_files(self) -> dict[str, bytes]:
    if self.added_tokens:
      raise VocabularyError(
        f"a tokenizer of bytes cannot be written with the added tokens {list(self.added_tokens)}."
      )
    return {
      "tokenizer_config.json": self._tokenizer_config("ByT5Tokenizer", extra_ids=self.extra_ids)
    }

  def _has(self, token: str) -> bool:
    return token in (*_CONTROL, *self.added_tokens) or len(token.encode()) == 1

  def _grown(self, tokens: tuple[str, ...]) -> "ByteVocabulary":
    return ByteVocabulary(self.extra_ids, self.added_tokens + tokens)

  def _description(self) -> dict[str, Any]:
    added = {"added_tokens": list(self.added_tokens)} if self.added_tokens else {}
    return {"kind": self.kind, "extra_ids": self.extra_ids, **added}

  @classmethod
  def _load(cls, directory: Path, description: dict[str, Any]) -> "ByteVocabulary":
    return cls(description["extra_ids"], description.get("added_tokens", ()))


def _spelt(text: str) -> list[int]:
  return [byte + _FIRST_BYTE for byte in text.encode()]
