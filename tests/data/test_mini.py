"""The mini mixture holds what it promises, and its traps are mended."""

import collections

import pytest

from flan_jax.data import (
  dataset_spec,
  get_mixture,
  held_out_datasets,
  load_records,
  training_datasets,
)

HELD_OUT = {"sentiment", "commonsense"}


@pytest.fixture(scope="module")
def specs():
  return {name: dataset_spec(name) for name in get_mixture("mini").datasets}


@pytest.fixture(scope="module")
def records(specs, tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("data")
  return lambda name: load_records(specs[name], data_dir)


def test_it_has_sixteen_datasets_in_seven_clusters_counting_four_to_an_archive(specs):
  by_archive = collections.Counter(spec.source["sha256"] for spec in specs.values())
  assert sum(min(count, 4) for count in by_archive.values()) >= 16
  assert len({spec.cluster for spec in specs.values()}) >= 7


def test_sentiment_and_commonsense_are_held_out_of_it_and_of_its_short_part(specs):
  for mixture in ("mini", "mini_short"):
    assert {specs[name].cluster for name in held_out_datasets(mixture)} == HELD_OUT
    trained = {specs[name].cluster for name in training_datasets(mixture)}
    assert not trained & HELD_OUT
    assert len(trained) >= 4
  assert set(training_datasets("mini_short")) < set(training_datasets("mini"))


@pytest.mark.network
def test_every_dataset_has_enough_unique_records_and_no_group_in_two_splits(specs, records):
  for name in specs:
    splits = records(name)
    assert sum(splits.counts.kept.values()) >= 250, name
    groups = [{split.group(i) for i in range(len(split))} for split in splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)), name


@pytest.mark.network
def test_a_predictor_that_sees_only_the_policy_does_no_better_than_the_majority(records):
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier
  from sklearn.pipeline import make_pipeline

  splits = records("privacy_policy")
  sentences, labels = columns(splits["train"])
  predictors = {
    "lookup of the nearest": KNeighborsClassifier(1, metric="cosine"),
    "fifteen nearest": KNeighborsClassifier(15, metric="cosine"),
    "words": LogisticRegression(max_iter=1000),
  }
  for name, predictor in predictors.items():
    fitted = make_pipeline(TfidfVectorizer(), predictor).fit(sentences, labels)
    for split in ("validation", "test"):
      unseen, expected = columns(splits[split])
      majority = max(collections.Counter(expected).values()) / len(expected)
      assert fitted.score(unseen, expected) <= majority, (name, split)


@pytest.mark.network
def test_no_boolq_passage_of_the_test_part_is_trained_on(records):
  splits = records("boolq")
  assert not {r["passage"] for r in splits["test"]} & {r["passage"] for r in splits["train"]}
  assert splits.counts.overlapping > 1000


def columns(records):
  return [record["context"] for record in records], [record["label"] for record in records]
