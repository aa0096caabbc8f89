"""Anybody's SeqIO task is stored as SeqIO itself yields it: the ids, the order, the mixing, the lengths."""

import dataclasses
import functools

import numpy as np
import pytest

from flan_jax.data.prepare import prepare
from flan_jax.data.store import StoreConfig
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = ByteVocabulary()
LENGTHS = {"inputs": 48, "targets": 16}
QUESTIONS = [f"what is {i} and {i + 1}? {'please ' * (i % 4)}" for i in range(30)]


@pytest.fixture(autouse=True, scope="module")
def seqio():
  return pytest.importorskip("seqio")


@pytest.fixture(autouse=True)
def own_registries(seqio):
  """What a test registers is forgotten after it."""
  kept = [(registry, set(registry.names())) for registry in registries()]
  yield
  for registry, names in kept:
    for name in set(registry.names()) - names:
      registry.remove(name)


def registries():
  import seqio

  return seqio.TaskRegistry, seqio.MixtureRegistry


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
  return [(e.get("inputs", np.zeros(0)).tolist(), e["targets"].tolist()) for e in examples]


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
  for row in (store.row(r) for r in range(store.rows)):
    for e in row:
      text = VOCABULARY.decode(e.inputs.tolist())
      assert text.startswith(f"question: train {store.tasks[e.task].name} ")


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
