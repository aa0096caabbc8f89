"""Vocabularies with new control tokens: nothing moves, and the new ones are whole wherever they stand."""

import io
import itertools
import pickle

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from flan_jax.errors import VocabularyError
from flan_jax.vocabularies import ByteVocabulary, SentencePieceVocabulary, load_vocabulary

NEW = ("<care>", "<care/harm>")
SPELT = "the test was <care> it,<care/harm>test\n<care><care/harm>"


def test_new_ids_come_last_and_the_others_stay(vocabulary):
  grown = vocabulary.grown(NEW)
  assert grown.size == vocabulary.size + 2
  assert [grown.encode(token)[-1] for token in NEW] == [vocabulary.size, vocabulary.size + 1]
  assert [grown.token(vocabulary.size + i) for i in range(2)] == list(NEW)
  for text in ("this is a test", "the test was <extra_id_0> it", "café 日本 😀"):
    assert grown.encode(text) == vocabulary.encode(text)
  for name in ("pad_id", "eos_id", "bos_id", "unk_id", "extra_ids", "chat_template"):
    assert getattr(grown, name) == getattr(vocabulary, name)


def test_sentinels_do_not_move(vocabulary):
  grown = vocabulary.grown(NEW)
  for index in range(vocabulary.extra_ids):
    assert grown.sentinel(index) == vocabulary.sentinel(index)


def test_new_tokens_are_one_id_wherever_they_stand_and_are_left_out_when_decoded(vocabulary):
  care, harm = vocabulary.size, vocabulary.size + 1
  grown = vocabulary.grown(NEW)
  ids, ends = grown.encode_with_ends(SPELT)
  assert ids == grown.encode(SPELT) == grown.encode_batch([SPELT])[0]
  assert [i for i in ids if i >= care] == [care, harm, care, harm]
  spelt = [SPELT[:end] for i, end in zip(ids, ends, strict=True) if i >= care]
  assert all(text.endswith(NEW) for text in spelt) and ends[-1] == len(SPELT)
  assert all(a <= b for a, b in itertools.pairwise(ends))
  assert grown.decode(ids) == vocabulary.decode([i for i in ids if i < care])
  assert "<care" not in grown.decode(ids) and "the test was " in grown.decode(ids)


def test_bytes_around_a_new_token_are_spelt_as_ever():
  grown = ByteVocabulary(extra_ids=3).grown(NEW)
  assert grown.encode("é<care>a") == [*ByteVocabulary().encode("é"), 262, 100]
  assert grown.encode_with_ends("é<care>a") == (grown.encode("é<care>a"), [1, 1, 7, 8])
  assert grown.decode(grown.encode("é<care>a")) == "éa"


def test_sentencepiece_cuts_the_text_as_around_symbols_that_it_was_trained_with():
  text = "the test was a fox, that jumps over lazy dogs and it does not mind the tests at all"
  words = text.split()
  texts = [" ".join(words[i:] + words[:i]) for i in range(len(words))]

  def trained(size, symbols):
    model = io.BytesIO()
    SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      vocab_size=size,
      user_defined_symbols=symbols,
      minloglevel=3,
    )
    return model.getvalue()

  theirs = SentencePieceProcessor(model_proto=trained(42, list(NEW)))
  grown = SentencePieceVocabulary(trained(40, [])).grown(NEW)
  for text in (SPELT, "<care>test", "the <care> test", "the<care>test", "  <care>  "):
    assert [grown.token(i) for i in grown.encode(text)] == theirs.encode(text, out_type=str)


def test_a_grown_vocabulary_is_saved_pickled_and_grown_again(vocabulary, tmp_path):
  grown = vocabulary.grown(NEW)
  grown.save(tmp_path / "saved")
  again = vocabulary.grown(NEW[:1]).grown(NEW[1:])
  for other in (load_vocabulary(tmp_path / "saved"), pickle.loads(pickle.dumps(grown)), again):
    assert other.fingerprint == grown.fingerprint != vocabulary.fingerprint
    assert other.encode(SPELT) == grown.encode(SPELT)
    assert other.decode(grown.encode(SPELT)) == grown.decode(grown.encode(SPELT))


def test_other_tokens_give_another_fingerprint(vocabulary):
  fingerprints = {vocabulary.grown(tokens).fingerprint for tokens in (NEW, NEW[::-1], NEW[:1])}
  assert len(fingerprints) == 3


@pytest.mark.parametrize("length", [60, 130])
def test_a_long_token(vocabulary, length):
  token = "<" + "é" * length + ">"
  assert vocabulary.grown([token]).encode(f"test {token}")[-1] == vocabulary.size


def test_tokens_that_cannot_be_added(vocabulary):
  taken = vocabulary.token(vocabulary.eos_id)
  for token, words in (
    ("", "'' is empty"),
    ("<my token>", "holds white space"),
    (taken, "already: take it out"),
    ("a" if isinstance(vocabulary, ByteVocabulary) else vocabulary.token(20), "already"),
  ):
    with pytest.raises(VocabularyError, match=words):
      vocabulary.grown(["<care>", token])
  with pytest.raises(VocabularyError, match="'<care>' is given twice"):
    vocabulary.grown(["<care>", "<care>"])
  with pytest.raises(VocabularyError, match="'<care>' already"):
    vocabulary.grown(["<care>"]).grown(["<care>"])
  with pytest.raises(VocabularyError, match="must be a list"):
    vocabulary.grown("<care>")
