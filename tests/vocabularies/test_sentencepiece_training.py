"""A vocabulary made here: numbered as T5's, spells every text, and is the same wherever it is made."""

import os
import pickle
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flan_jax.data import dataset_names, dataset_spec
from flan_jax.errors import VocabularyError
from flan_jax.vocabularies import (
  SentencePieceVocabulary,
  load_vocabulary,
  sentencepiece_training,
  train_sentencepiece,
)

SIZE, EXTRA_IDS = 1024, 100
ODD_TEXTS = [
  "Options:\n- yes\n- no\n\nAnswer:",
  "  two spaces before,  two  within, and after  ",
  "\n\nlines\r\n\ttabs\v\f",
  "😀 👩‍👩‍👧 日本語 ﬁ ½ Ａ é e\u0301 العربية",
  "\x00\x01\x1b\x7f\x85\u2028\ufeff\U0010ffff",
  "▅",
  "",
]


@pytest.fixture(scope="module")
def prompts():
  """A record of every dataset in the words of each of its templates, but for those of promptsource."""
  texts = []
  for spec in map(dataset_spec, (name for name in dataset_names() if not name.startswith("p3_"))):
    record = spec.derive_record(spec.record)
    for template in spec.templates:
      for rendering in template.renderings(record):
        texts += [text for turn in rendering.turns for text in (turn.input, turn.target)]
  return texts


@pytest.fixture(scope="module")
def model(prompts):
  return train_sentencepiece(prompts, SIZE, extra_ids=EXTRA_IDS)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
  path = tmp_path_factory.mktemp("trained") / "spiece.model"
  path.write_bytes(model)
  return path


@pytest.fixture(scope="module")
def vocabulary(path):
  return SentencePieceVocabulary(path, EXTRA_IDS)


def test_ids_are_numbered_as_t5_s_and_the_size_counts_the_sentinels(vocabulary):
  assert vocabulary.size == SIZE
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
  assert vocabulary.bos_id is None
  assert vocabulary.encode("a <extra_id_0> b")[1] == SIZE - 1 == vocabulary.sentinel(0)


def test_prompts_come_back_as_they_were(vocabulary, prompts):
  assert len(prompts) > 500 and any("\n\n" in prompt for prompt in prompts)
  for prompt in [*prompts, *ODD_TEXTS]:
    ids, ends = vocabulary.encode_with_ends(prompt)
    assert vocabulary.decode(ids) == prompt
    assert ids == vocabulary.encode(prompt)
    assert ends[-1:] == ([len(prompt)] if prompt else [])
    assert vocabulary.unk_id not in ids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_every_text_comes_back_as_it_was(text, vocabulary):
  assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_newline_is_one_token_and_never_part_of_a_word(vocabulary):
  (newline,) = {i for i in range(vocabulary.size) if "\n" in vocabulary.token(i)}
  ids = vocabulary.encode("yes\n\nno")
  assert ids.count(newline) == 2 and vocabulary.token(newline) == "\n"


@pytest.mark.filterwarnings("ignore")
def test_seqio_reads_the_same_file_and_gives_the_same_ids(vocabulary, path, prompts):
  seqio = pytest.importorskip("seqio")
  theirs = seqio.SentencePieceVocabulary(str(path), EXTRA_IDS)
  assert (theirs.vocab_size, theirs.pad_id, theirs.eos_id, theirs.unk_id) == (SIZE, 0, 1, 2)
  for prompt in [*prompts, *ODD_TEXTS, "a <extra_id_0> b <extra_id_99>"]:
    assert vocabulary.encode(prompt) == theirs.encode(prompt)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grown", [False, True])
