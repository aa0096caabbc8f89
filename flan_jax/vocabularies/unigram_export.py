"""A unigram model of SentencePiece that takes texts as they are, as `tokenizer.json` of the tokenizers library.

What transformers makes of such a model file by itself drops newlines and repeated spaces, as T5's own model does.
One difference is left: a text that spells a byte piece, such as "<0x0A>", may be read as that byte.
"""

from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

# Byte pieces stand for bytes and are not to be read from their spelling: every other piece is likelier.
_NEVER = -1000.0


def is_unigram(processor: SentencePieceProcessor) -> bool:
  """Whether pieces have log-probabilities; those of BPE are numbered."""
  scores = [processor.get_score(i) for i in range(processor.vocab_size())]
  return any(score != round(score) for score in scores)


def takes_text_as_it_is(processor: SentencePieceProcessor) -> bool:
  """Whether newlines and repeated spaces come back."""
  odd = "a \n\n  b"
  return processor.decode(processor.encode(odd)) == odd


def unigram_tokenizer(
  processor: SentencePieceProcessor, control_tokens: Sequence[str], ends_texts: bool
) -> bytes:
  """The content of tokenizer.json.

  Args:
    control_tokens: that a text may spell out.
    ends_texts: the end token is put behind a text, as T5's tokenizer does.
  """
  pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
  vocabulary = [
    (piece, _NEVER if processor.is_byte(i) else processor.get_score(i))
    for i, piece in enumerate(pieces)
  ]
  tokenizer = Tokenizer(models.Unigram(vocabulary, processor.unk_id(), byte_fallback=True))
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")]
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  roles = (processor.pad_id(), processor.eos_id(), processor.unk_id())
  special = [pieces[i] for i in roles if i >= 0] + list(control_tokens)
  tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
  if ends_texts:
    end = pieces[processor.eos_id()]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, processor.eos_id())]
    )
  return tokenizer.to_str(pretty=True).encode()
