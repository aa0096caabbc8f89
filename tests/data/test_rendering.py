"""Draws of a dataset some of whose templates are for some records only."""

from collections import Counter

import pytest

from flan_jax.data.library import dataset_spec
from flan_jax.data.records import load_records
from flan_jax.data.rendering import DatasetDraws, some_templates
from flan_jax.errors import RecordError
from flan_jax.prompting import read_dataset

WORDS = """
templates:
  1: !Template {name: same, jinja: "{{one}} {{two}} Same? ||| {{['no', 'yes'][label]}}"}
  2: !Template {name: rewrite, jinja: "{% if label == 1 %}Say otherwise: {{one}} ||| {{two}}{% endif %}"}
  3: !Template {name: differ, jinja: "{% if label == 0 %}Contradict: {{one}} ||| {{two}}{% endif %}"}
"""


@pytest.fixture
def draws(make_dataset, tmp_path):
  rows = [{"one": f"{i} is odd.", "two": f"{i} isn't even.", "label": i % 2} for i in range(40)]

  def make(words=WORDS):
    path = make_dataset(
      "pairs",
      rows,
      splits={"train": 1.0},
      fields=None,
      answer=None,
      metrics=None,
      record=rows[1],
      templates={"promptsource": "words.yaml"},
    )
    path.with_name("words.yaml").write_text(words)
    spec = read_dataset(path)
    records = load_records(spec, tmp_path / "cache")["train"]
    return records, DatasetDraws(spec, records, len(records), seed=5, renderings=50, shots=0)

  return make


def test_a_template_is_drawn_among_those_that_are_for_the_record(draws):
  records, drawn = draws()
  counts = Counter(
    (record["label"], drawn.render(example, epoch).template)
    for example, record in enumerate(records)
    for epoch in range(50)
  )
  assert set(counts) == {(0, "same"), (0, "differ"), (1, "same"), (1, "rewrite")}
  assert all(count == pytest.approx(500, rel=0.2) for count in counts.values())


def test_a_record_that_no_template_is_for_is_an_error(draws):
  only = "\n".join(
    line for line in WORDS.splitlines() if "same" not in line and "differ" not in line
  )
  records, drawn = draws(only)
  for example, record in enumerate(records):
    if record["label"] == 0:
      with pytest.raises(RecordError, match="'rewrite' does not give one input and one target"):
        drawn.render(example, 0)


@pytest.mark.parametrize("seed", (0, 1))
def test_fewer_templates_are_among_more_and_options_are_told_apart(seed):
  spec = dataset_spec("bbc_news")
  names = [{t.name for t in some_templates(spec, k, "any", seed).templates} for k in (1, 2, 4, 99)]
  assert [len(each) for each in names] == [1, 2, 4, 8] and names[3] == {
    t.name for t in spec.training_templates()
  }
  assert names[0] < names[1] < names[2] < names[3]
  shown, hidden = (some_templates(spec, None, how, seed) for how in ("shown", "hidden"))
  assert all(t.styles != ("none",) for t in shown.templates)
  assert all(t.styles == ("none",) for t in hidden.templates)
  assert {t.name for t in (*shown.templates, *hidden.templates)} == names[3]
  assert some_templates(spec, 1, "hidden", seed).templates[0] in hidden.templates
  free = dataset_spec("nq_open")
  assert some_templates(free, None, "hidden", seed).templates == free.training_templates()


def test_the_one_template_of_another_seed_is_another_one():
  spec = dataset_spec("bbc_news")
  assert len({some_templates(spec, 1, "any", seed).templates[0].name for seed in range(8)}) > 2
