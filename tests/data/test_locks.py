"""The lock of a mixture: the same data the same bytes, and every change told by its name."""

import json
import re
import shutil

import pytest
import yaml

from flan_jax.data import (
  Mixture,
  library,
  load_records,
  register_mixture,
  register_templates,
  register_text,
)
from flan_jax.data.library import dataset_spec
from flan_jax.data.lock_changes import changes
from flan_jax.data.locks import lock_mixture, read_lock, write_lock
from flan_jax.data.objectives import SpanCorruption
from flan_jax.data.source_words import in_words, portable
from flan_jax.errors import SourceError, StorageError

pytestmark = pytest.mark.usefixtures("own_registry")


@pytest.fixture
def folder(make_dataset, tmp_path):
  """Two datasets, and one in a cluster that is held out."""
  for name, rows, cluster in (("small", 12, "a"), ("large", 40, "a"), ("judged", 20, "b")):
    make_dataset(name, rows, cluster)
  register_templates(tmp_path / "templates")
  return tmp_path


@pytest.fixture
def mine(folder):
  return Mixture("mine", {"small": 2.0, "large": None, "judged": None}, hold_out=("b",))


def locked(mixture, folder):
  return lock_mixture(mixture, folder / "home")


def edited(folder, dataset, **values):
  """Writes other values into a dataset's file."""
  (path,) = (folder / "templates").glob(f"*/{dataset}.yaml")
  path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values, sort_keys=False))


def test_the_same_data_give_the_same_bytes_wherever_they_are(folder, mine, monkeypatch):
  write_lock(folder / "one.lock", locked(mine, folder))
  shutil.copytree(folder / "templates", folder / "elsewhere" / "templates")
  monkeypatch.setattr(library, "_template_folders", [])
  register_templates(folder / "elsewhere" / "templates")
  write_lock(folder / "two.lock", lock_mixture(mine, folder / "another" / "home"))
  assert (folder / "one.lock").read_bytes() == (folder / "two.lock").read_bytes()
  assert str(folder) not in (folder / "one.lock").read_text()


def test_a_lock_says_what_is_drawn_and_of_what(folder, mine):
  lock = locked(mine, folder)
  small, judged = lock["datasets"]["small"], lock["datasets"]["judged"]
  assert lock["settings"]["datasets"] == {"small": 2.0, "large": None, "judged": None}
  kept = load_records(dataset_spec("small"), folder / "home").counts.kept
  assert small["counts"]["kept"] == kept and small["counts"]["raw"] == 12
  assert small["rate"] == 2 * kept["train"] and not small["held_out"]
  assert small["share"] + lock["datasets"]["large"]["share"] == pytest.approx(1)
  assert small["passes"] == pytest.approx(10_000 * small["share"] / kept["train"])
  assert list(small["templates"]) == ["ask", "answer_with", "kept_back"]
  assert (small["unseen"], small["licence"]) == (["kept_back"], "CC0-1.0")
  assert judged["held_out"] and judged["share"] == 0 and judged["counts"]["raw"] == 20
  assert re.fullmatch("[0-9a-f]{64}", small["records"]["train"])
  assert lock["conventions"]["records_version"] == 1


def test_a_lock_is_read_as_it_was_written(folder, mine):
  lock = locked(mine, folder)
  write_lock(folder / "mine.lock", lock)
  assert read_lock(folder / "mine.lock") == lock
  assert changes(lock, read_lock(folder / "mine.lock")) == {}


@pytest.mark.parametrize(
  ("damage", "complaint"),
  [
    (lambda text: text[:-40], "is torn, or no lock"),
    (lambda text: "[]", "is torn, or no lock"),
    (lambda text: text.replace('"rate_cap": 3000', '"rate_cap": 300'), "does not have the hash"),
  ],
)
def test_a_lock_that_is_torn_or_was_changed_is_refused(folder, mine, damage, complaint):
  path = folder / "mine.lock"
  write_lock(path, locked(mine, folder))
  path.write_text(damage(path.read_text()))
  with pytest.raises(StorageError, match=complaint):
    read_lock(path)
  with pytest.raises(StorageError, match="there is no lock .*no.lock: .*--lock"):
    read_lock(folder / "no.lock")


def test_what_changed_is_told_dataset_by_dataset(folder, mine, make_dataset):
  before = locked(mine, folder)
  templates = yaml.safe_load((folder / "templates/a/large.yaml").read_text())["templates"]
  ask, _, kept_back = templates
  new = {"name": "new", "input": "So, {question}", "target": "{answer}"}
  edited(
    folder,
    "large",
    templates=[{**ask, "input": "Well, {question}\n{options}"}, kept_back, new],
    licence="MIT",
  )
  make_dataset("other", 8, "a")
  after = locked(
    Mixture("mine", {"large": None, "judged": None, "other": None}, hold_out=("b",), rate_cap=9),
    folder,
  )
  found = changes(before, after)
  assert found[""] == [
    "settings.datasets.small: 2 -> nothing",
    "settings.rate_cap: 3,000 -> 9",
  ]
  assert [found["small"][0][:8], found["other"][0][:6]] == ["removed,", "added,"]
  lines = found["large"]
  assert "licence: CC0-1.0 -> MIT" in lines
  assert "templates added: new" in lines
  assert "templates removed: answer_with" in lines
  assert "templates reworded: ask" in lines
  shares = (before["datasets"]["large"]["share"], after["datasets"]["large"]["share"])
  assert f"share: {shares[0]:.2%} -> {shares[1]:.2%}" in lines
  assert not any(line.startswith(("source", "counts", "records")) for line in lines)
  assert found["judged"] == ["rate_cap: 3,000 -> 9"]


