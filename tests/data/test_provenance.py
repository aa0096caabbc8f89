"""Every stored example says where it comes from, and the source gives its tokens once more."""

import json

import pytest

from flan_jax.cli.main import main
from flan_jax.data import library
from flan_jax.data.library import dataset_spec, register_templates
from flan_jax.data.mixtures import Mixture
from flan_jax.data.objectives import PrefixLM
from flan_jax.data.prepare import prepare
from flan_jax.data.records import load_records
from flan_jax.data.store import Store, StoreConfig
from flan_jax.data.texts import register_text
from flan_jax.errors import StorageError, UnknownName
from flan_jax.prompting import Draw, few_shot
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

VOCABULARY = ByteVocabulary(extra_ids=4)


@pytest.fixture(autouse=True)
def datasets(make_dataset, tmp_path, monkeypatch):
  library.import_library()
  monkeypatch.setattr(library, "_template_folders", [])
  monkeypatch.setattr("flan_jax.data.texts._texts", {})
  options = {"field": "label", "choices": {"y": "yes", "n": "no"}, "order": "shuffled"}
  make_dataset("small", 12, answer=options)
  make_dataset("large", 40, "other", text="{question}")
  register_templates(tmp_path / "templates")


@pytest.fixture(params=["encoder_decoder", "decoder"])
def make(request, tmp_path):
  def make(rows=30, datasets=("small", "large"), **changes):
    mixture = Mixture("both", dict.fromkeys(datasets))
    settings = {"lengths": {"inputs": 96, "targets": 32}, "seed": 5, "window": 64, **changes}
    config = StoreConfig(mixture, VOCABULARY, PlainFormat(), request.param, **settings)
    return prepare(config, rows, tmp_path / "home", workers=1, progress=False)

  return make


def every_example(store):
  """(where it comes from, the example) for all that a store holds."""
  for row in range(store.rows):
    yield from zip(store.provenance(row), store.row(row), strict=True)


def drawn(provenance, renderings=4):
  return Draw(provenance.seed, provenance.dataset, provenance.index, provenance.epoch % renderings)


def test_the_named_record_in_the_named_words_gives_the_stored_tokens(make, tmp_path):
  store = make()
  encoder = store.encoder()
  seen = set()
  for provenance, example in every_example(store):
    spec = dataset_spec(provenance.dataset)
    record = load_records(spec, tmp_path / "home")[provenance.split][provenance.index]
    rendering = spec.template(provenance.template).render(record, drawn(provenance))
    assert rendering.style == provenance.style
    again = encoder.encode(lambda limit, rendering=rendering: rendering)
    assert again.inputs.tolist() == example.inputs.tolist()
    assert again.targets.tolist() == example.targets.tolist()
    seen.add((provenance.dataset, provenance.template, provenance.style))
  shown = {("ask", style) for style in ("list", "letters", "inline")} | {("answer_with", "none")}
  assert seen == {(name, *words) for name in ("small", "large") for words in shown}


def test_a_share_of_the_queries_has_exemplars_and_the_same_ones_in_every_epoch_s_texts(make):
  store = make(rows=60, few_shot=1, few_shot_share=0.4)
  shown = [(bool(p.exemplars), p.index, p.epoch % 4, p.dataset) for p, _ in every_example(store)]
  assert 0.3 < sum(has for has, *_ in shown) / len(shown) < 0.5
  assert len({tuple(draw) for _, *draw in shown}) == len(set(shown))


def test_round_robin_goes_through_the_templates_example_by_example(make):
  store = make(rows=60, template_choice="round_robin", datasets=("large",))
  names = [template.name for template in dataset_spec("large").training_templates()]
  for provenance, _ in every_example(store):
    turn = provenance.index + provenance.epoch % 4
    assert provenance.template == names[turn % len(names)]


def test_exemplars_are_named_by_their_records_those_that_did_not_fit_left_out(make, tmp_path):
  store = make(few_shot=3)
  counts = set()
  for provenance, example in every_example(store):
    spec = dataset_spec(provenance.dataset)
    records = load_records(spec, tmp_path / "home")[provenance.split]
    template = spec.template(provenance.template)
    before = [template.render(records[i], Draw(0)) for i in provenance.exemplars]
    query = template.render(records[provenance.index], drawn(provenance))
    read, _ = store.texts(example)
    asked = [records[i]["question"] for i in (*provenance.exemplars, provenance.index)]
    places = [read.index(question) for question in asked]
    assert places == sorted(places) and len(few_shot(query, before).shots) == len(before)
    assert read.count("odd?") == len(asked) == len(set(asked))
    counts.add(len(before))
  assert min(counts) < max(counts) <= 3


def test_of_a_raw_text_the_stretch_and_its_pass_are_told(make):
  register_text("lines", ["large"], PrefixLM(), passes=99)
  store = make(12, ["small", "lines"])
  told = [p for p, _ in every_example(store) if p.dataset == "lines"]
  assert {p.template for p in told} == {"prefix_lm"} and {p.style for p in told} == {"none"}
  assert {p.index for p in told} == set(
    range(next(t.examples for t in store.tasks if t.name == "lines"))
  )


def test_the_rows_of_a_dataset_or_of_one_record_are_found(make):
  store = make()
  for dataset in ("small", "large"):
    held = [r for r in range(store.rows) if dataset in {p.dataset for p in store.provenance(r)}]
    assert list(store.rows_of(dataset)) == held
  one = [
    row
    for row in range(store.rows)
    if any((p.dataset, p.index) == ("small", 3) for p in store.provenance(row))
  ]
  assert list(store.rows_of("small", 3)) == one
  with pytest.raises(UnknownName, match=r"'smal'.*'small'"):
    list(store.rows_of("smal"))


def test_the_command_shows_rows_in_words(make, capsys):
  store = make()
  place = str(store.directory)
  capsys.readouterr()
  assert main(["rows", place, "--row", "2", "--json"]) == 0
  objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  for about, (provenance, example) in zip(
    objects, zip(store.provenance(2), store.row(2), strict=True), strict=True
  ):
    assert about["row"] == 2 and about["template"] == provenance.template
    assert (about["dataset"], about["index"]) == (provenance.dataset, provenance.index)
    assert (about["inputs"], about["targets"]) == store.texts(example)
    assert about["targets"].strip() in ("yes", "no", "(A)", "(B)", "A", "B")
  assert main(["rows", place, "--dataset", "small", "--index", "3", "--limit", "1"]) == 0
  shown = capsys.readouterr().out
  assert shown.startswith(f"row {next(store.rows_of('small', 3))}, example ")
  assert "small train 3; template " in shown and "large" not in shown and "\n  | " in shown
  assert main(["rows", place, "--index", "3"]) == 2
  assert "--dataset" in capsys.readouterr().err


def test_a_store_of_another_version_is_said_to_be_one(make):
  store = make(1)
  path = store.directory / "store.json"
  path.write_text(path.read_text().replace('"encoding_version": 3', '"encoding_version": 2'))
  with pytest.raises(StorageError, match="made by another version"):
    Store.open(store.directory)
