"""What each dataset of the library is proved on: its source's schema, mocked or recorded, or the published data."""

from collections import defaultdict

import pytest

from flan_jax.data.library import dataset_files, dataset_spec
from flan_jax.data.mixtures import get_mixture, training_datasets
from flan_jax.data.sources import is_large, open_source
from flan_jax.prompting import Draw

PROOFS = {
  "mocked schema": "TFDS's builder, mocked: test_tfds_schemas.py, and below",
  "recorded schema": "the file's record and rows in the published form: test_{t0,flan2022,held_out}.py, and below",
  "published data": "the package that is published: tests/data/test_mini.py, test_held_out.py",
}


def proof(name):
  """Which of them it is."""
  if name.startswith("p3_"):
    return "recorded schema"
  source = dataset_spec(name).source
  if "tfds" in source:
    return "mocked schema"
  return "recorded schema" if is_large(source) else "published data"


NAMES = sorted(dataset_files())
OURS = [name for name in NAMES if not name.startswith("p3_")]
pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_dataset_is_proved_on_something():
  found = defaultdict(set)
  for name in NAMES:
    found[proof(name)].add(name)
  assert found.keys() == PROOFS.keys()
  recorded = {name for name in found["recorded schema"] if not name.startswith(("p3_", "cot_"))}
  assert recorded == {"flan_xsum", "mmlu", "wiki_dialog"}
  mini = {name for mixture in ("mini", "mini_short") for name in get_mixture(mixture).datasets}
  assert found["published data"] >= {name for name in mini if name in NAMES}
  assert len(found["mocked schema"]) > 65


@pytest.mark.parametrize("name", OURS)
def test_every_template_says_something_and_answers_with_an_option(name):
  """On the file's record, and where there is a builder on what it mocks, as far as that can be used."""
  spec = dataset_spec(name)
  raws = [spec.record, *(mocked(spec) if proof(name) == "mocked schema" else ())]
  records = [record for record in map(spec.derive_record, raws) if record]
  assert records
  for record in records:
    for template in spec.templates:
      for seed in range(3):
        rendering = template.render(record, Draw(seed))
        assert all(turn.input.strip() and turn.target.strip() for turn in rendering.turns)
        if rendering.options:
          assert rendering.turns[-1].target in rendering.options
          assert set(rendering.golds) <= set(rendering.options)


def mocked(spec):
  import tensorflow_datasets as tfds

  with tfds.testing.mock_data(num_examples=2):
    source = open_source(spec.source, spec.path.parent)
    parts = [part for part in spec.splits.values() if isinstance(part, str)]
    return list(source.records(parts[0] if parts else "train"))


def test_what_is_only_judged_trains_nowhere():
  assert not set(training_datasets("flan2021")) & {"mnli_mismatched", "wsc273"}
