"""Draws of a dataset some of whose templates are for some records only."""

from collections import Counter

import pytest

from flan_jax.data.records import load_records
from flan_jax.data.rendering import DatasetDraws
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
