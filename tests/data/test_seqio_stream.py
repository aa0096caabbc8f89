"""Anybody's SeqIO task is stored as SeqIO itself yields it: the ids, the order, the mixing, the lengths."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from flan_jax.data import (
  dataset_spec,
  get_mixture,
  library,
  load_records,
  register_seqio,
  register_templates,
)
from flan_jax.data.batches import make_features
from flan_jax.data.draws import DrawStream
from flan_jax.data.prepare import prepare
from flan_jax.data.seqio_vocabularies import our_vocabulary
from flan_jax.data.store import StoreConfig
from flan_jax.errors import ConfigError, RecordError, UnknownName, VocabularyError
from flan_jax.vocabularies import ByteVocabulary, PlainFormat, SentencePieceVocabulary

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = ByteVocabulary()
LENGTHS = {"inputs": 48, "targets": 16}
QUESTIONS = [f"what is {i} and {i + 1}? {'please ' * (i % 4)}" for i in range(30)]


def feature(vocabulary=None, **settings):
  import seqio

  return seqio.Feature(vocabulary or seqio.ByteVocabulary(0), **settings)


def lines(path):
  """A preprocessor: a line is a question and its answer, parted by a tab."""
  import seqio
  import tensorflow as tf

  @seqio.map_over_dataset
  def parts(line):
    question, answer = tf.unstack(tf.strings.split(line, "\t", maxsplit=1), num=2)
    return {"inputs": tf.strings.join(["question: ", question]), "targets": answer}

  return parts(path)


@pytest.fixture
def add_task(seqio, tmp_path):
  """Registers a task that reads lines of files and tokenises, trims and ends them as SeqIO does."""

  def add(name="asked", rows=QUESTIONS, features=None, **settings):
    files = {"train": tmp_path / f"{name}.train.tsv", "test": tmp_path / f"{name}.test.tsv"}
    for split, path in files.items():
      path.write_text("".join(f"{split} {row}\tanswer {i}\n" for i, row in enumerate(rows)))
    steps = [lines, seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()]
    settings = {
      "source": seqio.TextLineDataSource({split: str(path) for split, path in files.items()}),
      "preprocessors": [*steps, seqio.preprocessors.append_eos_after_trim],
      "output_features": features or {"inputs": feature(), "targets": feature()},
      **settings,
    }
    return seqio.TaskRegistry.add(name, **settings)

  return add


@pytest.fixture
def own_dataset(make_dataset, tmp_path, monkeypatch):
  """One of our own datasets, as a mixture."""
  monkeypatch.setattr(library, "_template_folders", [])
  make_dataset("facts", 12, splits={"train": 0.75, "test": 0.25})
  register_templates(tmp_path / "templates")
  return get_mixture("facts")


@pytest.fixture
def config():
  return StoreConfig("asked", VOCABULARY, PlainFormat(), "encoder_decoder", LENGTHS, window=16)


@pytest.fixture
def make(config, tmp_path):
  def make(rows=10, data_dir="data", **changes):
    return prepare(
      dataclasses.replace(config, **changes), rows, tmp_path / data_dir, progress=False
    )

  return make


def stored(store):
  """(inputs, targets) of every example, in the order of the stream."""
  examples = [e for r in range(store.rows) for e in store.row(r)]
  ordered = sorted(examples, key=lambda e: e.example)
  assert [e.example for e in ordered] == list(range(len(ordered)))
  return [(e.inputs.tolist(), e.targets.tolist()) for e in ordered]


def yielded(name, count, lengths=LENGTHS, **settings):
  """What SeqIO itself yields."""
  import seqio

  settings = {"split": "train", "shuffle": True, "seed": 0, "num_epochs": None, **settings}
  dataset = seqio.get_mixture_or_task(name).get_dataset(sequence_length=lengths, **settings)
  examples = dataset.take(count).as_numpy_iterator()
  return [
    (e["inputs"].tolist() if "inputs" in lengths else [], e["targets"].tolist()) for e in examples
  ]


def content(store):
  return {p.name: p.read_bytes() for p in sorted(store.directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("ends", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("lengths", [LENGTHS, {"inputs": 20, "targets": 6}])
def test_a_users_task_is_stored_token_for_token_over_several_passes(add_task, make, ends, lengths):
  add_task(
    features={"inputs": feature(add_eos=ends[0]), "targets": feature(add_eos=ends[1])},
    shuffle_buffer_size=8,
  )
  found = stored(make(lengths=lengths, rows=40, seed=3, window=64))
  assert len(found) > 2 * len(QUESTIONS)
  assert found == yielded("asked", len(found), lengths, seed=3)


def test_split_and_order_are_obeyed(add_task, make):
  add_task()
  straight = make(shuffle=False)
  found = stored(straight)
  assert found == yielded("asked", len(found), shuffle=False)
  test = make(shuffle=False, split="test")
  found = stored(test)
  assert found == yielded("asked", len(found), shuffle=False, split="test")
  fingerprints = {store.fingerprint for store in (straight, test, make(), make(seed=1))}
  assert len(fingerprints) == 4


def test_a_mixture_is_mixed_by_seqio_and_each_example_knows_its_task(seqio, add_task, make):
  def by_size(task, scale):
    return scale * len(task.name)

  for name in ("short", "longer", "very_long"):
    add_task(name, [f"{name} {i}" for i in range(20)])
  seqio.MixtureRegistry.add("inner", ["short", "longer"], default_rate=2.0)
  seqio.MixtureRegistry.add(
    "outer", [("inner", 3.0), ("very_long", functools.partial(by_size, scale=0.5))]
  )
  store = make(60, mixture="outer", seed=4)
  found = stored(store)
  assert found == yielded("outer", len(found), seed=4)
  mixture = seqio.get_mixture_or_task("outer")
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert {task.name: task.share for task in store.tasks} == pytest.approx(
    {name: rate / sum(rates.values()) for name, rate in rates.items()}
  )
  for row in range(store.rows):
    for e, provenance in zip(store.row(row), store.provenance(row), strict=True):
      name = store.tasks[e.task].name
      assert store.texts(e)[0].startswith(f"question: train {name} ")
      assert (provenance.dataset, provenance.index) == (name, e.example)
      assert (provenance.template, provenance.exemplars) == ("", ())


def test_a_mixture_that_mixes_in_its_own_way_counts_as_one_task(seqio, add_task, make):
  class Own(seqio.Mixture):
    def get_dataset(self, *args, **kwargs):
      return super().get_dataset(*args, **kwargs).filter(lambda e: e["inputs"][-2] != 0)

  for name in ("one", "two"):
    add_task(name)
  seqio.MixtureRegistry.add("both", ["one", "two"], default_rate=1, mixture_cls=Own)
  store = make(mixture="both")
  found = stored(store)
  assert found == yielded("both", len(found))
  assert [(task.name, task.examples) for task in store.tasks] == [("both", 0)]


def test_a_store_is_the_same_made_twice_or_made_longer_or_mended(add_task, make):
  add_task()
  at_once = make(40, "one")
  assert content(make(40, "two")) == content(at_once)
  short = make(4, "three")
  assert short.rows < at_once.rows
  assert content(make(40, "three")) == content(at_once)
  (at_once.directory / "windows" / "000001.safetensors").unlink()
  assert content(make(40, "one")) == content(make(40, "two"))


def test_a_store_is_another_once_the_task_can_be_seen_to_differ(seqio, add_task, make, tmp_path):
  def fingerprint(rows=QUESTIONS, **settings):
    if "asked" in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove("asked")
    add_task("asked", rows, **settings)
    return make(2).fingerprint

  def without_first(dataset, count):
    return dataset.skip(count)

  steps = [lines, seqio.preprocessors.tokenize]
  targets = {"inputs": feature(add_eos=False), "targets": feature()}
  first = fingerprint()
  assert fingerprint() == first
  others = [
    fingerprint(QUESTIONS[:-1]),
    fingerprint(features=targets),
    fingerprint(shuffle_buffer_size=10),
    fingerprint(preprocessors=[*steps, seqio.preprocessors.append_eos]),
    *(
      fingerprint(preprocessors=[*steps, functools.partial(without_first, count=n)]) for n in (3, 4)
    ),
  ]
  assert len({first, *others}) == 7


def converted(converter, examples, lengths):
  """What a converter makes of the examples of one row."""
  import tensorflow as tf

  names = list(examples[0])
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(examples),
    output_signature={name: tf.TensorSpec([None], tf.int32, name) for name in names},
  )
  [row] = converter(dataset, lengths).as_numpy_iterator()
  return row


def assert_same(features, rows):
  for name in rows[0]:
    theirs = np.stack([row[name] for row in rows])
    np.testing.assert_array_equal(features[name], theirs, err_msg=name)


def apart(example):
  """Inputs and targets of an example of a decoder's row."""
  return {
    "inputs": example.targets[1 : example.prefix].astype(np.int32),
    "targets": example.targets[example.prefix :].astype(np.int32),
  }


