"""What a mixture trains on in words: shares as the rates say, and nothing that is held out."""

import re
from collections import Counter

import pytest

from flan_jax.data import (
  dataset_spec,
  library,
  load_records,
  register_mixture,
  register_templates,
  register_text,
)
from flan_jax.data import mixtures as registry
from flan_jax.data import texts as text_registry
from flan_jax.data.objectives import SpanCorruption
from flan_jax.data.training_text import training_text

NAMES = ("small", "large", "secret")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch, make_dataset, tmp_path):
  """Datasets of 30 and 90 training examples, and one in a cluster that mixtures hold out."""
  library.import_library()
  monkeypatch.setattr(registry, "_mixtures", dict(registry._mixtures))
  monkeypatch.setattr(text_registry, "_texts", dict(text_registry._texts))
  monkeypatch.setattr(library, "_template_folders", [])
  for name, rows, cluster in (("small", 40, "a"), ("large", 120, "a"), ("secret", 40, "b")):
    make_dataset(name, rows, cluster, text="{question}")
  register_templates(tmp_path / "templates")
  register_mixture("all", NAMES, hold_out=["b"])


def said(mixture, tmp_path, seed=0, characters=10**6):
  return list(training_text(mixture, tmp_path / "cache", seed, characters))


def questions(name, split, tmp_path):
  return {r["question"] for r in load_records(dataset_spec(name), tmp_path / "cache")[split]}


def test_every_training_record_is_said_and_no_other(tmp_path):
  spoken = {q for text in said("all", tmp_path) for q in re.findall(r"is \w+ \d+ odd\?", text)}
  assert spoken == questions("small", "train", tmp_path) | questions("large", "train", tmp_path)
  assert not spoken & questions("small", "test", tmp_path)


def test_templates_that_training_never_sees_are_not_said_and_targets_are(tmp_path):
  texts = said("all", tmp_path)
  assert any(text.startswith("Answer: ") for text in texts)
  assert not any(text.startswith("Tell me") for text in texts)
  assert {"yes", "no"} <= set(texts)


def test_the_text_follows_the_rates_and_ends_where_it_is_long_enough(tmp_path):
  register_mixture("weighted", {"small": "75%", "large": None})
  texts = said("weighted", tmp_path, characters=4_000)
  assert 4_000 <= sum(map(len, texts)) < 4_000 + max(map(len, texts))
  inputs = [text for text in texts if "odd" in text]
  drawn = Counter(re.search(r"is (\w+) ", text)[1] for text in inputs)
  assert drawn["small"] / len(inputs) == pytest.approx(0.75, abs=0.02)


def test_the_seed_decides_the_text(tmp_path):
  assert said("all", tmp_path) == said("all", tmp_path)
  assert said("all", tmp_path) != said("all", tmp_path, seed=1)


def test_a_raw_text_says_its_documents(tmp_path):
  register_text("running", ["small"], SpanCorruption())
  assert sorted(said("running", tmp_path)) == sorted(questions("small", "train", tmp_path))
  register_mixture("both", ["running", "large"])
  texts = said("both", tmp_path)
  assert questions("small", "train", tmp_path) <= set(texts)
  assert any(text.startswith("Answer: is large") for text in texts)
