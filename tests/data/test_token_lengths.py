"""Lengths that are told before a run are those that the run then stores."""

import numpy as np
import pytest

from flan_jax.data import (
  Mixture,
  dataset_spec,
  load_records,
  mixture_tasks,
  register_templates,
  register_text,
  texts,
  training_tasks,
)
from flan_jax.data.draws import DrawStream
from flan_jax.data.objectives import LM
from flan_jax.data.prepare import prepare
from flan_jax.data.store import StoreConfig
from flan_jax.data.token_lengths import TokenLengths, token_lengths
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

pytestmark = pytest.mark.usefixtures("own_registry")
EVERYTHING = {"train": 1.0}


@pytest.fixture
def mixture(make_dataset, tmp_path):
  """One dataset whose passages are longer and longer, and one that is held out."""
  rows = [
    {"question": f"is {i} odd?", "passage": f"{i}." + " word" * i, "label": "ny"[i % 2]}
    for i in range(30)
  ]
  template = {"name": "read", "input": "{passage}\n{question}", "target": "{answer}"}
  make_dataset(
    "passages",
    rows,
    splits=EVERYTHING,
    fields={"question": "text", "passage": "long", "label": "text"},
    record=rows[1],
    templates=[template],
  )
  make_dataset("other", 20, "b", splits=EVERYTHING)
  make_dataset("facts", 20, "c", splits=EVERYTHING)
  register_templates(tmp_path / "templates")
  datasets = {"passages": None, "other": 2.0, "facts": None}
  return Mixture("m", datasets, hold_out=("c",))


def config_of(mixture, layout="encoder_decoder", **lengths):
  lengths = {"inputs": 64, "targets": 8} | lengths
  return StoreConfig(mixture, ByteVocabulary(), PlainFormat(), layout, lengths, window=512)


def measured(config, home, draws=200):
  tasks = mixture_tasks(config.mixture, home)
  return token_lengths(tasks, config, home, draws)


def test_the_lengths_of_every_example_are_a_closed_form(mixture, tmp_path):
  found = measured(config_of(mixture, inputs=10_000), tmp_path / "home")["passages"]
  inputs = [len(f"{i}." + " word" * i + f"\nis {i} odd?") for i in range(30)]
  targets = [len(("no", "yes")[i % 2]) + 1 for i in range(30)]  # and the end token
  assert found == TokenLengths(sum(inputs) / 30, sum(targets) / 30, shortened=0, dropped=0)


@pytest.mark.parametrize("layout", ["encoder_decoder", "decoder"])
def test_the_lengths_are_those_of_the_store(mixture, tmp_path, layout):
  """A window of 512 draws holds all of the first pass over either dataset."""
  config = config_of(mixture, layout)
  store = prepare(config, 1, tmp_path / "home", workers=1, progress=False)
  stored = [example for row in range(store.rows) for example in store.row(row)]
  found = measured(config, tmp_path / "home")
  assert found.keys() == {"passages", "other"} and found["passages"].shortened > 0
  for number, task in enumerate(store.tasks):
    first = [example for example in stored if (example.task, example.epoch) == (number, 0)]
    targets = np.mean([example.weights.sum() for example in first])
    tokens = np.mean([len(example.inputs) + len(example.targets) for example in first])
    assert found[task.name].targets == pytest.approx(targets)
    assert found[task.name].inputs == pytest.approx(tokens - targets)
    assert found[task.name].dropped == pytest.approx(1 - len(first) / task.examples)


def test_what_does_not_fit_is_counted(mixture, tmp_path):
  found = measured(config_of(mixture, inputs=12), tmp_path / "home")["passages"]
  assert found.dropped > 0.5
  nothing = measured(config_of(mixture, inputs=3), tmp_path / "home")["passages"]
  assert nothing == TokenLengths(None, None, shortened=0, dropped=1)


def test_a_sample_is_the_first_draws_of_the_run(mixture, tmp_path):
  config = config_of(mixture, inputs=10_000)
  found = measured(config, tmp_path / "home", draws=5)["passages"]
  names, shares, sizes = zip(
    *(
      (task.name, task.share, task.examples) for task in training_tasks(mixture, tmp_path / "home")
    ),
    strict=True,
  )
  draws = DrawStream(names, shares, sizes, config.seed).draws(0, 60)
  records = load_records(dataset_spec("passages"), tmp_path / "home")["train"]
  drawn = [records[int(i)] for i in draws.example[draws.task == names.index("passages")][:5]]
  lengths = [len(f"{record['passage']}\n{record['question']}") for record in drawn]
  assert found.inputs == pytest.approx(np.mean(lengths))


def test_a_raw_text_is_measured_in_its_stretches(make_dataset, monkeypatch, tmp_path):
  monkeypatch.setattr(texts, "_texts", dict(texts._texts))
  make_dataset(rows=40, text="{question}", splits=EVERYTHING)
  register_templates(tmp_path / "templates")
  register_text("running", ["facts"], LM(), passes=2)
  config = config_of(Mixture("m", {"running": None, "facts": None}), "decoder", inputs=40)
  found = measured(config, tmp_path / "home")["running"]
  assert (found.inputs, found.shortened, found.dropped) == (0, 0, 0)
  assert 40 <= found.targets <= 49