def test_batches_of_an_encoder_decoder_equal_those_of_seqios_converter(seqio, add_task, make):
  add_task()
  store = make(lengths={"inputs": 200, "targets": 40})
  rows = [store.row(r) for r in range(4)]
  assert max(map(len, rows)) > 1
  theirs = [
    converted(
      seqio.EncDecFeatureConverter(pack=True),
      [{k: getattr(e, k).astype(np.int32) for k in ("inputs", "targets")} for e in row],
      store.lengths,
    )
    for row in rows
  ]
  assert len(theirs[0]) == 8
  assert_same(make_features(rows, store.layout, store.lengths), theirs)


@pytest.mark.parametrize("loss_on", ["targets", "everything"])
def test_batches_of_a_prefix_lm_equal_those_of_seqios_converter(seqio, add_task, make, loss_on):
  add_task()
  lengths = {"inputs": 90, "targets": 40}
  store = make(layout="decoder", loss_on=loss_on, lengths=lengths)
  rows = [store.row(r) for r in range(4)]
  assert max(map(len, rows)) > 1
  converter = seqio.PrefixLMFeatureConverter(pack=True, loss_on_targets_only=loss_on == "targets")
  theirs = [converted(converter, list(map(apart, row)), lengths) for row in rows]
  assert "decoder_causal_attention" in theirs[0]
  features = make_features(rows, store.layout, store.lengths, bidirectional_inputs=True)
  assert_same(features, theirs)


