"""Every dataset file on TFDS agrees with the schema of its builder, which mocked data have too."""

from pathlib import Path

import pytest

from flan_jax.data.records import load_records
from flan_jax.data.sources import open_source
from flan_jax.errors import SourceError
from flan_jax.prompting import read_dataset

FOLDER = Path(__file__).parents[2] / "templates"
FILES = sorted(FOLDER.glob("*/*.yaml"))
SPECS = [read_dataset(path) for path in FILES if not path.stem.startswith("p3_")]
ON_TFDS = [spec for spec in SPECS if "tfds" in spec.source]
each_dataset = pytest.mark.parametrize("spec", ON_TFDS, ids=[spec.name for spec in ON_TFDS])
pytestmark = pytest.mark.filterwarnings("ignore")


def form(value):
  """What kind of value it is; an empty list has items of any kind."""
  match value:
    case dict():
      return {key: form(each) for key, each in value.items()}
    case list():
      return [form(value[0])] if value else []
    case bool() | int() | float() | str():
      return type(value).__name__
  return "nothing"


def agree(one, other) -> bool:
  if isinstance(one, dict) and isinstance(other, dict):
    return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
  if isinstance(one, list) and isinstance(other, list):
    return not one or not other or agree(one[0], other[0])
  return one == other


@each_dataset
def test_the_record_has_the_form_of_the_builder(spec):
  import tensorflow_datasets as tfds

  with tfds.testing.mock_data(num_examples=3):
    source = open_source(spec.source, spec.path.parent)
    parts = [part for part in spec.splits.values() if isinstance(part, str)]
    for part in parts or ["train"]:
      for mocked in source.records(part):
        assert agree(form(dict(spec.record)), form(mocked)), form(mocked)
        spec.derive_record(mocked)


# Labels that are numbers in TFDS, and those whose names the derive function puts otherwise: (field, name -> ours).
NUMBERS = {
  "stsb": ("label", {0.0: "0", 1.4: "1", 2.4: "2", 2.6: "3", 4.4: "4", 5.0: "5"}),
  "flan_boolq": ("answer", {True: "true", False: "false"}),
  "sentiment140": ("polarity", {0: "negative", 4: "positive"}),
}
RENAMED = {
  "imdb_reviews": ("label", {"neg": "negative", "pos": "positive"}),
  "yelp_polarity_reviews": ("label", {"1": "negative", "2": "positive"}),
  "multirc": ("label", {"False": "wrong", "True": "right"}),
  "trec": ("label-coarse", {name: name for name in ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")}),
}
# Datasets whose choices stand in an order of their own, and why.
REORDERED = {
  "wnli": (
    ["entailment", "not_entailment"],
    "not shuffled, and people say yes or no, not no or yes",
  ),
}
LABELLED = [spec for spec in ON_TFDS if spec.answer is not None and spec.answer.labels]
each_labelled = pytest.mark.parametrize("spec", LABELLED, ids=[spec.name for spec in LABELLED])


def classes_of(spec):
  """The field with the label, and our name for each of its classes, in the order of the builder."""
  import tensorflow_datasets as tfds

  if spec.name in NUMBERS:
    return NUMBERS[spec.name]
  own = (spec.answer.field, {name: name for name in spec.answer.labels})
  field, wanted = RENAMED.get(spec.name, own)
  with tfds.testing.mock_data():
    classes = tfds.builder(spec.source["tfds"]).info.features[field].names
  assert sorted(classes) == sorted(wanted)
  return field, {name: wanted[name] for name in classes}


@each_labelled
def test_every_class_of_the_builder_has_its_choice(spec):
  field, wanted = classes_of(spec)
  assert sorted(spec.answer.labels) == sorted(wanted.values())
  made = {
    name: spec.derive_record({**spec.record, field: name})[spec.answer.field] for name in wanted
  }
  assert made == wanted


@each_labelled
def test_choices_stand_in_the_order_of_the_builder_s_classes(spec):
  _, classes = classes_of(spec)
  order, _ = REORDERED.get(spec.name, (list(classes.values()), ""))
  assert list(spec.answer.labels) == order


def test_a_dataset_of_others_without_a_usable_record_counts_as_one_that_is_gone(tmp_path):
  import tensorflow_datasets as tfds

  (spec,) = (spec for spec in ON_TFDS if spec.name == "winogrande")  # mocked sentences have no gap
  with tfds.testing.mock_data(num_examples=3), pytest.raises(SourceError, match="Of 6 records, 6 "):
    load_records(spec, tmp_path)
