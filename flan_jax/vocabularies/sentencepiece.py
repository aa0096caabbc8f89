"""SentencePiece models, with T5's sentinels where they are wanted."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sentencepiece import SentencePieceProcessor

from flan_jax.errors import VocabularyError
from flan_jax.vocabularies.unigram_export import (
  is_unigram,
  takes_text_as_it_is,
  unigram_tokenizer,
)
from flan_jax.vocabularies.vocabulary import Vocabulary, spelling_of

_MODEL = "sentencepiece.model"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # types of pieces


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model file.

  Args:
    path: the model file (`spiece.model`, `tokenizer.model`), or its bytes.
    extra_ids: sentinels added after the model's own pieces, written `<extra_id_0>` ... at the
      beginning of words; the first one gets the last id, as T5 numbers them.
    control_tokens: control pieces that a text may spell out, such as ("<s>", "</s>") for a chat
      template that writes them. Others stay ordinary text, as SentencePiece has it.
    chat_template: the Jinja text of the model that this vocabulary belongs to.
    added_tokens: control tokens after the sentinels; see `Vocabulary.grown`.

  Raises:
    VocabularyError: the file is no SentencePiece model, has no end-of-sentence piece, or a control
      token is no piece of it.
  """

  kind: ClassVar[str] = "sentencepiece"

  def __init__(
    self,
    path: str | Path | bytes,
    extra_ids: int = 0,
    control_tokens: Sequence[str] = (),
    chat_template: str | None = None,
    added_tokens: Sequence[str] = (),
  ):
    if isinstance(path, bytes):
      self._model, path = path, "the SentencePiece model"
    else:
      self._model = _read(path)
    if extra_ids < 0:
      raise VocabularyError(f"extra_ids={extra_ids} must be 0 or more.")
    self.extra_ids = extra_ids
    self.control_tokens = tuple(control_tokens)
    self.chat_template = chat_template
    self.added_tokens = tuple(added_tokens)
    # As in SeqIO a sentinel is a piece that begins a word: the space before it is a part of it.
    sentinels = [f"▁<extra_id_{index}>" for index in reversed(range(extra_ids))]
    self._processor = _processor(path, self._model + _pieces([*sentinels, *self.added_tokens]))
    self.size = self._processor.vocab_size()
    self.eos_id = self._required(path, self._processor.eos_id())
    self.bos_id = _optional(self._processor.bos_id())
    self.unk_id = _optional(self._processor.unk_id())
    # Llama's models have no padding piece. Which id fills a row is then of no consequence: weights
    # and attention go by segment ids.
    self.pad_id = max(self._processor.pad_id(), 0)
    self._control_ids = {token: self._processor.piece_to_id(token) for token in self.control_tokens}
    for token, token_id in self._control_ids.items():
      if token_id == self.unk_id:
        raise VocabularyError(f"{path}: control token {token!r} is no piece of this model.")
    self._control_pattern = spelling_of(self.control_tokens)

  def encode(self, text: str) -> list[int]:
    if self._control_pattern is None:
      return self._processor.encode(text)
    return self.encode_with_ends(text)[0]

  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    ends: list[int] = []
    start = 0
    for part in self._control_pattern.split(text) if self._control_pattern else [text]:
      if part in self._control_ids:
        ids.append(self._control_ids[part])
        ends.append(start + len(part))
      elif part:
        spelt = self._processor.encode(part, return_type="offset_mapping")
        ids.extend(spelt["ids"])
        ends.extend(start + end for _, end in spelt["offsets"])
      start += len(part)
    return ids, ends

  def decode(self, ids: Iterable[int]) -> str:
    first_added = self.size - len(self.added_tokens)
    return self._processor.decode([int(i) for i in ids if i < first_added])

  def token(self, token_id: int) -> str:
    return self._processor.id_to_piece(token_id)

  def hugging_face_files(self) -> dict[str, bytes]:
    if is_unigram(self._processor) and takes_text_as_it_is(self._processor):
      return self._as_unigram()
    if self.added_tokens:
      raise VocabularyError(
        f"a SentencePiece tokenizer cannot be written with the added tokens {list(self.added_tokens)}."
      )
    t5 = self.extra_ids > 0
    about = {"extra_ids": self.extra_ids} if t5 else {"add_bos_token": self.bos_id is not None}
    file, kind = ("spiece.model", "T5Tokenizer") if t5 else ("tokenizer.model", "LlamaTokenizer")
    return {file: self._model, "tokenizer_config.json": self._tokenizer_config(kind, **about)}

  def _as_unigram(self) -> dict[str, bytes]:
    tokens = {
      "eos_token": self.eos_id,
      "bos_token": self.bos_id,
      "unk_token": self.unk_id,
      "pad_token": self._processor.pad_id(),
    }
    about = {
      "extra_ids": self.extra_ids,
      "control_tokens": list(self.control_tokens),
      "added_tokens": list(self.added_tokens),
      **{role: self.token(i) for role, i in tokens.items() if i is not None and i >= 0},
    }
    tokenizer = unigram_tokenizer(self._processor, self.control_tokens, self.extra_ids > 0)
    return {
      "spiece.model": self._model,
      "tokenizer.json": tokenizer,
      "tokenizer_config.json": self._tokenizer_config("PreTrainedTokenizerFast", **about),
    }

  def _has(self, token: str) -> bool:
    pieces = (token, f"▁{token}")
    return any(self.token(self._processor.piece_to_id(piece)) == piece for piece in pieces)

  def _grown(self, tokens: tuple[str, ...]) -> "SentencePieceVocabulary":
    return SentencePieceVocabulary(
      self._model,
      self.extra_ids,
      self.control_tokens,
      self.chat_template,
      self.added_tokens + tokens,
    )

  def _description(self) -> dict[str, Any]:
    added = {"added_tokens": list(self.added_tokens)} if self.added_tokens else {}
    return {
      "kind": self.kind,
      "extra_ids": self.extra_ids,
      "control_tokens": list(self.control_tokens),
      **added,
    }

  def _files(self) -> dict[str, bytes]:
    return {_MODEL: self._model}

  @classmethod
  def _load(cls, directory: Path, description: dict[str, Any]) -> "SentencePieceVocabulary":
    return cls(
      directory / _MODEL,
      description["extra_ids"],
      description["control_tokens"],
      description["chat_template"],
      description.get("added_tokens", ()),
    )

  def _required(self, path: str | Path, eos_id: int) -> int:
    if eos_id < 0:
      raise VocabularyError(
        f"{path}: the model has no end-of-sentence piece; train it with eos_id=1."
      )
    return eos_id


