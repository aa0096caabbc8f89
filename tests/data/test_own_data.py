"""Data of one's own: from every kind of source, and with or without a file that describes it."""

import csv
import json
import shutil
import sys
import types
from operator import itemgetter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flan_jax.data import library
from flan_jax.data.library import dataset_names, dataset_spec, register_dataset, register_templates
from flan_jax.data.mixtures import get_mixture
from flan_jax.data.prepare import describe, prepare
from flan_jax.data.records import load_records
from flan_jax.data.store import StoreConfig
from flan_jax.errors import ConfigError, TemplateError
from flan_jax.jobs import preparation
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

LABELS = ("billing", "technical")
ROWS = [{"text": f'Ticket {i}: "défaut", {i}', "queue": LABELS[i % 2]} for i in range(20)]
CONTENT = {
  "cluster": "support",
  "description": "Which team should get a message?",
  "source": {"files": "tickets.jsonl"},
  "splits": {"train": 1.0},
  "fields": {"text": "long", "queue": "text"},
  "answer": {"field": "queue", "choices": {label: label for label in LABELS}},
  "metrics": ("accuracy",),
  "record": ROWS[0],
  "templates": [{"name": "which", "input": "{text}\n{options}", "target": "{answer}"}],
}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch, tmp_path):
  library.import_library()
  monkeypatch.setattr(library, "_template_folders", [])
  monkeypatch.setattr(library, "_given", {})
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def written(tmp_path, monkeypatch):
  """The same records in every kind of source: kind -> `source:`."""
  (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  with (tmp_path / "tickets.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, ROWS[0])
    writer.writeheader()
    writer.writerows(ROWS)
  pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "tickets.parquet")
  module = types.ModuleType("own_tickets")
  module.rows = lambda part: iter(ROWS)
  monkeypatch.setitem(sys.modules, "own_tickets", module)
  sources = {kind: {"files": f"tickets.{kind}"} for kind in ("jsonl", "csv", "parquet")}
  sources["function"] = {"callable": "own_tickets:rows"}
  sources["tfds"] = {"tfds": "tickets:1.0.0", "data_dir": str(tmp_path / "tfds")}
  return sources


def write_tfds(folder):
  import tensorflow_datasets as tfds

  features = {"text": tfds.features.Text(), "queue": tfds.features.ClassLabel(names=LABELS)}
  tfds.dataset_builders.store_as_tfds_dataset(
    name="tickets",
    version="1.0.0",
    features=tfds.features.FeaturesDict(features),
    split_datasets={"train": list(enumerate(ROWS))},
    data_dir=folder,
  )


def config(name):
  lengths = {"inputs": 96, "targets": 32}
  return StoreConfig(
    get_mixture(name), ByteVocabulary(), PlainFormat(), "encoder_decoder", lengths, window=32
  )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "function", "tfds"])
def test_every_kind_of_source_gives_the_same_records(written, kind, tmp_path):
  if kind == "tfds":
    write_tfds(tmp_path / "tfds")
  register_dataset("own", {**CONTENT, "source": written[kind]})
  records = load_records(dataset_spec("own"), tmp_path / "home")["train"]
  by_text = itemgetter("text")
  assert sorted(records, key=by_text) == sorted(ROWS, key=by_text)
  store = prepare(config("own"), 3, tmp_path / "home", workers=1, progress=False)
  assert {task.name: task.examples for task in store.tasks} == {"own": 20}


def ways(tmp_path):
  """The same dataset, registered in every way: name of the way -> what registers it."""
  flat, nested = tmp_path / "flat", tmp_path / "nested"
  for folder in (flat, nested / "any"):
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "tickets.jsonl", folder)
    text = yaml.safe_dump({**CONTENT, "metrics": ["accuracy"]}, sort_keys=False)
    (folder / "tickets.yaml").write_text(text)
  return {
    "a folder of clusters": lambda: register_templates(nested),
    "a folder of files": lambda: register_templates(flat),
    "a file": lambda: register_templates(flat / "tickets.yaml"),
    "a mapping": lambda: register_dataset("tickets", CONTENT),
    "a mapping for another folder": lambda: register_dataset("tickets", CONTENT, nested / "any"),
  }


def test_every_way_to_register_gives_the_same_store(written, tmp_path):
  fingerprints = set()
  for register in ways(tmp_path).values():
    library._template_folders.clear()
    library._given.clear()
    register()
    register()
    assert "tickets" in dataset_names() and dataset_spec("tickets").cluster == "support"
    fingerprints.add(describe(config("tickets"), tmp_path / "home")["fingerprint"])
  assert len(fingerprints) == 1


def test_a_file_may_be_named_beside_its_folder_but_no_name_twice(written, tmp_path):
  by_way = ways(tmp_path)
  by_way["a file"]()
  by_way["a folder of files"]()
  for other in ("a folder of clusters", "a mapping"):
    with pytest.raises(ConfigError, match=r"'tickets' is described twice: .*flat/tickets.yaml"):
      by_way[other]()


def test_a_mistake_in_a_mapping_is_told_by_its_keys():
  template = {"name": "which", "input": "{txt}", "target": "{answer}"}
  with pytest.raises(TemplateError, match=r"^own\.templates\.0\.input: .*did you mean \{text\}"):
    register_dataset("own", {**CONTENT, "templates": [template]})
  with pytest.raises(TemplateError, match="unknown key 'sorce'; did you mean 'source'"):
    register_dataset("own", {**CONTENT, "sorce": {}})
  assert "own" not in dataset_names()


def test_what_was_registered_is_known_to_the_process_that_prepares(written, tmp_path):
  register_dataset("given", CONTENT, tmp_path)
  ways(tmp_path)["a folder of files"]()
  for name in ("given", "tickets"):
    store = preparation.prepared_store(config(name), 2, tmp_path / "home", workers=1)
    assert [task.name for task in store.tasks] == [name]
