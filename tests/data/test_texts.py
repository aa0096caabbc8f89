"""Raw text as a member of mixtures."""

import itertools

import numpy as np
import pytest
import yaml

from flan_jax.data import Mixture, StoreConfig, library, register_templates, register_text
from flan_jax.data import mixtures as registry
from flan_jax.data import texts as text_registry
from flan_jax.data.encode import Encoder
from flan_jax.data.locks import lock_mixture
from flan_jax.data.mixtures import training_datasets
from flan_jax.data.objectives import LM, PrefixLM, SpanCorruption
from flan_jax.data.prepare import prepare
from flan_jax.data.texts import TextDraws, documents
from flan_jax.errors import ConfigError, TemplateError
from flan_jax.prompting import read_dataset
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

LENGTHS = {"inputs": 64, "targets": 64}
VOCABULARY = ByteVocabulary(extra_ids=100)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
  library.import_library()
  monkeypatch.setattr(registry, "_mixtures", dict(registry._mixtures))
  monkeypatch.setattr(text_registry, "_texts", dict(text_registry._texts))
  monkeypatch.setattr(library, "_template_folders", [])


@pytest.fixture
def facts(make_dataset, tmp_path):
  make_dataset("facts", rows=40, text="{question} Somebody asked.")
  register_templates(tmp_path / "templates")
  return tmp_path / "data"


def draws(task, data_dir, layout="encoder_decoder", lengths=LENGTHS, format=None, **settings):
  format = format or PlainFormat(eos_on_inputs=layout == "encoder_decoder")
  encoder = Encoder(VOCABULARY, format, layout, lengths)
  return encoder, TextDraws(task, encoder, 0, data_dir, **settings)


def text_of(ids):
  return VOCABULARY.decode([i for i in np.asarray(ids).tolist() if i != VOCABULARY.eos_id])


def test_the_documents_of_a_split_are_its_records_once(facts):
  task = register_text("t", ["facts"], LM())
  train, test = (list(documents(task, split, facts)) for split in ("train", "test"))
  assert len(train) + len(test) == 40
  assert not {*train} & {*test}
  assert all(document.endswith("odd? Somebody asked.") for document in train)


def test_running_text_is_borrowed_with_the_templates(facts, tmp_path):
  (path,) = (tmp_path / "templates").glob("*/facts.yaml")
  data = yaml.safe_load(path.read_text())
  own = {key: data[key] for key in ("cluster", "description", "source", "splits", "record")}
  borrower = {**own, "templates": {"like": "facts.yaml"}}
  path.with_name("borrowed.yaml").write_text(yaml.safe_dump(borrower, sort_keys=False))
  task, borrowed = register_text("t", ["facts"], LM()), register_text("b", ["borrowed"], LM())
  assert sorted(documents(borrowed, "train", facts)) == sorted(documents(task, "train", facts))
  _, text = draws(borrowed, facts, layout="decoder")
  assert text.length > 0
  assert lock_mixture(Mixture("m", {"b": None}), facts)["datasets"]["b"]["text_of"]["borrowed"][
    "text"
  ]


def test_a_corrupted_stretch_fills_the_row_and_ends_as_the_format_says(facts):
  task = register_text("t", ["facts"], SpanCorruption())
  encoder, text = draws(task, facts)
  encoded = text.encode(encoder, 0, 0)
  assert 62 <= len(encoded.inputs) <= 64
  assert encoded.inputs[-1] == encoded.targets[-1] == VOCABULARY.eos_id
  assert encoded.spans == ((0, len(encoded.targets)),)
  assert VOCABULARY.sentinel(0) in encoded.inputs and VOCABULARY.sentinel(0) == encoded.targets[0]
  noise = (encoded.targets < VOCABULARY.sentinel(99)).sum() - 1
  assert noise == round(text.length * 0.15)


def test_a_pass_goes_once_over_the_text_and_the_next_one_cuts_it_elsewhere(facts):
  task = register_text("t", ["facts"], LM())
  encoder, text = draws(task, facts, "decoder")
  passes = [[text.encode(encoder, i, lap).targets for i in range(text.size)] for lap in (0, 1)]
  whole = np.concatenate(
    [
      [*VOCABULARY.encode(document), VOCABULARY.eos_id]
      for document in documents(task, "train", facts)
    ]
  )
  for stretches in passes:
    joined = np.concatenate(stretches)
    turned = [np.roll(whole, -shift)[: len(joined)] for shift in range(len(whole))]
    assert any(np.array_equal(joined, one) for one in turned)
  assert not np.array_equal(passes[0][0], passes[1][0])


