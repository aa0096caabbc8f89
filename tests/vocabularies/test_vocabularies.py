"""Vocabularies: the ids that the reference implementations give, and what is saved comes back."""

import itertools
import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flan_jax.data.archives import fetch, members
from flan_jax.errors import UnknownName, VocabularyError
from flan_jax.vocabularies import (
  BPEVocabulary,
  ByteVocabulary,
  ChatFormat,
  SentencePieceVocabulary,
  load_vocabulary,
)

MISTRAL = "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
TEXTS = ["this is a test", "the test was <extra_id_0> it", "<extra_id_99>", "", "café 日本 😀"]

any_text = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.mark.filterwarnings("ignore")
def test_bytes_have_the_ids_that_seqio_gives_them():
  seqio = pytest.importorskip("seqio")
  ours, theirs = ByteVocabulary(extra_ids=7), seqio.ByteVocabulary(extra_ids=7)
  assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
  assert (ours.size, ours.pad_id, ours.eos_id) == (theirs.vocab_size, theirs.pad_id, theirs.eos_id)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("extra_ids", [0, 100])
def test_sentencepiece_has_the_ids_that_seqio_gives_it(seqio_model, extra_ids):
  seqio = pytest.importorskip("seqio")
  ours = SentencePieceVocabulary(seqio_model, extra_ids)
  theirs = seqio.SentencePieceVocabulary(str(seqio_model), extra_ids)
  assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
  assert (ours.size, ours.pad_id, ours.eos_id) == (theirs.vocab_size, theirs.pad_id, theirs.eos_id)
  assert ours.unk_id == theirs.unk_id


def test_sentinels_count_down_from_the_end_as_t5_s_do(seqio_model):
  vocabulary = SentencePieceVocabulary(seqio_model, extra_ids=100)
  assert vocabulary.sentinel(0) == vocabulary.size - 1 == vocabulary.encode("<extra_id_0>")[-1]
  assert vocabulary.sentinel(99) == vocabulary.size - 100
  with pytest.raises(VocabularyError, match="extra_ids=101"):
    vocabulary.sentinel(100)


@any_text
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_bytes_and_byte_pairs_spell_every_text(text, bpe):
  for vocabulary in (ByteVocabulary(), bpe):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert all(0 <= i < vocabulary.size for i in ids)


@any_text
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_token_says_how_much_of_the_text_is_spelt_once_it_is_read(text, bpe):
  for vocabulary in (ByteVocabulary(), bpe):
    ids, ends = vocabulary.encode_with_ends(text)
    assert ids == vocabulary.encode(text)
    assert len(ends) == len(ids)
    assert all(a <= b for a, b in itertools.pairwise([0, *ends]))
    assert ends[-1:] == ([len(text)] if text else [])


def test_sentencepiece_counts_characters_not_bytes(seqio_model):
  vocabulary = SentencePieceVocabulary(seqio_model)
  ids, ends = vocabulary.encode_with_ends("thé test")
  assert ids == vocabulary.encode("thé test")
  assert ends[-1] == len("thé test")
  assert ends == sorted(ends)


def test_a_batch_is_encoded_as_its_texts_are(vocabulary):
  texts = ["this is a test", "", "test test"]
  assert vocabulary.encode_batch(texts) == [vocabulary.encode(text) for text in texts]


def test_what_is_saved_comes_back(vocabulary, tmp_path):
  vocabulary.save(tmp_path / "saved")
  again = load_vocabulary(tmp_path / "saved")
  assert type(again) is type(vocabulary)
  assert again.fingerprint == vocabulary.fingerprint
  assert again.encode("this is a test") == vocabulary.encode("this is a test")
  for name in ("size", "pad_id", "eos_id", "bos_id", "unk_id", "chat_template", "extra_ids"):
    assert getattr(again, name) == getattr(vocabulary, name)


def test_the_fingerprint_follows_what_decides_the_ids(bpe, seqio_model):
  fingerprints = {
    ByteVocabulary().fingerprint,
    ByteVocabulary(extra_ids=1).fingerprint,
    SentencePieceVocabulary(seqio_model).fingerprint,
    SentencePieceVocabulary(seqio_model, extra_ids=100).fingerprint,
    bpe.fingerprint,
    BPEVocabulary(bpe.tokenizer, "<|start|>").fingerprint,
  }
  assert len(fingerprints) == 6
  without_chat = BPEVocabulary(bpe.tokenizer, "<|end|>", "<|start|>")
  assert without_chat.fingerprint == bpe.fingerprint


