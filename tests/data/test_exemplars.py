"""No exemplar asks what its query asks, and one that does is found."""

import pytest

from flan_jax.data import dataset_spec, library, load_records, register_templates
from flan_jax.data.exemplars import exemplar_overlaps
from flan_jax.data.rendering import DatasetDraws

LONG = "a paragraph of nine words that several questions share"
SHAPE = {
  "splits": {"train": 1.0},
  "fields": {"passage": "long", "question": "text", "label": "text"},
  "record": {"passage": LONG, "question": "is it odd?", "label": "y"},
  "templates": [{"name": "ask", "input": "{passage}\n{question}", "target": "{answer}"}],
}


@pytest.fixture
def draws(make_dataset, tmp_path, monkeypatch):
  """Draws of a dataset that asks each of ten things twice, with another label and other spelling."""
  monkeypatch.setattr(library, "_template_folders", [])
  rows = [
    {"passage": f"Passage {i}.", "question": ("Is it so?", "is it  SO?")[twin], "label": "ny"[twin]}
    for i in range(10)
    for twin in (0, 1)
  ]
  make_dataset("twins", rows, "a", **SHAPE)
  register_templates(tmp_path / "templates")
  spec = dataset_spec("twins")
  records = load_records(spec, tmp_path / "cache")["train"]
  assert len(records) == 20
  return DatasetDraws(spec, records, 20, seed=1, renderings=9, shots=3)


def twin_of(draws, query):
  same = [i for i in range(20) if draws.records[i]["passage"] == draws.records[query]["passage"]]
  return next(i for i in same if i != query)


def test_a_record_that_asks_the_same_is_no_exemplar_though_its_group_is_another(draws):
  chosen = {
    (query, epoch): draws.exemplars(query, epoch) for query in range(20) for epoch in range(9)
  }
  assert all(len(set(indices)) == 3 for indices in chosen.values())
  for (query, epoch), indices in chosen.items():
    assert draws.records.group(twin_of(draws, query)) != draws.records.group(query)
    assert not {query, twin_of(draws, query)} & set(indices)
    shown = draws.render(query, epoch).turns
    assert len(shown) == 4 and len({turn.input.casefold() for turn in shown}) == 4


def test_such_exemplars_are_found_and_told_of(draws, tmp_path, monkeypatch):
  def overlaps():
    return exemplar_overlaps("twins", tmp_path / "cache", shots=3, queries=12)

  [clean] = overlaps()
  assert (clean.queries, clean.equal, clean.sharing, clean.first) == (12, 0, 0, None)
  chosen = DatasetDraws.exemplars

  def with_twin(draws, example, epoch):
    indices = chosen(draws, example, epoch)
    return [*indices, twin_of(draws, example)] if example in (3, 7) else indices

  monkeypatch.setattr(DatasetDraws, "exemplars", with_twin)
  [found] = overlaps()
  assert (found.equal, found.sharing, found.first) == (2, 0, (3, twin_of(draws, 3)))


def test_exemplars_that_share_a_long_field_are_counted_by_themselves(
  make_dataset, tmp_path, monkeypatch
):
  monkeypatch.setattr(library, "_template_folders", [])
  rows = [{"passage": LONG, "question": f"is {i} odd?", "label": "ny"[i % 2]} for i in range(10)]
  make_dataset("one_passage", rows, "a", **SHAPE)
  register_templates(tmp_path / "templates")
  [found] = exemplar_overlaps("one_passage", tmp_path / "cache", shots=1)
  assert (found.queries, found.equal, found.sharing) == (10, 0, 10)