def test_other_records_are_told_by_source_and_counts(folder, mine):
  before = locked(mine, folder)
  path = folder / "templates/a/small.jsonl"
  path.write_text(path.read_text() + '{"question": "is one more odd?", "label": "n"}\n')
  lines = changes(before, locked(mine, folder))["small"]
  assert "counts.raw: 12 -> 13" in lines
  assert any(line.startswith("source_fingerprint: ") for line in lines)
  assert any(line.startswith("records.") for line in lines)
  edited(folder, "large", source={"files": {"all": "large.jsonl"}})
  assert (
    "source: files large.jsonl -> files large.jsonl (with other settings)"
    in (changes(before, locked(mine, folder))["large"])
  )


def test_another_order_is_a_change(folder):
  """It decides which dataset stands at a place of the stream, and how options are shown."""
  one = locked(Mixture("m", {"small": None, "large": None}), folder)
  other = locked(Mixture("m", {"large": None, "small": None}), folder)
  assert one["hash"] != other["hash"]
  assert changes(one, other) == {"": ["settings.datasets: in another order"]}
  edited(folder, "small", answer={"field": "label", "choices": {"n": "no", "y": "yes"}})
  assert changes(one, locked(Mixture("m", {"small": None, "large": None}), folder)) == {
    "small": ["answer.labels: in another order"]
  }
  weighted = [locked(Mixture("m", {"small": weight}), folder) for weight in (2, 2.0)]
  assert changes(*weighted) == {"": ["the same, written otherwise"]}


def test_mixtures_within_and_raw_texts_are_locked_with_what_they_are_made_of(folder, monkeypatch):
  from flan_jax.data import texts

  monkeypatch.setattr(texts, "_texts", dict(texts._texts))
  edited(folder, "large", text="{question}")
  register_text("spans", ["large"], SpanCorruption(), passes=3)
  register_mixture("inner", ["small"], rate_cap=5)
  before = locked(Mixture("m", {"inner": None, "spans": "10%"}), folder)
  assert before["within"]["inner"]["rate_cap"] == 5
  spans = before["datasets"]["spans"]
  assert spans["objective"]["noise_density"] == 0.15 and spans["most_passes"] == 3
  assert spans["text_of"]["large"]["text"] == "{question}"
  edited(folder, "large", text="Q: {question}")
  after = locked(Mixture("m", {"inner": None, "spans": "10%"}), folder)
  assert changes(before, after) == {
    "spans": ["text_of.large.text: {question} -> Q: {question}"],
  }


@pytest.mark.filterwarnings("ignore")
def test_what_is_missing_is_told_without_the_places_of_this_machine(folder, make_dataset):
  source = {"tfds": "story_cloze/2016:1.0.0", "data_dir": str(folder)}
  make_dataset("cloze", source=source, splits={"train": "validation", "test": "test"})
  mixture = Mixture("m", {"small": None, "cloze": None})
  lock = locked(mixture, folder)
  cloze = lock["datasets"]["cloze"]
  assert cloze["missing"].startswith("TFDS cannot prepare story_cloze/2016:1.0.0: Manual")
  assert "https://www.cs.rochester.edu/nlp/rocstories/" in cloze["missing"]
  assert str(folder) not in json.dumps(lock)
  assert (cloze["counts"], cloze["records"]) == (None, {})
  assert cloze["source"] == {"tfds": "story_cloze/2016:1.0.0"}
  make_dataset("cloze", rows=12)
  lines = changes(lock, locked(mixture, folder))["cloze"]
  assert "source: TFDS story_cloze/2016:1.0.0 -> files cloze.jsonl" in lines
  assert "counts.raw: nothing -> 12" in lines and "share: 0.00% -> 50.00%" in lines
  make_dataset("cloze", source=source, splits={"train": "validation", "test": "test"})
  with pytest.raises(SourceError, match="TFDS cannot prepare"):
    lock_mixture(mixture, folder / "home", strict=True)


@pytest.mark.parametrize(
  ("source", "words", "kept"),
  [
    ({"package": "x==1"}, "package x==1 (pypi)", {"package": "x==1"}),
    (
      {"package": "@x/y@1", "registry": "npm"},
      "package @x/y@1 (npm)",
      {"package": "@x/y@1", "registry": "npm"},
    ),
    ({"tfds": "rte:1", "data_dir": "/home/me"}, "TFDS rte:1", {"tfds": "rte:1"}),
    ({"files": ["~/a.csv", "b/c.csv"]}, "files a.csv, b/c.csv", {"files": ["a.csv", "b/c.csv"]}),
    (
      {"files": {"train": "/x/a-*.csv", "test": "b.csv"}},
      "files a-*.csv, b.csv",
      {"files": {"train": "a-*.csv", "test": "b.csv"}},
    ),
    ({"callable": "m:f"}, "function m:f", {"callable": "m:f"}),
  ],
)
def test_a_source_is_put_into_words_and_loses_its_places(source, words, kept):
  assert in_words(source) == words
  assert portable(source) == kept


def test_fields_caps_and_borrowed_templates_are_locked(folder, mine):
  before = locked(mine, folder)
  edited(folder, "small", at_most={"label": 100})
  (path,) = (folder / "templates").glob("*/large.yaml")
  data = yaml.safe_load(path.read_text())
  lender = path.with_name("lender.yaml")
  lender.write_text(path.read_text())
  own = {
    key: data[key] for key in ("cluster", "description", "source", "splits", "record", "licence")
  }
  path.write_text(yaml.safe_dump({**own, "templates": {"like": "lender.yaml"}}, sort_keys=False))
  after = locked(mine, folder)
  assert after["datasets"]["large"]["templates"] == before["datasets"]["large"]["templates"]
  assert after["datasets"]["large"]["fields"] == data["fields"]
  found = changes(before, after)
  assert "large" not in found and any("at_most" in line for line in found["small"])