def test_a_prefix_and_what_follows_lie_in_one_document(facts):
  task = register_text("t", ["facts"], PrefixLM())
  encoder, text = draws(task, facts)
  known = list(documents(task, "train", facts))
  assert text.size == len(known)
  for example, lap in itertools.product(range(text.size), (0, 1)):
    encoded = text.encode(encoder, example, lap)
    assert text_of(encoded.inputs) + text_of(encoded.targets) in known
  cuts = {len(text.encode(encoder, 0, lap).inputs) for lap in range(20)}
  assert len(cuts) > 5


def test_a_decoder_reads_a_prefix_and_learns_what_follows(facts):
  task = register_text("t", ["facts"], PrefixLM())
  encoder, text = draws(task, facts, "decoder")
  encoded = text.encode(encoder, 3, 0)
  ((first, last),) = encoded.spans
  assert 0 < first < last == len(encoded.targets)
  assert text_of(encoded.targets) in list(documents(task, "train", facts))
  assert len(encoded.inputs) == 0


def test_a_store_mixes_text_and_prompts_and_holds_out_other_documents(facts):
  register_text("t", ["facts"], PrefixLM(), passes=50)
  mixture = Mixture("mixed", {"facts": None, "t": "50%"})
  assert training_datasets(mixture) == ["facts"]
  seen = {}
  for split in ("train", "test"):
    config = StoreConfig(
      mixture,
      VOCABULARY,
      PlainFormat(eos_on_inputs=True),
      "encoder_decoder",
      LENGTHS,
      window=64,
      split=split,
    )
    store = prepare(config, 40, facts, workers=1, progress=False)
    names = [task.name for task in store.tasks]
    examples = [example for row in range(store.rows) for example in store.row(row)]
    count = sum(names[example.task] == "t" for example in examples)
    assert abs(count / len(examples) - 0.5) < 0.1
    seen[split] = {
      text_of(example.inputs) + text_of(example.targets)
      for example in examples
      if names[example.task] == "t"
    }
  assert not seen["train"] & seen["test"]


def test_more_text_than_there_is_is_refused_before_anything_is_made(facts):
  register_text("t", ["facts"], SpanCorruption(), passes=2)
  config = StoreConfig("t", VOCABULARY, PlainFormat(eos_on_inputs=True), "encoder_decoder", LENGTHS)
  with pytest.raises(ConfigError, match=r"'t' is too short .* each of 2 passes.*5,000 rows want"):
    prepare(config, 5000, facts, workers=1, progress=False)
  (store,) = (facts / "stores").glob("t-*")
  assert not list((store / "windows").iterdir())


def test_text_that_runs_out_among_other_draws_is_refused_when_it_does(facts):
  register_text("t", ["facts"], PrefixLM(), passes=1)
  mixture = Mixture("mixed", {"facts": None, "t": "50%"})
  config = StoreConfig(mixture, VOCABULARY, PlainFormat(), "encoder_decoder", LENGTHS, window=32)
  with pytest.raises(ConfigError, match="'t' is too short for this run"):
    prepare(config, 58, facts, workers=1, progress=False)


def test_a_text_of_a_held_out_cluster_is_refused(facts):
  register_text("t", ["facts"], LM())
  with pytest.raises(ConfigError, match="'t' is made of facts, whose cluster 'trivia' is held out"):
    training_datasets(Mixture("m", {"t": None}, hold_out=("trivia",)))


def test_a_dataset_without_running_text_is_refused(make_dataset, tmp_path):
  make_dataset("mute", rows=40)
  register_templates(tmp_path / "templates")
  task = register_text("t", ["mute"], LM())
  with pytest.raises(
    ConfigError, match=r'mute.yaml: .* no `text`; add one, such as text: "{question}"'
  ):
    draws(task, tmp_path / "data", "decoder")


def test_an_encoder_cannot_train_a_language_model(facts):
  task = register_text("t", ["facts"], LM())
  with pytest.raises(ConfigError, match="needs PrefixLM or SpanCorruption"):
    draws(task, facts)


def test_too_little_text_for_one_example_is_refused(facts):
  task = register_text("t", ["facts"], SpanCorruption())
  with pytest.raises(ConfigError, match="one example takes"):
    draws(task, facts, lengths={"inputs": 4096, "targets": 4096})


def test_a_dataset_file_may_be_nothing_but_text(make_dataset):
  path = make_dataset("prose", text="{question}", templates=None, metrics=None, answer=None)
  assert not read_dataset(path).templates
  with pytest.raises(TemplateError, match="unknown field 'questions'; did you mean 'question'"):
    read_dataset(make_dataset("prose", text="{questions}"))
  with pytest.raises(TemplateError, match="no 'metrics'"):
    read_dataset(make_dataset("prose", metrics=None, templates=None))
