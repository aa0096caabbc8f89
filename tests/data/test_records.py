"""Records are split by group, deduplicated, and never half-written."""

import collections
import json
import multiprocessing
import os
import pickle
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_jax.data import load_records
from flan_jax.data.records import _by_fraction, are_built, normalise
from flan_jax.errors import ConfigError, RecordError, StorageError, TemplateError, UnknownName
from flan_jax.prompting import read_dataset

FIELDS = {"passage": "text", "question": "text", "label": "text"}
RECORD = {"passage": "Three.", "question": "is it odd?", "label": "y"}


def rows(groups, per_group=3):
  return [
    {"passage": f"Passage {g}.", "question": f"question {g} {q}?", "label": "ny"[q % 2]}
    for g in range(groups)
    for q in range(per_group)
  ]


@pytest.fixture
def load(make_dataset, tmp_path):
  def load(data_dir=tmp_path / "cache", **changes):
    return load_records(read_dataset(make_dataset(**changes)), data_dir)

  return load


@pytest.fixture
def load_passages(load):
  """Loads records of passages and questions, grouped by passage."""

  def load_passages(rows, **changes):
    return load(rows=rows, fields=FIELDS, record=RECORD, group="passage", **changes)

  return load_passages


def passages(records):
  return {record["passage"] for record in records}


def test_every_record_lands_in_one_split_and_no_group_in_two(load_passages):
  splits = load_passages(rows(60), splits={"train": 0.6, "validation": 0.2, "test": 0.2})
  assert list(splits) == ["train", "validation", "test"]
  assert sum(map(len, splits.values())) == splits.counts.raw == 180
  found = [passages(records) for records in splits.values()]
  assert sum(map(len, found)) == len(set.union(*found)) == 60
  for records in splits.values():
    by_group = {records.group(i): records[i]["passage"] for i in range(len(records))}
    assert len(by_group) == len(set(by_group.values())) == len(passages(records))


def test_a_record_keeps_its_split_when_others_come(load):
  before = load(name="facts", rows=40)
  after = load(name="facts", rows=80)
  for split in before:
    questions = {record["question"] for record in after[split]}
    assert {record["question"] for record in before[split]} <= questions


def test_official_parts_keep_training_free_of_evaluation_groups(load_passages, tmp_path):
  train = [*rows(10), {"passage": "passage  8.", "question": "another one?", "label": "y"}]
  (tmp_path / "templates" / "trivia").mkdir(parents=True)
  test = rows(10)[24:]
  write_jsonl(tmp_path / "templates" / "trivia" / "dev.jsonl", test)
  splits = load_passages(
    train,
    source={"files": {"everything": "facts.jsonl", "dev": "dev.jsonl"}},
    splits={"train": "everything", "test": "dev"},
  )
  assert len(splits["test"]) == 6
  assert passages(splits["train"]) == {f"Passage {g}." for g in range(8)}
  assert splits.counts.duplicates == 6  # the rows of the test part that the whole holds too
  assert splits.counts.overlapping == 1  # another question on one of its passages


def test_splits_that_are_the_same_data_are_left_so_and_said_to_be(load_passages, caplog):
  files = {"everything": "facts.jsonl"}
  splits = {"train": "everything", "test": "everything"}
  found = load_passages([*rows(5), *rows(1)], source={"files": files}, splits=splits)
  assert len(found["train"]) == len(found["test"]) == found.counts.shared == 15
  assert (found.counts.duplicates, found.counts.overlapping) == (6, 0)
  assert "facts: all records of train stand in other splits too" in caplog.text