def test_special_tokens_in_a_text_are_one_id_and_are_left_out_when_decoded(bpe):
  ids = bpe.encode("<|start|>yes<|end|>")
  assert (ids[0], ids[-1]) == (bpe.bos_id, bpe.eos_id)
  assert bpe.decode(ids) == "yes"
  assert bpe.token(bpe.eos_id) == "<|end|>"


def test_ids_beyond_the_vocabulary_are_left_out_when_decoded(vocabulary):
  ids = vocabulary.encode("test")
  assert vocabulary.decode([*ids, vocabulary.size, vocabulary.size + 5]) == vocabulary.decode(ids)


def test_a_file_that_is_no_model_is_named(tmp_path, bpe):
  junk = tmp_path / "junk"
  junk.write_bytes(b"junk")
  for read in (SentencePieceVocabulary, lambda path: BPEVocabulary.from_file(path, "</s>")):
    with pytest.raises(VocabularyError, match="junk: not a"):
      read(junk)
    with pytest.raises(VocabularyError, match="no such"):
      read(tmp_path / "absent")
  with pytest.raises(VocabularyError, match="holds no vocabulary"):
    load_vocabulary(tmp_path)
  (tmp_path / "vocabulary.json").write_text(json.dumps({"kind": "runes"}))
  with pytest.raises(VocabularyError, match="Known kinds: bpe, bytes, sentencepiece"):
    load_vocabulary(tmp_path)
  with pytest.raises(UnknownName, match="Did you mean '<\\|end\\|>'"):
    BPEVocabulary(bpe.tokenizer, "<|ends|>")


@pytest.mark.network
def test_mistral_s_sentencepiece_model_reads_its_chat_template(tmp_path):
  wheel = fetch("mistral-common==1.13.1", MISTRAL, cache_dir=tmp_path)
  path = tmp_path / "tokenizer.model"
  for _, stream in members(wheel, "mistral_common/data/tokenizer.model.v1"):
    path.write_bytes(stream.read())
  vocabulary = SentencePieceVocabulary(path, control_tokens=("<s>", "</s>"))
  assert (vocabulary.size, vocabulary.bos_id, vocabulary.eos_id) == (32_000, 1, 2)
  # The ids of "[INST]" and "[/INST]" that Mistral documents.
  ids = vocabulary.encode("<s>[INST] Hello [/INST] Hi</s>")
  assert ids[:5] == [1, 733, 16289, 28793, 22557]
  assert ids[5:9] == [733, 28748, 16289, 28793]
  assert ids[-1] == 2
  plain = "café 日本 😀\nnext line"
  assert vocabulary.decode(vocabulary.encode(plain)) == plain
  assert vocabulary.encode("<s>") != SentencePieceVocabulary(path).encode("<s>")
  with pytest.raises(VocabularyError, match="no piece"):
    SentencePieceVocabulary(path, control_tokens=("<|im_end|>",))


@pytest.mark.network
def test_smollm2_s_tokenizer_comes_back_whole_from_its_gguf_file(tmp_path):
  from flan_jax.checkpoints.gguf import open_gguf
  from flan_jax.checkpoints.pretrained import SMOLLM2_135M_INSTRUCT, model_file

  vocabulary = open_gguf(model_file(SMOLLM2_135M_INSTRUCT, cache_dir=tmp_path)).vocabulary
  assert (vocabulary.size, vocabulary.token(vocabulary.eos_id)) == (49_152, "<|im_end|>")
  assert ChatFormat.of(vocabulary).end_of_turn == "<|im_end|>"
  text = "In 1905, Einstein's café: 12 + 30 = 42\n\n  日本"
  assert vocabulary.decode(vocabulary.encode(text)) == text
  vocabulary.save(tmp_path / "saved")
  assert load_vocabulary(tmp_path / "saved").encode(text) == vocabulary.encode(text)


def test_a_vocabulary_can_be_sent_to_another_process(vocabulary):
  again = pickle.loads(pickle.dumps(vocabulary))
  assert again.fingerprint == vocabulary.fingerprint
  assert again.encode("this is a test") == vocabulary.encode("this is a test")