def test_batches_of_targets_alone_equal_those_of_seqios_converter(seqio, add_task, make):
  add_task(
    "plain_text",
    preprocessors=[lines, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={"targets": feature()},
  )
  store = make(mixture="plain_text", layout="decoder")
  rows = [store.row(r) for r in range(4)]
  theirs = [
    converted(
      seqio.LMFeatureConverter(pack=True),
      [{"targets": e.targets[1:].astype(np.int32)} for e in row],
      {"targets": sum(LENGTHS.values())},
    )
    for row in rows
  ]
  assert_same(make_features(rows, store.layout, store.lengths), theirs)
  examples = sorted((e for r in range(store.rows) for e in store.row(r)), key=lambda e: e.example)
  found = [e.targets[1:].tolist() for e in examples]
  assert found == [
    targets for _, targets in yielded("plain_text", len(found), {"targets": LENGTHS["targets"]})
  ]


def test_our_own_mixture_is_the_same_through_seqio(seqio, own_dataset, make, tmp_path):
  lengths = {"inputs": 200, "targets": 50}
  store = make(40, mixture=own_dataset, lengths=lengths, seed=6)
  [name, *_] = register_seqio(
    own_dataset, VOCABULARY, PlainFormat(), data_dir=tmp_path / "data", seed=6, prefix="seen_"
  )
  examples = [e for r in range(store.rows) for e in store.row(r)]
  size, passes = store.tasks[0].examples, 1 + max(e.epoch for e in examples)
  assert passes > 2
  theirs = yielded(name, size * passes, lengths, shuffle=False)
  for e in examples:
    assert (e.inputs.tolist(), e.targets.tolist()) == theirs[e.epoch * size + e.example]


def test_a_task_of_the_t5_library_is_found_by_name(seqio, make, monkeypatch):
  pytest.importorskip("t5")
  import tensorflow_datasets as tfds

  with tfds.testing.mock_data(num_examples=20):
    import t5.data.tasks  # noqa: F401

    task = seqio.TaskRegistry.get("glue_cola_v002")
    features = {name: feature() for name in task.output_features}
    monkeypatch.setattr(task, "_output_features", features)
    # The mock has no metadata of the dataset, and without SeqIO would not read it.
    train = tfds.core.SplitInfo(name="train", shard_lengths=[20], num_bytes=0)
    task.source.tfds_dataset.builder.info.set_splits(tfds.core.SplitDict([train]))
    store = make(10, mixture="glue_cola_v002", lengths={"inputs": 300, "targets": 32})
    found = stored(store)
    assert found == yielded("glue_cola_v002", len(found), {"inputs": 300, "targets": 32})
  assert VOCABULARY.decode(found[0][0]).startswith("cola sentence: ")
  assert "glue/cola" in json.dumps(describe_of(store))


def describe_of(store):
  return json.loads((store.directory / "store.json").read_text())["tasks"]


def write_cache(task, folder, rows):
  """What SeqIO's cache job leaves of a task: examples before the placeholder, statistics, a mark."""
  import seqio
  import tensorflow as tf

  folder = folder / seqio.get_task_dir_from_name(task.name)
  folder.mkdir(parents=True)
  examples = list(task.preprocess_precache(rows, seed=0).as_numpy_iterator())
  for shard in range(2):
    with tf.io.TFRecordWriter(str(folder / f"train.tfrecord-{shard:05}-of-00002")) as writer:
      for example in examples[shard::2]:
        writer.write(seqio.dict_to_tfexample(example).SerializeToString())
  features = {
    name: {
      "shape": [None] if np.ndim(value) else [],
      "dtype": "int32" if np.ndim(value) else "string",
    }
    for name, value in examples[0].items()
  }
  info = {"num_shards": 2, "features": features, "seqio_version": seqio.__version__}
  (folder / "info.train.json").write_text(json.dumps(info))
  (folder / "stats.train.json").write_text(json.dumps({"examples": len(examples)}))
  (folder / "COMPLETED").touch()


def test_a_cached_task_is_read_from_seqios_cache(seqio, add_task, make, tmp_path, monkeypatch):
  monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [])
  task = add_task()
  with pytest.raises(ConfigError, match="'asked' is not cached in .*cache"):
    make(seqio_cache=(str(tmp_path / "cache"),))
  write_cache(task, tmp_path / "cache", task.source.get_dataset("train", shuffle=False))
  (tmp_path / "asked.train.tsv").unlink()
  store = make(seqio_cache=(str(tmp_path / "cache"),), shuffle=False)
  found = stored(store)
  assert found == yielded("asked", len(found), shuffle=False, use_cached=True)
  assert store.tasks[0].examples == len(QUESTIONS)
  add_task("uncached", preprocessors=[lines, seqio.preprocessors.tokenize])
  with pytest.raises(ConfigError, match="'uncached' cannot be cached"):
    make(mixture="uncached", seqio_cache=(str(tmp_path / "cache"),))