def test_a_split_within_another_keeps_that_one_out_of_training_all_the_same(
  load_passages, tmp_path
):
  (tmp_path / "templates" / "trivia").mkdir(parents=True)
  for name, some in {"dev": rows(8), "test": rows(2)}.items():
    write_jsonl(tmp_path / f"templates/trivia/{name}.jsonl", some)
  parts = {"all": "facts.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
  splits = {"train": "all", "validation": "dev", "test": "test"}
  found = load_passages(rows(10), source={"files": parts}, splits=splits)
  assert passages(found["train"]) == {"Passage 8.", "Passage 9."}
  assert len(found["validation"]) == 24 and len(found["test"]) == found.counts.shared == 6


def test_duplicates_are_found_whatever_their_case_and_spacing(load):
  same = [{"question": text, "label": "y"} for text in ("Is 3 odd?", " is  3 ODD? ", "ｉs 3 odd?")]
  splits = load(rows=[*same, {"question": "is 3 - 2 odd?", "label": "y"}], splits={"train": 1.0})
  assert splits.counts.kept == {"train": 2}
  assert splits.counts.duplicates == 2


def test_records_without_an_answer_are_dropped_and_counted(load):
  splits = load(
    rows=[{"question": "a", "label": " "}, {"question": "b", "label": "1"}],
    splits={"train": 1.0},
    answer={"field": "label"},
    metrics=["exact_match"],
    templates=[{"name": "ask", "input": "{question}", "target": "{answer}"}],
  )
  assert (splits.counts.blank, splits.counts.kept) == (1, {"train": 1})


def test_balanced_labels_leave_a_passage_without_a_hint(load_passages):
  skewed = [
    {"passage": f"Passage {g}.", "question": f"question {g} {q}?", "label": "y" if q < g else "n"}
    for g in range(5)
    for q in range(4)
  ]
  splits = load_passages(skewed, splits={"train": 1.0}, balance="passage")
  labels = collections.Counter((r["passage"], r["label"]) for r in splits["train"])
  # Of four questions to each passage 0, 1, 2, 3 and 4 are right: 0, 1, 2, 1 and 0 pairs are left.
  assert labels == {(f"Passage {g}.", x): n for g, n in ((1, 1), (2, 2), (3, 1)) for x in "yn"}
  assert splits.counts.unbalanced == 20 - 8


def test_at_most_keeps_so_many_of_each_kind_in_a_split_and_always_the_same(load_passages):
  many = rows(groups=6, per_group=9)
  splits = load_passages(many, splits={"train": 0.7, "test": 0.3}, at_most={"passage": 4})
  for records in splits.values():
    assert set(collections.Counter(r["passage"] for r in records).values()) == {4}
  assert splits.counts.capped == 6 * 5
  whole = load_passages(many, splits={"train": 0.7, "test": 0.3})
  seen = collections.Counter()
  firsts = [r for r in whole["train"] if (seen.update([r["passage"]]), seen[r["passage"]])[1] <= 4]
  assert list(splits["train"]) == firsts
  again = load_passages(many[::-1], splits={"train": 0.7, "test": 0.3}, at_most={"passage": 4})
  assert list(again["train"]) == firsts


@pytest.mark.parametrize(
  "wrong", [{"passage": 0}, {"passage": "4"}, {}, {"passage": 4, "label": 2}]
)
def test_at_most_wants_one_field_and_a_number(load_passages, wrong):
  with pytest.raises(TemplateError, match=r"\.yaml:\d+: at_most"):
    load_passages(rows(3), splits={"train": 1.0}, at_most=wrong)


def test_balance_needs_fixed_choices(load_passages):
  with pytest.raises(TemplateError, match="balance is for an answer with fixed choices"):
    answer = {"field": "label"}
    load_passages(rows(2), balance="passage", answer=answer, metrics=["exact_match"])


def test_the_order_is_hashed_and_always_the_same(load, tmp_path):
  first = [record["question"] for record in load(rows=200, splits={"train": 1.0})["train"]]
  other = load(rows=200, splits={"train": 1.0}, data_dir=tmp_path / "other")["train"]
  assert [record["question"] for record in other] == first
  numbers = [int(question.split()[2]) for question in first]
  assert sorted(numbers) == list(range(200)) != numbers


def test_records_behave_as_a_sequence_and_travel_to_other_processes(load):
  records = load(rows=30)["train"]
  assert records[-1] == records[len(records) - 1] == list(records)[-1]
  assert records[1:3] == [records[1], records[2]]
  with pytest.raises(IndexError):
    records[len(records)]
  copy = pickle.loads(pickle.dumps(records))
  assert list(copy) == list(records)
  assert copy.group(3) == records.group(3)


def test_a_second_call_reads_neither_source_nor_network(load, make_dataset, tmp_path):
  spec = read_dataset(make_dataset())
  cache = tmp_path / "cache"
  before = load_records(spec, cache)
  stamp = (before.directory / "train.jsonl").stat().st_mtime_ns
  again = load_records(spec, cache)
  assert again.directory == before.directory
  assert (again.directory / "train.jsonl").stat().st_mtime_ns == stamp
  assert [path.name for path in (cache / "records").iterdir()] == [before.directory.name]


def test_whether_records_are_there_is_told_without_building_them(make_dataset, tmp_path):
  spec = read_dataset(make_dataset())
  assert not are_built(spec, tmp_path / "cache")
  load_records(spec, tmp_path / "cache")
  assert are_built(spec, tmp_path / "cache")


def test_new_templates_keep_the_records_and_new_data_makes_others(load):
  before = load(rows=40)
  templates = [{"name": "other", "input": "So: {question}", "target": "{answer}"}]
  assert load(rows=40, templates=templates).fingerprint == before.fingerprint
  assert load(rows=41).fingerprint != before.fingerprint


def test_a_missing_field_names_the_dataset_the_record_and_the_nearest_field(load, tmp_path):
  wrong = [{"question": "a", "label": "y"}, {"queston": "b", "label": "y"}]
  with pytest.raises(RecordError, match=r"facts\.jsonl:2: dataset 'facts'.*'question'.*queston"):
    load(rows=wrong, splits={"train": 1.0})
  assert list((tmp_path / "cache" / "records").iterdir()) == []


def test_an_answer_that_is_no_choice_is_an_error(load):
  with pytest.raises(RecordError, match=r"facts\.jsonl:1: .*'label'.*'maybe'"):
    load(rows=[{"question": "a", "label": "maybe"}], splits={"train": 1.0})


def test_an_empty_split_is_an_error_that_says_where_the_records_went(load):
  with pytest.raises(RecordError, match=r"the split 'test' is empty\. Of 1 records"):
    load(rows=1, splits={"train": 0.999999, "test": 0.000001})


def test_an_unknown_split_names_those_that_are_there(load):
  splits = load()
  assert "validation" not in splits
  with pytest.raises(UnknownName, match="split 'tset'.*'test'.*dataset facts"):
    splits["tset"]


def test_a_wrong_source_names_the_dataset_file(load):
  with pytest.raises(ConfigError, match=r"facts\.yaml: no file matches"):
    load(source={"files": "absent.jsonl"})


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_refuses_writes_is_a_storage_error(load, tmp_path):
  folder = tmp_path / "locked"
  folder.mkdir()
  folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
  with pytest.raises(StorageError, match="cannot write"):
    load(data_dir=folder)


def test_a_full_disk_is_a_storage_error_and_nothing_stays(load, tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("numpy.save", full)
  with pytest.raises(StorageError, match="No space left on device"):
    load()
  assert list((tmp_path / "cache" / "records").iterdir()) == []


def test_processes_that_ask_at_once_share_one_build(make_dataset, tmp_path):
  path = make_dataset(rows=500)
  with multiprocessing.get_context("spawn").Pool(3) as pool:
    lengths = pool.starmap(training_size, [(path, tmp_path / "cache")] * 3)
  assert len(set(lengths)) == 1
  assert len(list((tmp_path / "cache" / "records").iterdir())) == 1


def training_size(path, data_dir):
  return len(load_records(read_dataset(path), data_dir)["train"])


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_hash_belongs_to_a_split(group):
  split_of = _by_fraction({"train": 0.8, "validation": 0.1, "test": 0.1})
  place = (group % 2**64) / 2**64
  expected = "train" if place < 0.8 else "validation" if place < 0.9 else "test"
  assert split_of(group) == expected or min(abs(place - 0.8), abs(place - 0.9)) < 1e-12


@given(st.text(st.characters(codec="ascii")))
def test_case_and_spacing_do_not_tell_records_apart(text):
  assert normalise(text.upper().replace(" ", " \n ")) == normalise(text)
  assert "  " not in normalise(text)


def write_jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
