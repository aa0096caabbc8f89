"""Gold labels come out as the right words: examples on which people agree, read as their source gives them.

Mocked data have labels at random, and the example in a dataset file was written beside its choices. The files under
`gold` were not: their examples and expectations were written from what the source publishes and a template asks.

    dataset:
      examples:       raw records, one a column of what follows; TFDS's class labels are the numbers that it stores
      answers:        the right words for each example
      templates:      the same for templates that want other words
      turned_around:  the words that turned-around templates say, where they are others
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from flan_jax.data.sources import open_source
from flan_jax.prompting import DatasetSpec, Rendering, Template, read_dataset

FOLDER = Path(__file__).parents[2] / "templates"
GOLD = {
  name: gold
  for path in sorted((Path(__file__).parent / "gold").glob("*.yaml"))
  for name, gold in yaml.safe_load(path.read_text()).items()
}
FILES = sorted(path for path in FOLDER.glob("*/*.yaml") if not path.stem.startswith("p3_"))
SPECS = {path.stem: read_dataset(path) for path in FILES}
WITH_CHOICES = [name for name, spec in SPECS.items() if spec.answer and spec.answer.has_choices]
FIXED = [name for name in WITH_CHOICES if SPECS[name].answer.labels]

# The field whose value tells the right option, and its values for the first option, the second, and so on.
PLACES = {
  "arc_challenge": ("answerKey", [0, 1, 2, 3]),
  "arc_easy": ("answerKey", [0, 1, 2, 3]),
  "copa": ("label", [0, 1]),
  "cosmos_qa": ("label", [0, 1, 2, 3]),
  "definite_pronoun_resolution": ("label", [0, 1]),
  "flan_openbookqa": ("answerKey", [0, 1, 2, 3]),
  "flan_piqa": ("label", [0, 1]),
  "hellaswag": ("label", [0, 1, 2, 3]),
  "story_cloze": ("label", [1, 2]),
  "winogrande": ("label", [0, 1]),
  "wsc273": ("label", [0, 1]),
}

pytestmark = pytest.mark.filterwarnings("ignore")
each_dataset = pytest.mark.parametrize("name", WITH_CHOICES)


def test_every_dataset_with_choices_has_examples():
  assert sorted(GOLD) == sorted(WITH_CHOICES)


@each_dataset
def test_every_expectation_is_of_a_template_and_has_words_for_each_example(name: str):
  spec, gold = SPECS[name], GOLD[name]
  for key, turned_around in (("templates", False), ("turned_around", True)):
    known = {each.name for each in spec.templates if each.turned_around == turned_around}
    assert set(gold.get(key, {})) <= known
  for words in (gold["answers"], *gold.get("templates", {}).values()):
    assert len(words) == len(gold["examples"]) and all(isinstance(word, str) for word in words)


@each_dataset
def test_the_examples_are_in_the_form_of_the_source(name: str):
  spec = SPECS[name]
  for example in GOLD[name]["examples"]:
    assert example.keys() == spec.record.keys()
    assert example != spec.record
  for field in _class_labels(spec):
    assert all(type(example[field]) is int for example in GOLD[name]["examples"]), (
      f"{field} should be the number that is published"
    )


@pytest.mark.parametrize("name", FIXED)
def test_there_is_an_example_of_every_class(name: str):
  answer = SPECS[name].answer
  assert {record[answer.field] for record in _records(name)} == set(answer.labels)


@each_dataset
def test_every_template_asks_for_the_words_that_people_would_say(name: str):
  for template, wanted in _straight(name):
    for record, words in zip(_records(name), wanted, strict=True):
      for rendering in template.renderings(record):
        (said,) = (_words(rendering)[gold] for gold in rendering.golds)
        assert rendering.turns[-1].target in rendering.golds
        assert said == words, f"{template.name}, {rendering.style}:\n{rendering.turns[-1]}"


@pytest.mark.parametrize("name", FIXED)
def test_options_are_shown_in_the_order_of_the_choices(name: str):
  answer = SPECS[name].answer
  classes = [record[answer.field] for record in _records(name)]
  for template, wanted in _straight(name):
    for rendering in template.renderings(_records(name)[0]):
      of_class = dict(zip(classes, wanted, strict=True))
      shown = list(_words(rendering).values())
      assert shown == [of_class[label] for label in answer.labels], template.name


@each_dataset
def test_every_turned_around_template_says_the_right_words(name: str):
  spec, gold = SPECS[name], GOLD[name]
  for template in spec.templates:
    if not template.turned_around:
      continue
    wanted = gold.get("turned_around", {}).get(template.name, gold["answers"])
    around = re.findall(r"[^{}]*\{answer\}[^{}]*", template.texts[-1].input)
    for record, words in zip(_records(name), wanted, strict=True):
      (rendering,) = template.renderings(record)
      # With what stands around them, so that "duplicates" is not found in "not duplicates".
      for said in [text.replace("{answer}", words) for text in around] or [words]:
        assert said.strip() in rendering.turns[-1].input, f"{template.name}:\n{rendering.turns[-1]}"


def test_every_options_dataset_on_tfds_has_its_places():
  # ReCoRD gives the right name itself.
  numbered = {name for name in WITH_CHOICES if "tfds" in SPECS[name].source} - {*FIXED, "record"}
  assert numbered == set(PLACES)


@pytest.mark.parametrize("name", PLACES)
def test_each_stored_label_means_the_option_in_its_place(name: str):
  field, labels = PLACES[name]
  example = GOLD[name]["examples"][0]
  records = _derived(SPECS[name], [{**example, field: label} for label in labels])
  assert [record["answer"] for record in records] == records[0]["options"]


def _straight(name: str) -> Iterator[tuple[Template, list[str]]]:
  """The templates that ask for an answer, with what each example's answer should be."""
  spec, gold = SPECS[name], GOLD[name]
  for template in spec.templates:
    if not template.turned_around:
      yield template, gold.get("templates", {}).get(template.name, gold["answers"])


