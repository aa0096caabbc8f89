"""Byte-level BPE, and whatever else a `tokenizer.json` describes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer, processors

from flan_jax.errors import UnknownName, VocabularyError
from flan_jax.vocabularies.vocabulary import Vocabulary

_TOKENIZER = "tokenizer.json"
_TOKEN_FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


class BPEVocabulary(Vocabulary):
  """A `tokenizers.Tokenizer`. Special tokens that a text spells out become their ids.

  Args:
    tokenizer: the tokenizer; its post-processor is not used, since begin and end tokens belong to
      the format.
    eos_token: the token that ends a text or a turn.
    bos_token: the token that begins a text, if there is one.
    pad_token: what fills a row; the end token when there is none. Weights and attention go by
      segment ids, so that it may be a token with a meaning.
    unk_token: the token of what cannot be written, if there is one.
    chat_template: the Jinja text of the model that this vocabulary belongs to.

  Raises:
    UnknownName: one of the tokens is not in the vocabulary.
  """

  kind: ClassVar[str] = "bpe"

  def __init__(
    self,
    tokenizer: Tokenizer,
    eos_token: str,
    bos_token: str | None = None,
    pad_token: str | None = None,
    unk_token: str | None = None,
    chat_template: str | None = None,
  ):
    self.tokenizer = tokenizer
    # Some files say to which length texts were once cut or filled.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self.chat_template = chat_template
    # Not the count: a tokenizer.json may leave holes in its ids.
    self.size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    self._tokens: dict[str, Any] = {
      "eos_token": eos_token,
      "bos_token": bos_token,
      "pad_token": pad_token,
      "unk_token": unk_token,
    }
    self.eos_id = self._id(eos_token)
    self.bos_id = None if bos_token is None else self._id(bos_token)
    self.pad_id = self.eos_id if pad_token is None else self._id(pad_token)
    self.unk_id = None if unk_token is None else self._id(unk_token)

  @classmethod
  def from_file(
    cls,
    path: str | Path,
    eos_token: str,
    bos_token: str | None = None,
    pad_token: str | None = None,
    unk_token: str | None = None,
    chat_template: str | None = None,
    added: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
  ) -> "BPEVocabulary":
    """The vocabulary of a `tokenizer.json`.

    Args:
      added: tokens by id that are kept beside the file, each with its "content" and what else an AddedToken has;
        those that the file has too stay as they are there.

    Raises:
      VocabularyError: there is no such file, it is torn, or a token cannot get the id that it is to have.
    """
    try:
      tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
      raise VocabularyError(f"{path}: no such tokenizer file.") from None
    except Exception as error:  # tokenizers raises bare Exception
      raise VocabularyError(f"{path}: not a tokenizer.json ({error}).") from None
    for token_id, about in sorted(added.items()):
      content = about["content"]
      if tokenizer.token_to_id(content) is None:
        flags = {name: about[name] for name in _TOKEN_FLAGS if name in about}
        tokenizer.add_tokens([AddedToken(content, **flags)])
        if (given := tokenizer.token_to_id(content)) != token_id:
          raise VocabularyError(
            f"{path}: the added token {content!r} is to have the id {token_id}, and would get {given}: put it into "
            "the file itself."
          )
    return cls(tokenizer, eos_token, bos_token, pad_token, unk_token, chat_template)

  def encode(self, text: str) -> list[int]:
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    encoding = self.tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, [end for _, end in encoding.offsets]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    return self.tokenizer.decode([int(i) for i in ids if i < self.size], skip_special_tokens=True)

  def token(self, token_id: int) -> str:
    token = self.tokenizer.id_to_token(token_id)
    if token is None:
      raise VocabularyError(f"id {token_id} is not in this vocabulary of {self.size} tokens.")
    return token

  def hugging_face_files(self) -> dict[str, bytes]:
    tokens = {role: token for role, token in self._tokens.items() if token is not None}
    about = self._tokenizer_config("PreTrainedTokenizerFast", **tokens)
    return {_TOKENIZER: self._spelt().encode(), "tokenizer_config.json": about}

  def _spelt(self) -> str:
    """The tokenizer.json, which puts the begin token before texts where there is one."""
    if self.bos_id is None or self.tokenizer.encode("").ids[:1] == [self.bos_id]:
      return self.tokenizer.to_str()
    begin = self._tokens["bos_token"]
    copy = Tokenizer.from_str(self.tokenizer.to_str())
    copy.post_processor = processors.TemplateProcessing(
      single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, self.bos_id)]
    )
    return copy.to_str()

  def _has(self, token: str) -> bool:
    return self.tokenizer.token_to_id(token) is not None

  def _grown(self, tokens: tuple[str, ...]) -> "BPEVocabulary":
    tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
    tokenizer.add_special_tokens(
      [AddedToken(token, special=True, normalized=False) for token in tokens]
    )
    grown = BPEVocabulary(tokenizer, chat_template=self.chat_template, **self._tokens)
    if [tokenizer.token_to_id(token) for token in tokens] != list(range(self.size, grown.size)):
      raise VocabularyError(
        "this tokenizer.json leaves holes in its ids, so no tokens can be put after the last one: add "
        "them to the file itself."
      )
    return grown

  def _description(self) -> dict[str, Any]:
    return {"kind": self.kind, **self._tokens}

  def _files(self) -> dict[str, bytes]:
    return {_TOKENIZER: self.tokenizer.to_str().encode()}

  @classmethod
  def _load(cls, directory: Path, description: dict[str, Any]) -> "BPEVocabulary":
    settings = {name: value for name, value in description.items() if name != "kind"}
    return cls.from_file(directory / _TOKENIZER, **settings)

  def _id(self, token: str) -> int:
    token_id = self.tokenizer.token_to_id(token)
    if token_id is None:
      special = [added.content for added in self.tokenizer.get_added_tokens_decoder().values()]
      raise UnknownName("special token", token, special)
    return token_id