def _read(path: str | Path) -> bytes:
  try:
    return Path(path).read_bytes()
  except FileNotFoundError:
    raise VocabularyError(f"{path}: no such SentencePiece model file.") from None


def _processor(path: str | Path, model: bytes) -> SentencePieceProcessor:
  try:
    return SentencePieceProcessor(model_proto=model)
  except (RuntimeError, ValueError) as error:
    raise VocabularyError(f"{path}: not a SentencePiece model ({error}).") from None


SPECIAL_ROLES = ("unknown", "bos", "eos", "padding")


def sentencepiece_model(
  pieces: Iterable[tuple[str, float, int]], ids: Mapping[str, int], add_dummy_prefix: bool
) -> bytes:
  """A BPE model with byte fallback, as Llama and Gemma have it, from its pieces: text, score, type.

  Written field by field, without the protobuf package: of ModelProto 1 is a piece, 2 the trainer's settings
  and 3 the normaliser's; of a piece 1 is the text, 2 the score, 3 the type.

  Args:
    ids: of each of `SPECIAL_ROLES`; -1: there is none.
    add_dummy_prefix: a text is read as if a space stood before it.
  """
  pieces = list(pieces)
  trainer = _varint_field(3, 2) + _varint_field(35, 1)
  for number, role in enumerate(SPECIAL_ROLES):
    trainer += _varint_field(40 + number, ids[role])
    # The library finds them by their texts, and the unknown one by its type as well.
    if ids[role] >= 0:
      text, score, _ = pieces[ids[role]]
      trainer += _bytes_field(text.encode(), 45 + number)
      kind = _UNKNOWN if ids[role] == ids["unknown"] else _CONTROL
      pieces[ids[role]] = (text, score, kind)
  normaliser = _bytes_field(b"identity") + _varint_field(3, add_dummy_prefix)
  normaliser += _varint_field(4, 0) + _varint_field(5, 1)
  return b"".join(
    [
      *(_piece(text, score, kind) for text, score, kind in pieces),
      _bytes_field(trainer, 2),
      _bytes_field(normaliser, 3),
    ]
  )


def _pieces(texts: Sequence[str]) -> bytes:
  """More user-defined pieces, to be put behind a serialised model.

  Protocol buffers that are written one after the other read as one, with repeated fields joined:
  so a model is extended.
  """
  return b"".join(_piece(text, 0.0, _USER_DEFINED) for text in texts)


def _piece(text: str, score: float, kind: int) -> bytes:
  scored = _bytes_field(text.encode()) + b"\x15" + struct.pack("<f", score)
  return _bytes_field(scored + _varint_field(3, kind))


def _bytes_field(content: bytes, number: int = 1) -> bytes:
  return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint_field(number: int, value: int) -> bytes:
  return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
  """A number in groups of seven bits, the lowest first; a negative one as 64 bits."""
  value, groups = value % (1 << 64), []
  while value > 127:
    groups.append(value & 127 | 128)
    value >>= 7
  return bytes([*groups, value])


def _optional(token_id: int) -> int | None:
  return token_id if token_id >= 0 else None
