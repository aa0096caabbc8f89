"""Bytes as ids, numbered as in ByT5 (https://arxiv.org/abs/2105.13626)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from flan_jax.vocabularies.vocabulary import Vocabulary

_FIRST_BYTE = 3
_CONTROL = ("<pad>", "</s>", "<unk>")


class ByteVocabulary(Vocabulary):
  """The UTF-8 bytes of a text, each plus 3; pad 0, eos 1, unk 2; `extra_ids` sentinels at the end."""

  kind: ClassVar[str] = "bytes"

  def __init__(self, extra_ids: int = 0):
    self.extra_ids = extra_ids
    self.size = _FIRST_BYTE + 256 + extra_ids
    self.pad_id, self.eos_id, self.unk_id = 0, 1, 2

  def encode(self, text: str) -> list[int]:
    return [byte + _FIRST_BYTE for byte in text.encode()]

  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    ends = [end for end, char in enumerate(text, 1) for _ in range(len(char.encode()))]
    return self.encode(text), ends

  def decode(self, ids: Iterable[int]) -> str:
    spelt = bytes(i - _FIRST_BYTE for i in ids if _FIRST_BYTE <= i < _FIRST_BYTE + 256)
    return spelt.decode(errors="ignore")

  def token(self, token_id: int) -> str:
    return _CONTROL[token_id] if token_id < _FIRST_BYTE else self.decode([token_id])

  def _description(self) -> dict[str, Any]:
    return {"kind": self.kind, "extra_ids": self.extra_ids}

  @classmethod
  def _load(cls, directory: Path, description: dict[str, Any]) -> "ByteVocabulary":
    return cls(description["extra_ids"])
