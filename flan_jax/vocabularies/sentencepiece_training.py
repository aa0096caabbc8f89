"""A SentencePiece model made from texts: the same bytes on any number of processors."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from sentencepiece import SentencePieceTrainer

from flan_jax.errors import VocabularyError

_THREADS = 16
"""The library adds up the counts of its threads in their order: another number would give other pieces."""

_LONGEST = 1 << 15
"""Characters: the library compares each suffix of a text with the next one, which takes the square of the length
where a text repeats itself."""

_LONE_SPACE = re.compile(r"(?<=\S) (?=\S)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_T5_TOKENS = ("<pad>", "</s>", "<unk>")
_NEWLINE = "\n"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
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
    VocabularyError: the texts do not give so many pieces, or need more, or are none; a control token is empty
      or taken.
  """
  check_vocabulary_size(size, extra_ids, control_tokens)
  # In a list: an error on the way to it is raised as it is, not through the trainer's C++.
  stretches = [stretch for text in texts for stretch in _stretches(text)]
  model = io.BytesIO()
  try:
    SentencePieceTrainer.train(
      sentence_iterator=iter(stretches),
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


def _stretches(text: str) -> Iterator[str]:
  """The text in parts that the library counts as it would count the whole.

  A text begins as after a space, and no piece of several words is made: a cut at a lone space is not seen.
  """
  if _SURROGATE.search(text):
    raise VocabularyError(
      f"half of a surrogate pair, which is no character, is in the text {text[:60]!r}: mend its record."
    )
  text = text.replace(_RESERVED, " ")
  start = 0
  while cut := _LONE_SPACE.search(text, start + _LONGEST):
    yield text[start : cut.start()]
    start = cut.end()
  yield text[start:]


def check_vocabulary_size(size: int, extra_ids: int, control_tokens: Sequence[str]) -> None:
  """Raises VocabularyError for a size that what comes before the first piece of text leaves no room in."""
  taken = [*_T5_TOKENS, _NEWLINE, *_BYTES]
  sentinels = [f"<extra_id_{index}>" for index in range(extra_ids)]
  for token in control_tokens:
    if not token or token in taken or token in sentinels:
      reason = "is one already" if token else "is empty"
      raise VocabularyError(f"the control token {token!r} {reason}: take it out.")
    taken.append(token)
  least = extra_ids + len(taken)
  if extra_ids < 0 or size < least:
    raise VocabularyError(
      f"size={size:,} must be more than {least:,}: {extra_ids} sentinels, "
      f"{len(taken) - len(_BYTES)} other tokens of its own and {len(_BYTES)} bytes come before the first piece of text."
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
  if "sentences_.empty()" in refusal:
    return "there is no text to make a vocabulary of: every text is empty."
  return f"SentencePiece refuses this text or size={size:,}: {refusal}"
