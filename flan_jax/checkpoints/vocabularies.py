"""A vocabulary by the place where somebody left it."""

from pathlib import Path

from flan_jax.checkpoints.hugging_face import tokenizer_of
from flan_jax.checkpoints.pretrained import open_pretrained
from flan_jax.errors import VocabularyError
from flan_jax.vocabularies import (
  ByteVocabulary,
  SentencePieceVocabulary,
  Vocabulary,
  load_vocabulary,
)

_SENTINELS = 100


def open_vocabulary(place: str, cache_dir: Path | str) -> Vocabulary:
  """The vocabulary at a place.

  Args:
    place: "bytes", or a SentencePiece model (NAME.model), both with T5's sentinels, which span corruption
      wants; a tokenizer.json, which is read with the settings beside it; the folder of a vocabulary, a run or
      a store of ours, or of a published model; a package or GGUF file, see `open_pretrained`.
    cache_dir: where packages are kept.

  Raises:
    VocabularyError: there is nothing, or no vocabulary.
    CheckpointError: what is there is torn, or not understood.
  """
  if place == "bytes":
    return ByteVocabulary(_SENTINELS)
  path = Path(place)
  if not path.exists() and not place.startswith("package:"):
    raise VocabularyError(
      f"there is no {place}: name a SentencePiece model, a tokenizer.json, a folder with one, or 'bytes'."
    )
  if path.suffix == ".model":
    return SentencePieceVocabulary(path, _SENTINELS)
  folder = path.parent if path.name == "tokenizer.json" else path
  for ours in (folder, folder / "vocabulary"):
    if (ours / "vocabulary.json").is_file():
      return load_vocabulary(ours)
  if folder.is_dir():
    vocabulary = tokenizer_of(folder)
  else:
    vocabulary = open_pretrained(place, cache_dir=cache_dir).vocabulary
  if vocabulary is None:
    raise VocabularyError(f"{place} holds no vocabulary.")
  return vocabulary