def test_vocabularies_of_seqio_are_ours(seqio, tmp_path):
  model = Path(seqio.__file__).parent / "test_data/sentencepiece/sentencepiece.model"
  texts = ["hello world", "<extra_id_0> is <extra_id_1>", "Größe ∑ 3", ""]
  for theirs in (
    seqio.SentencePieceVocabulary(str(model), extra_ids=10),
    seqio.SentencePieceVocabulary(str(model)),
    seqio.ByteVocabulary(5),
  ):
    ours = our_vocabulary(theirs)
    assert (ours.size, ours.eos_id, ours.pad_id) == (theirs.vocab_size, theirs.eos_id, 0)
    for text in texts:
      assert ours.encode(text) == theirs.encode(text)
  assert our_vocabulary(seqio.PassThroughVocabulary(10)) is None
  reversed_ids = seqio.SentencePieceVocabulary(str(model), extra_ids=10, reverse_extra_ids=False)
  assert our_vocabulary(reversed_ids) is None
  assert (
    SentencePieceVocabulary(model, 10).fingerprint
    == our_vocabulary(seqio.SentencePieceVocabulary(str(model), extra_ids=10)).fingerprint
  )


def without(name):
  """A preprocessor that takes a feature away."""
  return lambda dataset: dataset.map(lambda e: {k: v for k, v in e.items() if k != name})


