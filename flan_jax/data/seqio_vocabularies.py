"""SeqIO's vocabularies as ours, and ours as SeqIO sees them. Using it imports SeqIO and TensorFlow."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from flan_jax.errors import VocabularyError
from flan_jax.vocabularies import ByteVocabulary, SentencePieceVocabulary, Vocabulary

if TYPE_CHECKING:
  import seqio


def our_vocabulary(theirs: "seqio.Vocabulary") -> Vocabulary | None:
  """Our vocabulary of the same ids; None for a kind that has none.

  Raises:
    VocabularyError: the SentencePiece model cannot be read.
  """
  import seqio
  import tensorflow as tf

  if ours := getattr(theirs, "ours", None):
    return ours
  if type(theirs) is seqio.ByteVocabulary:
    return ByteVocabulary(theirs.extra_ids)
  # A changed normaliser or another order of the sentinels makes other ids.
  changed = getattr(theirs, "_normalizer_spec_overrides", None) or not getattr(
    theirs, "_reverse_extra_ids", True
  )
  if type(theirs) is not seqio.SentencePieceVocabulary or changed:
    return None
  file = theirs.sentencepiece_model_file
  try:
    with tf.io.gfile.GFile(file, "rb") as stream:
      model = stream.read()
  except tf.errors.OpError as error:
    raise VocabularyError(f"{file} cannot be read: {error.message}.") from error
  return SentencePieceVocabulary(model, theirs.extra_ids)


def check_vocabulary(theirs: "seqio.Vocabulary", vocabulary: Vocabulary, what: str) -> None:
  """Checks that ids of SeqIO's vocabulary mean the same in the model's.

  One of a kind that cannot be compared is only held against the model's in size.

  Args:
    what: has SeqIO's vocabulary, for the error.

  Raises:
    VocabularyError: they differ.
  """
  ours = our_vocabulary(theirs)
  if ours is None:
    if theirs.vocab_size > vocabulary.size:
      raise VocabularyError(
        f"{what} has {theirs.vocab_size:,} ids, and the model's vocabulary {vocabulary.size:,}: give the "
        "model a larger one."
      )
  elif ours.fingerprint != vocabulary.fingerprint:
    raise VocabularyError(
      f"{what} is written in another vocabulary ({_shown(ours)}) than the model's ({_shown(vocabulary)}): "
      "train a model on the task's own, as scratch.vocabulary = @seqio_vocabulary() gives it, or give the "
      "task's features the model's."
    )


@functools.cache
def seqio_view(vocabulary: Vocabulary) -> "seqio.Vocabulary":
  """SeqIO's view of a vocabulary; views of equal vocabularies are equal."""
  import seqio
  import tensorflow as tf

  class View(seqio.Vocabulary):
    """Every id counts as an ordinary one: sentinels are part of `vocab_size`, as with extra_ids=0."""

    ours = vocabulary

    @property
    def bos_id(self) -> int | None:
      return vocabulary.bos_id

    @property
    def eos_id(self) -> int:
      return vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
      return vocabulary.unk_id

    @property
    def pad_id(self) -> int:
      return vocabulary.pad_id

    @property
    def _base_vocab_size(self) -> int:
      return vocabulary.size

    def _encode(self, s: str) -> list[int]:
      return vocabulary.encode(s)

    def _decode(self, ids) -> str:
      return vocabulary.decode([int(i) for i in ids])

    def _encode_tf(self, s):
      def encode(text: bytes | np.ndarray):
        # Called eagerly, TensorFlow wraps the bytes into an array.
        spelt = text.item() if isinstance(text, np.ndarray) else text
        return np.asarray(vocabulary.encode(spelt.decode()), np.int32)

      return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

    def _decode_tf(self, ids):
      def decode(rows: np.ndarray):
        texts = [self.decode(row).encode() for row in rows.reshape(-1, rows.shape[-1]).tolist()]
        return np.array(texts, object).reshape(rows.shape[:-1])

      return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), ids.shape[:-1])

    def __eq__(self, other: object) -> bool:
      return hash(self) == hash(other)

    def __hash__(self) -> int:
      return hash(vocabulary.fingerprint)

  return View()


def _shown(vocabulary: Vocabulary) -> str:
  return f"{vocabulary.kind}, {vocabulary.size:,} ids, {vocabulary.extra_ids} of them sentinels"
