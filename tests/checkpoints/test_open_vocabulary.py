"""A vocabulary is opened wherever somebody left one."""

import json

import pytest
from tokenizers import Tokenizer, models

from flan_jax.checkpoints.vocabularies import open_vocabulary
from flan_jax.errors import CheckpointError, VocabularyError
from flan_jax.vocabularies import ByteVocabulary, SentencePieceVocabulary, train_sentencepiece


@pytest.fixture
def opened(tmp_path):
  return lambda place: open_vocabulary(str(tmp_path / place), tmp_path / "cache")


def test_bytes_need_no_file(tmp_path):
  assert open_vocabulary("bytes", tmp_path).encode("a") == [ord("a") + 3]


def test_a_sentencepiece_model_is_opened(opened, tmp_path):
  model = train_sentencepiece(["one two three four five"] * 50, size=274, extra_ids=0)
  (tmp_path / "my.model").write_bytes(model)
  expected = SentencePieceVocabulary(model).encode("one two")
  assert opened("my.model").encode("one two") == expected
  (tmp_path / "t5").mkdir()
  (tmp_path / "t5" / "spiece.model").write_bytes(model)
  assert opened("t5").encode("one two") == expected and opened("t5").extra_ids == 100


@pytest.mark.parametrize("place", ["saved", "run"])
def test_what_we_saved_is_opened_by_its_folder_or_the_run_s(opened, tmp_path, place):
  folder = tmp_path / place if place == "saved" else tmp_path / place / "vocabulary"
  ByteVocabulary(extra_ids=7).save(folder)
  assert opened(place).fingerprint == ByteVocabulary(extra_ids=7).fingerprint


def test_a_tokenizer_json_is_read_with_the_settings_beside_it(opened, tmp_path):
  words = {"<end>": 0, "one": 1, "two": 2}
  Tokenizer(models.WordLevel(words, unk_token="<end>")).save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(CheckpointError, match="does not say which token ends a text"):
    opened("tokenizer.json")
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
  assert opened("tokenizer.json").encode("two") == [2]
  assert opened("").eos_id == 0


def test_where_there_is_none_it_is_said(opened, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(VocabularyError, match="empty holds no vocabulary"):
    opened("empty")
  with pytest.raises(VocabularyError, match="there is no .*nowhere: name a SentencePiece model"):
    opened("nowhere")
