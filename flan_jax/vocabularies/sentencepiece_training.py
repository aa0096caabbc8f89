"""A SentencePiece model made from texts: the same texts and settings give the same bytes, anywhere."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from sentencepiece import SentencePieceTrainer

from flan_jax.errors import VocabularyError

_THREADS = 16
"""The library adds up the counts of its threads in their order: another number would give other pieces."""

_T5_TOKENS = ("<pad>", "</s>", "<unk>")
_NEWLINE = "\n"
_BYTES = 256
_SILENT = 3  # of the library's levels of logging: errors, which are raised as well, are not printed
_RESERVED = (
  "▅"  # U+2585, the library's mark of the unknown: it would leave a text out that holds it
)


def train_sentencepiece(
  texts: Iterable[str],
  size: int,
  *,
  extra_ids: int = 100,
  control_tokens: Sequence[str] = (),
  model_type: Literal["unigram", "bpe"] = "unigram",
) -> bytes:
  """A model for `SentencePieceVocabulary(path, extra_ids, control_tokens)`, numbered as T5's.

  Pad is 0, the end 1, unknown 2; there is no begin token. Nothing is unknown, since what has no piece is
  spelt in bytes. T5's own model folds Unicode forms and drops newlines and repeated spaces; here a text
  is taken as it is and comes back as it was, because prompts are laid out with them: a newline is a piece
  of its own, and runs of spaces are pieces. (One character cannot come back: U+2581, which SentencePiece
  writes for a space.)

  Args:
    texts: what is counted.
    size: of the vocabulary, sentinels included, so that it is what an embedding must hold.
    extra_ids: sentinels, which the vocabulary adds to the model. See Raffel et al. 2020, section 3.1.4.
    control_tokens: tokens of one piece each, such as ("<|user|>",), with the ids from 3 on.
    model_type: "unigram" (Kudo 2018), as T5 and mT5 have it, or "bpe".

  Returns:
    The bytes of the model file.

  Raises:
    VocabularyError: the texts do not give so many pieces, or need more; a control token is empty or taken.
  """
  _check(size, extra_ids, control_tokens)
  model = io.BytesIO()
  try:
    SentencePieceTrainer.train(
      sentence_iterator=(text.replace(_RESERVED, " ") for text in texts),
      model_writer=model,
      model_type=model_type,
      vocab_size=size - extra_ids,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      byte_fallback=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      user_defined_symbols=[_NEWLINE],
      control_symbols=list(control_tokens),
      max_sentence_length=1 << 30,  # longer ones would be left out
      num_threads=_THREADS,
      minloglevel=_SILENT,
    )
  except RuntimeError as error:
    raise VocabularyError(_complaint(str(error), size, extra_ids)) from error
  return model.getvalue()


def _check(size: int, extra_ids: int, control_tokens: Sequence[str]) -> None:
  taken = [*_T5_TOKENS, _NEWLINE]
  for token in control_tokens:
    if not token or token in taken:
      reason = "is one already" if token else "is empty"
      raise VocabularyError(f"the control token {token!r} {reason}: take it out.")
    taken.append(token)
  least = extra_ids + len(taken) + _BYTES
  if extra_ids < 0 or size < least:
    raise VocabularyError(
      f"size={size:,} must be more than {least:,}: {extra_ids} sentinels, {len(taken)} other tokens of "
      f"its own and {_BYTES} bytes come before the first piece of text."
    )


def _complaint(refusal: str, size: int, extra_ids: int) -> str:
  """What SentencePiece refused, in numbers of this vocabulary."""
  sentinels = f" with its {extra_ids} sentinels" if extra_ids else ""
  if most := re.search(r"too high .*<= (\d+)", refusal):
    return (
      f"the text is too short for a vocabulary of {size:,} tokens: it gives {int(most[1]) + extra_ids:,} "
      f"at most{sentinels}. Set size to that or less, or give more text."
    )
  if least := re.search(r"smaller than required_chars\. -?\d+ vs (\d+)", refusal):
    return (
      f"a vocabulary of {size:,} tokens cannot hold the characters of the text: it takes "
      f"{int(least[1]) + extra_ids:,} at least{sentinels} and one token for each byte. Set size to that "
      "or more."
    )
  return f"SentencePiece refuses this text or size={size:,}: {refusal}"
