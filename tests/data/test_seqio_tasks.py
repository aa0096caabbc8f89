"""Our mixtures read through SeqIO are the same examples as our own encoding."""

import collections
import itertools

import numpy as np
import pytest

from flan_jax.data import (
  Mixture,
  dataset_spec,
  library,
  load_records,
  register_seqio,
  register_templates,
)
from flan_jax.data import mixtures as registry
from flan_jax.data.encode import Encoder
from flan_jax.data.seqio_vocabularies import seqio_view
from flan_jax.errors import ConfigError
from flan_jax.prompting import Draw
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = ByteVocabulary(extra_ids=4)
FORMAT = PlainFormat()


@pytest.fixture(autouse=True)
def own_registries(seqio, monkeypatch):
  """What a test registers, with us or with SeqIO, is forgotten after it."""
  library.import_library()
  monkeypatch.setattr(registry, "_mixtures", dict(registry._mixtures))
  monkeypatch.setattr(library, "_template_folders", [])


@pytest.fixture
def register(make_dataset, tmp_path):
  """Registers datasets of 40 and 20 records with SeqIO, and one in a cluster that is held out."""
  make_dataset("facts", 40)
  make_dataset("others", 20)
  make_dataset("kept_out", 20, "secret")
  register_templates(tmp_path / "templates")
  mixture = Mixture("both", {"facts": None, "others": None, "kept_out": None}, hold_out=("secret",))

  def register(**settings):
    settings = {"data_dir": tmp_path / "cache", **settings}
    return register_seqio(mixture, VOCABULARY, FORMAT, **settings)

  return register


def dataset(name, **settings):
  import seqio

  settings = {"split": "train", "sequence_length": None, "shuffle": False, **settings}
  return list(seqio.get_mixture_or_task(name).get_dataset(**settings).as_numpy_iterator())


def test_a_drawn_task_gives_the_ids_of_our_own_encoder_pass_after_pass(register, tmp_path):
  register(seed=7, renderings=2)
  spec = dataset_spec("facts")
  records = load_records(spec, tmp_path / "cache")["train"]
  encoder = Encoder(VOCABULARY, FORMAT, "encoder_decoder", {"inputs": 500, "targets": 500})
  examples = dataset("facts", num_epochs=3)
  assert len(examples) == 3 * len(records)
  templates = spec.training_templates()
  for number, example in enumerate(examples):
    draw = Draw(7, "facts", number % len(records), number // len(records) % 2)
    template = templates[draw.fork("template").below(len(templates))]
    encoded = encoder.encode(
      lambda limit: template.render(records[number % len(records)], draw, limit)  # noqa: B023
    )
    np.testing.assert_array_equal(example["inputs"], encoded.inputs)
    np.testing.assert_array_equal(example["targets"], encoded.targets)
  first, second, third = (examples[i * len(records) : (i + 1) * len(records)] for i in range(3))
  texts = [[example["inputs_pretokenized"] for example in run] for run in (first, second, third)]
  assert texts[0] == texts[2] != texts[1]


def test_few_shot_prompts_show_answered_exemplars_first(register):
  register(few_shot=2)
  texts = [example["inputs_pretokenized"].decode() for example in dataset("facts")]
  assert all(text.count("odd?") == 3 for text in texts)


def test_shuffling_changes_the_order_and_not_the_examples(register):
  register(renderings=1)
  straight, shuffled = dataset("facts"), dataset("facts", shuffle=True, seed=3)
  texts = [[example["inputs_pretokenized"] for example in run] for run in (straight, shuffled)]
  assert texts[0] != texts[1]
  assert sorted(texts[0]) == sorted(texts[1])


def test_shards_see_every_example_once_a_pass(register):
  import seqio

  register(renderings=2)
  shards = [
    dataset("facts", num_epochs=2, shard_info=seqio.ShardInfo(index, 3)) for index in range(3)
  ]
  seen = collections.Counter(x["inputs_pretokenized"] for shard in shards for x in shard)
  whole = collections.Counter(x["inputs_pretokenized"] for x in dataset("facts", num_epochs=2))
  assert seen == whole


def test_an_evaluation_task_shows_one_template_and_scores_by_accepted_targets(register):
  import seqio

  names = register()
  assert {"facts.ask", "facts.kept_back", "kept_out.ask", "both"} <= set(names)
  assert "kept_out" not in names
  examples = dataset("facts.kept_back", split="test")
  assert all(example["inputs_pretokenized"].startswith(b"Tell me, ") for example in examples)
  task = seqio.get_mixture_or_task("facts.kept_back")
  golds = [task.postprocess_fn("", is_target=True, example=example) for example in examples]
  assert all(gold in (["yes"], ["no"]) for gold in golds)
  right = [gold[0] for gold in golds]
  (metric,) = task.metric_fns
  assert metric(golds, right) == {"exact_match": 1.0}
  assert metric(golds, ["no"] * len(golds))["exact_match"] == pytest.approx(
    right.count("no") / len(right)
  )


def test_the_mixture_draws_at_our_rates(register):
  import seqio

  register()
  mixture = seqio.get_mixture_or_task("both")
  sizes = {task.name: task.num_input_examples("train") for task in mixture.tasks}
  assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == sizes
  stream = mixture.get_dataset(None, "train", shuffle=False, seed=0, num_epochs=None)
  drawn = collections.Counter(
    "facts" in VOCABULARY.decode(example["inputs"])
    for example in itertools.islice(stream.as_numpy_iterator(), 600)
  )
  assert drawn[True] / 600 == pytest.approx(sizes["facts"] / sum(sizes.values()), abs=0.07)


def test_lengths_are_kept_by_seqio_converters(register):
  import seqio

  register()
  lengths = {"inputs": 64, "targets": 8}
  task = seqio.get_mixture_or_task("facts")
  batches = seqio.EncDecFeatureConverter(pack=True)(
    task.get_dataset(lengths, "train", shuffle=False), lengths
  )
  row = next(batches.as_numpy_iterator())
  assert row["encoder_input_tokens"].shape == (64,)
  assert row["decoder_segment_ids"].max() >= 1


def test_what_does_not_fit_is_dropped_in_training_and_an_error_in_evaluation(register):
  register()
  short = {"inputs": 4, "targets": 8}
  assert dataset("facts", sequence_length=short) == []
  with pytest.raises(Exception, match="cannot be evaluated: too_long"):
    dataset("facts.ask", split="test", sequence_length=short)


def test_registering_twice_needs_the_same_settings_or_a_prefix(register):
  names = register()
  assert register() == names
  with pytest.raises(ConfigError, match=r"named 'facts' already with other settings.*prefix"):
    register(seed=1)
  assert "other.facts" in register(seed=1, prefix="other.")


def test_the_view_of_a_vocabulary_agrees_with_it_inside_and_outside_tensorflow():
  import tensorflow as tf

  view = seqio_view(VOCABULARY)
  text = "Größe, 大きさ"
  ids = VOCABULARY.encode(text)
  assert view.encode(text) == view.encode_tf(tf.constant(text)).numpy().tolist() == ids
  assert view.decode([*ids, VOCABULARY.eos_id, 70]) == text
  assert view.decode_tf(tf.constant([*ids, 1])).numpy().decode() == text
  assert (view.vocab_size, view.pad_id, view.eos_id, view.unk_id) == (VOCABULARY.size, 0, 1, 2)
  assert view == seqio_view(ByteVocabulary(extra_ids=4))
  assert view != seqio_view(ByteVocabulary())
