"""Text to ids and back, and the format that wraps turns into one text. No TensorFlow."""

from flan_jax.vocabularies.byte_pairs import BPEVocabulary
from flan_jax.vocabularies.bytes import ByteVocabulary
from flan_jax.vocabularies.formats import ChatFormat, Format, PlainFormat, format_from_dict
from flan_jax.vocabularies.sentencepiece import SentencePieceVocabulary
from flan_jax.vocabularies.sentencepiece_training import train_sentencepiece
from flan_jax.vocabularies.vocabulary import Vocabulary, load_vocabulary

__all__ = [
  "BPEVocabulary",
  "ByteVocabulary",
  "ChatFormat",
  "Format",
  "PlainFormat",
  "SentencePieceVocabulary",
  "Vocabulary",
  "format_from_dict",
  "load_vocabulary",
  "train_sentencepiece",
]