def _words(rendering: Rendering) -> dict[str, str]:
  """Each candidate target and the words for it: its own, or those beside the letter in the input."""
  if rendering.style != "letters":
    return {target: target for target in rendering.options}
  lines = re.findall(r"^\(([A-Z]+)\) (.*)$", rendering.turns[-1].input, re.MULTILINE)
  assert tuple(letter for letter, _ in lines) == rendering.options
  return dict(lines)


@cache
def _records(name: str) -> list[dict]:
  """The fields of the examples."""
  return _derived(SPECS[name], GOLD[name]["examples"])


def _derived(spec: DatasetSpec, examples: list[dict]) -> list[dict]:
  records = [spec.derive_record(raw) for raw in _as_read(spec, examples)]
  assert None not in records, "an example was dropped"
  return records


def _as_read(spec: DatasetSpec, examples: list[dict]) -> list[dict]:
  """The examples as the source gives them: those of TFDS from the bytes that TFDS would have stored."""
  if "tfds" not in spec.source:
    return examples
  import tensorflow as tf
  import tensorflow_datasets as tfds

  def stored(builder, *args, **settings):
    features = builder.info.features
    lines = [features.serialize_example(features.encode_example(each)) for each in examples]
    return tf.data.Dataset.from_tensor_slices(lines).map(features.deserialize_example)

  with tfds.testing.mock_data(as_dataset_fn=stored):
    return list(open_source(spec.source, spec.path.parent).records("train"))


def _class_labels(spec: DatasetSpec) -> list[str]:
  if "tfds" not in spec.source:
    return []
  import tensorflow_datasets as tfds

  with tfds.testing.mock_data():
    features = tfds.builder(spec.source["tfds"]).info.features
  return [name for name, each in features.items() if isinstance(each, tfds.features.ClassLabel)]