def test_transformers_reads_what_is_written_for_it_and_gives_the_same_ids(
  vocabulary, grown, prompts, tmp_path
):
  transformers = pytest.importorskip("transformers")
  if grown:
    vocabulary = vocabulary.grown(["<|care|>"])
  for name, content in vocabulary.hugging_face_files().items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
  assert len(theirs) == vocabulary.size
  for prompt in [*prompts, *ODD_TEXTS, "a <extra_id_0> b <extra_id_99>"]:
    assert theirs.encode(prompt) == [*vocabulary.encode(prompt), 1]
    assert theirs.decode(theirs.encode(prompt)[:-1]) == prompt
  if grown:
    assert theirs.encode("a<|care|> b") == [*vocabulary.encode("a<|care|> b"), 1]
    assert SIZE in theirs.encode("<|care|>")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_number_of_processors_does_not_change_a_byte(prompts, model_type):
  processors = os.sched_getaffinity(0)
  many = train_sentencepiece(prompts, SIZE, model_type=model_type)
  try:
    os.sched_setaffinity(0, [min(processors)])
    one = train_sentencepiece(prompts, SIZE, model_type=model_type)
  finally:
    os.sched_setaffinity(0, processors)
  assert one == many


def test_the_library_s_number_of_threads_would_change_it(prompts, model, monkeypatch):
  monkeypatch.setattr("flan_jax.vocabularies.sentencepiece_training._THREADS", 3)
  assert train_sentencepiece(prompts, SIZE, extra_ids=EXTRA_IDS) != model


def test_long_texts_are_cut_where_sentencepiece_does_not_see_it(vocabulary, prompts, monkeypatch):
  monkeypatch.setattr(sentencepiece_training, "_LONGEST", 40)
  for prompt in [*prompts, *ODD_TEXTS, "one  two   three " * 20, " \n  a \n" * 20]:
    stretches = list(sentencepiece_training._stretches(prompt.replace("▅", " ")))
    whole = vocabulary.encode(prompt.replace("▅", " "))
    assert [i for stretch in stretches for i in vocabulary.encode(stretch)] == whole
  assert len(list(sentencepiece_training._stretches("some words " * 100))) == 25


@pytest.mark.parametrize(
  ("texts", "words"),
  [([], "there is no text"), (["", ""], "there is no text"), (["half \ud83d"], "a surrogate pair")],
)
def test_texts_that_nothing_can_be_made_of(texts, words):
  with pytest.raises(VocabularyError, match=words) as refused:
    train_sentencepiece(texts, SIZE)
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(("size", "beyond"), [(90_000, 1), (370, -1)])
def test_a_size_that_cannot_be_had_names_the_last_one_that_can(prompts, model_type, size, beyond):
  few = prompts[:100]
  with pytest.raises(VocabularyError, match=r"at (most|least) with its 100 sentinels") as refused:
    train_sentencepiece(few, size, model_type=model_type)
  limit = int(re.search(r"([\d,]+) at (most|least)", str(refused.value))[1].replace(",", ""))
  train_sentencepiece(few, limit, model_type=model_type)
  with pytest.raises(VocabularyError):
    train_sentencepiece(few, limit + beyond, model_type=model_type)


def test_a_size_without_room_for_a_single_piece(prompts):
  with pytest.raises(VocabularyError, match="size=300 must be more than 360: 100 sentinels"):
    train_sentencepiece(prompts, 300)


def test_control_tokens_are_one_id_each_where_a_text_spells_them(prompts, tmp_path):
  tokens = ("<|user|>", "<|model|>")
  path = tmp_path / "spiece.model"
  path.write_bytes(train_sentencepiece(prompts, SIZE, control_tokens=tokens))
  SentencePieceVocabulary(path, 100, tokens).save(tmp_path / "saved")
  vocabulary = load_vocabulary(tmp_path / "saved")
  ids = vocabulary.encode("<|user|>Is it so?<|model|>")
  assert vocabulary.size == SIZE and {ids[0], ids[-1]} == {3, 4}
  assert vocabulary.decode(ids) == "Is it so?"
  assert pickle.loads(pickle.dumps(vocabulary)).encode("<|user|>") == ids[:1]
  for wrong in ("", "</s>", "<0x41>", "<extra_id_7>", "<|user|>"):
    with pytest.raises(VocabularyError, match="the control token"):
      train_sentencepiece(prompts, SIZE, control_tokens=("<|user|>", wrong))
