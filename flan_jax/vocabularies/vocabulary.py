"""What every vocabulary answers: text to ids, ids to text, the special ids, and a fingerprint."""

import abc
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flan_jax.errors import VocabularyError

_DESCRIPTION = "vocabulary.json"


class Vocabulary(abc.ABC):
  """Text to ids and back.

  Encoding adds neither a begin nor an end token: those belong to the format of the recipe.

  Attributes:
    size: number of ids; every id is below it.
    pad_id: the id that fills the unused end of a row.
    eos_id: the id that ends a text.
    bos_id: the id that begins a text; None when the vocabulary has none.
    unk_id: the id of what cannot be written; None when everything can.
    chat_template: the Jinja text that came with the vocabulary, if one did.
    extra_ids: T5's sentinels, the last ids but for those of added tokens.
    added_tokens: control tokens that `grown` put after them. A tokenizer.json keeps its own list.
  """

  size: int
  pad_id: int
  eos_id: int
  bos_id: int | None = None
  unk_id: int | None = None
  chat_template: str | None = None
  extra_ids: int = 0
  added_tokens: tuple[str, ...] = ()

  kind: ClassVar[str]
  _kinds: ClassVar[dict[str, type["Vocabulary"]]] = {}

  def __init_subclass__(cls, **kwargs: Any) -> None:
    super().__init_subclass__(**kwargs)
    if "kind" in cls.__dict__:
      Vocabulary._kinds[cls.kind] = cls

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """The ids of a text."""

  @abc.abstractmethod
  def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
    """The ids of a text and, for each, how many characters of the text are spelt once it is read.

    The ends never decrease. A character that takes several ids ends with the first of them.
    """

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for each of the texts."""
    return [self.encode(text) for text in texts]

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """The text of the ids. Control ids, and ids that a padded model has beyond `size`, are left out."""

  @abc.abstractmethod
  def token(self, token_id: int) -> str:
    """How a control token is written, such as "</s>"."""

  def grown(self, tokens: Sequence[str]) -> "Vocabulary":
    """This vocabulary with control tokens after its last id; every id that it has stays what it is.

    A text that spells such a token gives its id, whatever stands around it; decoding leaves it out.
    `flan_jax.models.grow_embeddings` gives a model rows for them.

    Raises:
      VocabularyError: a token is empty, holds white space, is given twice, or is there already.
    """
    if isinstance(tokens, str):
      raise VocabularyError(f"the control tokens {tokens!r} must be a list of texts.")
    for number, token in enumerate(tokens):
      if not token or any(map(str.isspace, token)):
        raise VocabularyError(f"the control token {token!r} is empty or holds white space.")
      if token in tokens[:number]:
        raise VocabularyError(f"the control token {token!r} is given twice.")
      if self._has(token):
        raise VocabularyError(
          f"the vocabulary has a token {token!r} already: take it out, or give the new one another name."
        )
    return self._grown(tuple(tokens))

  def sentinel(self, index: int) -> int:
    """The id of T5's `<extra_id_INDEX>`: sentinels count down from the end, added tokens aside."""
    if not 0 <= index < self.extra_ids:
      raise VocabularyError(
        f"sentinel {index} of a vocabulary with {self.extra_ids} extra ids: "
        f"make the vocabulary with extra_ids={index + 1} or more."
      )
    return self.size - len(self.added_tokens) - 1 - index

  @property
  def fingerprint(self) -> str:
    """sha256 of everything that decides the ids."""
    digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
    for name, content in sorted(self._files().items()):
      digest.update(f"{name} {len(content)} ".encode())
      digest.update(content)
    return digest.hexdigest()

  def save(self, directory: str | Path) -> None:
    """Writes what `load_vocabulary` needs to make this vocabulary again."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in self._files().items():
      (directory / name).write_bytes(content)
    description = {**self._description(), "chat_template": self.chat_template}
    (directory / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

  @abc.abstractmethod
  def hugging_face_files(self) -> dict[str, bytes]:
    """What a folder of Hugging Face's layout keeps of a tokenizer, by name of the file.

    Raises:
      VocabularyError: it cannot be said in their words.
    """

  def _tokenizer_config(self, tokenizer_class: str, **settings: Any) -> bytes:
    chat = {"chat_template": self.chat_template} if self.chat_template else {}
    about = {"tokenizer_class": tokenizer_class, **settings, **chat}
    return (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()

  @abc.abstractmethod
  def _has(self, token: str) -> bool:
    """Whether a single id stands for this text."""

  @abc.abstractmethod
  def _grown(self, tokens: tuple[str, ...]) -> "Vocabulary":
    """`grown` with tokens that were checked."""

  @abc.abstractmethod
  def _description(self) -> dict[str, Any]:
    """The settings that decide the ids, as JSON, with `kind`."""

  def _files(self) -> dict[str, bytes]:
    """The files that decide the ids, by name."""
    return {}

  @classmethod
  @abc.abstractmethod
  def _load(cls, directory: Path, description: dict[str, Any]) -> "Vocabulary":
    """The vocabulary that `save` wrote."""


def spelling_of(tokens: Sequence[str]) -> re.Pattern[str] | None:
  """What splits a text at these tokens, the longest first, and keeps them; None without tokens."""
  written = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
  return re.compile(f"({written})") if written else None


def load_vocabulary(directory: str | Path) -> Vocabulary:
  """The vocabulary that `Vocabulary.save` wrote to a directory.

  Raises:
    VocabularyError: no vocabulary is there, or one of a kind that this version does not know.
  """
  path = Path(directory) / _DESCRIPTION
  try:
    description = json.loads(path.read_text())
    kind = Vocabulary._kinds[description["kind"]]
    return kind._load(Path(directory), description)
  except FileNotFoundError as error:
    raise VocabularyError(
      f"{error.filename}: missing, so {directory} holds no vocabulary."
    ) from None
  except (ValueError, KeyError) as error:
    known = ", ".join(sorted(Vocabulary._kinds))
    raise VocabularyError(
      f"{path}: not a saved vocabulary ({error!r}). Known kinds: {known}."
    ) from None
