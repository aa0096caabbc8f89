"""Tiny models of both families, and a tiny dataset of each kind."""

import json
from pathlib import Path

import jax
import pytest

from flan_jax.data.encode import Encoder
from flan_jax.data.records import RecordSplits, load_records
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, LanguageModel, build_model
from flan_jax.prompting import DatasetSpec, read_dataset
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

DECODER = DecoderConfig(
  vocab_size=300, emb_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64
)
ENCODER_DECODER = EncoderDecoderConfig(
  vocab_size=300,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  num_encoder_layers=2,
  num_decoder_layers=2,
  mlp_dim=64,
)

REVIEWS = """
cluster: sentiment
description: Is a review of a film good or bad?
source: {files: reviews.jsonl}
splits: {train: 0.5, test: 0.5}
fields: {text: long, label: text}
answer:
  field: label
  choices: {negative: bad, positive: good}
  order: shuffled
metrics: [accuracy]
licence: CC0
citation: none
url: https://example.org
record: {text: "A dull film.", label: negative}
templates:
  - name: verdict_first
    input: |-
      Is it good or bad?
      {text}
      {options}
    target: "{answer}"
    options: letters
  - name: words_only
    input: "{text} The film was"
    target: "{answer}"
    unseen: true
  - name: write_one
    input: "Write a review that finds the film {answer}."
    target: "{text}"
    turned_around: true
    metrics: [rougeL]
"""

QUESTIONS = """
cluster: commonsense
description: A question and some answers.
source: {files: questions.jsonl}
splits: {train: 0.5, test: 0.5}
fields: {question: text, choices: list, label: text, accepted: list}
answer: {field: label, choices: choices}
metrics: [accuracy]
licence: CC0
citation: none
url: https://example.org
record: {question: "What is wet?", choices: [water, sand], label: water, accepted: [water]}
templates:
  - name: pick_one
    input: |-
      {question}
      {options}
    target: "{answer}"
"""

CAPITALS = """
cluster: closed_book_qa
description: Name the capital of a country.
source: {files: capitals.jsonl}
splits: {train: 0.5, test: 0.5}
fields: {country: text, capital: text, names: list}
answer: {field: capital, golds: names}
metrics: [f1, chrf]
licence: CC0
citation: none
url: https://example.org
record: {country: France, capital: Paris, names: [Paris, Paname]}
templates:
  - name: name_it
    input: What is the capital of {country}?
    target: "{answer}"
  - name: to_the_letter
    input: "Country: {country}. Capital:"
    target: "{answer}"
    metrics: [exact_match]
"""


@pytest.fixture(scope="session", params=[DECODER, ENCODER_DECODER], ids=["decoder", "t5"])
def tiny(request) -> tuple[LanguageModel, dict]:
  """A model and parameters far from uniform, so that a wrong mask shows."""
  model = build_model(request.param)
  params = model.init(jax.random.key(0))
  return model, jax.tree.map(lambda x: 3.0 * x if x.ndim > 2 else x, params)


@pytest.fixture(scope="session")
def t5_metrics():
  """The T5 library's metrics, whose import takes all of TensorFlow."""
  return pytest.importorskip("t5.evaluation.metrics")


@pytest.fixture(scope="session")
def dataset_files(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("datasets")
  reviews = [
    {"text": f"Film {i} was {'great' if i % 3 else 'a bore'}.", "label": label}
    for i in range(60)
    for label in ["positive" if i % 3 else "negative"]
  ]
  questions = []
  for i in range(40):
    choices = [f"thing {i + k}" for k in range(2 + i % 3)]
    label = choices[i % 2]
    questions.append(
      {"question": f"What is {i}?", "choices": choices, "label": label, "accepted": [label]}
    )
  capitals = [
    {"country": f"Land {i}", "capital": f"Port {i}", "names": [f"Port {i}", f"the {i}"]}
    for i in range(20)
  ]
  for cluster, name, text, records in [
    ("closed_book_qa", "capitals", CAPITALS, capitals),
    ("sentiment", "reviews", REVIEWS, reviews),
    ("commonsense", "questions", QUESTIONS, questions),
  ]:
    (folder / cluster).mkdir()
    (folder / cluster / f"{name}.yaml").write_text(text)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / cluster / f"{name}.jsonl").write_text(lines)
  return folder


@pytest.fixture(scope="session")
def reviews(dataset_files) -> tuple[DatasetSpec, RecordSplits]:
  spec = read_dataset(dataset_files / "sentiment" / "reviews.yaml")
  return spec, load_records(spec, dataset_files / "data")


@pytest.fixture(scope="session")
def questions(dataset_files) -> tuple[DatasetSpec, RecordSplits]:
  spec = read_dataset(dataset_files / "commonsense" / "questions.yaml")
  return spec, load_records(spec, dataset_files / "data")


@pytest.fixture(scope="session")
def capitals(dataset_files) -> tuple[DatasetSpec, RecordSplits]:
  spec = read_dataset(dataset_files / "closed_book_qa" / "capitals.yaml")
  return spec, load_records(spec, dataset_files / "data")


def byte_encoder(layout: str, inputs: int = 160, targets: int = 40) -> Encoder:
  """One id a byte: token counts can be read off the text."""
  lengths = {"inputs": inputs, "targets": targets}
  return Encoder(ByteVocabulary(), PlainFormat(), layout, lengths)


@pytest.fixture
def encoder_of():
  return byte_encoder