def test_what_cannot_be_trained_on_is_told_in_one_sentence(seqio, add_task, make):
  import tensorflow as tf

  tokenize, model = seqio.preprocessors.tokenize, "test_data/sentencepiece/sentencepiece.model"
  add_task("no_inputs", output_features={"targets": feature()})
  with pytest.raises(
    ConfigError, match="'no_inputs' has no feature 'inputs', only targets: a task"
  ):
    make(mixture="no_inputs")
  add_task("no_targets", output_features={"inputs": feature(), "labels": feature()})
  with pytest.raises(
    ConfigError, match="'no_targets' has no feature 'targets', only inputs, labels"
  ):
    make(mixture="no_targets", layout="decoder")
  add_task("floats", output_features={"inputs": feature(dtype=tf.float32), "targets": feature()})
  with pytest.raises(ConfigError, match="feature 'inputs' is float32 of rank 1"):
    make(mixture="floats")
  add_task("grid", output_features={"inputs": feature(), "targets": feature(rank=2)})
  with pytest.raises(ConfigError, match="feature 'targets' is int32 of rank 2"):
    make(mixture="grid")
  words = seqio.SentencePieceVocabulary(str(Path(seqio.__file__).parent / model))
  add_task("words", output_features={"inputs": feature(words), "targets": feature(words)})
  with pytest.raises(
    VocabularyError, match=r"'words' is written in another vocabulary \(sentencep"
  ):
    make(mixture="words")
  many = seqio.PassThroughVocabulary(1000)
  add_task("large", output_features={"inputs": feature(many), "targets": feature(many)})
  with pytest.raises(VocabularyError, match="'large' has 1,000 ids, and the model's .* 259"):
    make(mixture="large")
  add_task("asked")
  with pytest.raises(UnknownName, match="unknown split 'trian'. Did you mean 'train'?"):
    make(split="trian")
  with pytest.raises(ConfigError, match="few_shot=2 is for our own datasets"):
    make(few_shot=2)
  with pytest.raises(ConfigError, match="template_choice='round_robin' is for our own datasets"):
    make(template_choice="round_robin")
  with pytest.raises(ConfigError, match="renderings=2 is for our own datasets"):
    make(renderings=2)
  add_task("unshuffled", shuffle_buffer_size=None)
  with pytest.raises(RecordError, match=r"'unshuffled' cannot be read.* Set data\.shuffle=False"):
    make(mixture="unshuffled")
  make(mixture="unshuffled", shuffle=False)
  add_task("empty", [])
  with pytest.raises(ConfigError, match="'empty' has no example in the split 'train'"):
    make(mixture="empty")
  drop = [lines, lambda dataset: dataset.filter(lambda e: False), tokenize]
  add_task("dropped", preprocessors=drop)
  seqio.MixtureRegistry.add("half_empty", ["asked", "dropped"], default_rate=1)
  for name in ("dropped", "half_empty"):
    with pytest.raises(ConfigError, match="'dropped' has no example in the split 'train'"):
      make(mixture=name)
  for name, rate in {"no_rate": 0.0, "less": -1.0}.items():
    seqio.MixtureRegistry.add(name, [("asked", rate)])
    with pytest.raises(
      ConfigError, match=f"'{name}' has the rates asked {rate:g}: none may be below 0"
    ):
      make(mixture=name)
  seqio.MixtureRegistry.add("no_function", [("asked", lambda task: 1 / 0)])
  with pytest.raises(
    ConfigError, match="'no_function': the rate of 'asked' cannot be had, ZeroDiv"
  ):
    make(mixture="no_function")
  add_task("broken", preprocessors=[lines, tokenize, without("targets")])
  with pytest.raises(RecordError, match="'broken' cannot be read: ValueError: .*targets"):
    make(mixture="broken")


def test_a_stream_that_ends_is_told_with_its_length(add_task, make, seqio):
  steps = [lines, lambda dataset: dataset.take(20), seqio.preprocessors.tokenize]
  add_task("over", preprocessors=steps)
  assert make(1, mixture="over").rows
  with pytest.raises(ConfigError, match="'over' ends after 20 examples"):
    make(200, mixture="over")


def test_an_id_beyond_the_vocabulary_names_the_example(seqio, add_task, make):
  small = seqio.PassThroughVocabulary(100)

  def numbers(dataset):
    return dataset.enumerate().map(lambda i, _: {"targets": [99, i + 250]})

  add_task(
    "ids", preprocessors=[numbers], output_features={"targets": feature(small, dtype="int64")}
  )
  with pytest.raises(VocabularyError, match="'ids': example 9 of the stream has the id 259"):
    make(mixture="ids", layout="decoder", shuffle=False)


def test_an_unknown_name_has_the_nearest_of_ours_and_of_seqios(add_task, make):
  add_task("asked_politely")
  with pytest.raises(
    UnknownName, match="unknown mixture 'asked_polite'. Did you mean 'asked_politely'"
  ):
    make(mixture="asked_polite")
  with pytest.raises(UnknownName, match="unknown mixture 'mini_shrt'. Did you mean 'mini_short'"):
    make(mixture="mini_shrt")


def test_what_is_for_seqio_alone_is_refused_for_our_own_datasets(own_dataset, make, tmp_path):
  with pytest.raises(ConfigError, match="seqio_cache is for SeqIO's tasks, and 'facts' is"):
    make(mixture="facts", seqio_cache=(str(tmp_path),))


def test_split_and_order_are_obeyed_for_our_own_datasets(own_dataset, make):
  test = make(4, mixture="facts", split="test", lengths={"inputs": 200, "targets": 50})
  assert test.tasks[0].examples == len(load_records(dataset_spec("facts"), home_of(test))["test"])
  with pytest.raises(UnknownName, match="unknown split .dev.. Known: test, train"):
    make(mixture="facts", split="dev")
  straight = DrawStream(["facts"], [1.0], [9], seed=3, shuffle=False).draws(0, 20)
  assert straight.example.tolist() == [i % 9 for i in range(20)]
  settings = {"mixture": "facts", "lengths": {"inputs": 200, "targets": 50}}
  stores = [make(4, shuffle=shuffle, **settings) for shuffle in (True, False)]
  assert content(stores[0])["000000.safetensors"] != content(stores[1])["000000.safetensors"]


def home_of(store):
  return store.directory.parent.parent
