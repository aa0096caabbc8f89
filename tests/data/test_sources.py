"""Every kind of source yields the same records, and a malformed one is named with its line."""

import gzip
import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flan_jax.data.sources import open_source
from flan_jax.errors import ConfigError, RecordError, UnknownName

ROWS = [{"text": "first line", "label": "yes"}, {"text": 'a "quoted", one', "label": "no"}]


def read(settings, base_dir, part="all"):
  return list(open_source(settings, base_dir).records(part))


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_tabular_format_gives_the_same_records(tmp_path):
  write_lines(tmp_path / "rows.jsonl", ROWS)
  (tmp_path / "rows.json").write_text(json.dumps(ROWS))
  (tmp_path / "rows.csv").write_text('text,label\nfirst line,yes\n"a ""quoted"", one",no\n')
  (tmp_path / "rows.tsv").write_text('text\tlabel\nfirst line\tyes\na "quoted", one\tno\n')
  pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
  with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
    file.write((tmp_path / "rows.jsonl").read_text())
  for name in ("rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl.gz"):
    assert read({"files": name}, tmp_path) == ROWS, name
  with_path = [{**row, "path": str(tmp_path / "rows.json")} for row in ROWS]
  assert read({"files": "rows.json"}, tmp_path) == with_path


def test_parts_and_globs_are_read_in_the_order_of_names(tmp_path):
  write_lines(tmp_path / "train-1.jsonl", [{"n": 2}])
  write_lines(tmp_path / "train-0.jsonl", [{"n": 1}])
  write_lines(tmp_path / "test.jsonl", [{"n": 3}])
  source = open_source({"files": {"train": "train-*.jsonl", "test": "test.jsonl"}}, tmp_path)
  assert source.parts == ("train", "test")
  assert [record["n"] for record in source.records("train")] == [1, 2]
  with pytest.raises(UnknownName, match=r"'trian'.*'train'"):
    list(source.records("trian"))


def test_json_records_are_found_at_a_path_and_take_over_what_stands_around_them(tmp_path):
  squad = {"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [{"q": 1}, {"q": 2}]}]}]}
  (tmp_path / "squad.json").write_text(json.dumps(squad))
  records = read({"files": "squad.json", "at": "data.paragraphs.qas"}, tmp_path)
  assert [(r["title"], r["context"], r["q"]) for r in records] == [("T", "C", 1), ("T", "C", 2)]


def test_yaml_lists_become_values(tmp_path):
  (tmp_path / "ai.yml").write_text("conversations:\n- - What is AI?\n  - A science.\n")
  (record,) = read({"files": "ai.yml", "at": "conversations"}, tmp_path)
  assert record["value"] == ["What is AI?", "A science."]


def test_a_text_file_is_one_record_and_encodings_are_tried_in_turn(tmp_path):
  (tmp_path / "a.txt").write_bytes("£5".encode())
  (tmp_path / "b.txt").write_bytes("£6".encode("latin-1"))
  records = read({"files": "*.txt", "encoding": ["utf-8", "latin-1"]}, tmp_path)
  assert [record["text"] for record in records] == ["£5", "£6"]
  with pytest.raises(RecordError, match=r"b\.txt: byte 1 is not utf-8.*encoding:"):
    read({"files": "*.txt"}, tmp_path)


def test_columns_name_a_table_without_a_header(tmp_path):
  (tmp_path / "tweets.txt").write_text('1\t0.5\tsay "hi"\n')
  settings = {"files": "tweets.txt", "format": "tsv", "columns": ["id", "mean", "text"]}
  assert read(settings, tmp_path) == [{"id": "1", "mean": "0.5", "text": 'say "hi"'}]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", '{"a": 1}\n\n{"a": \n', r"a\.jsonl:3: not JSON: .* column"),
    ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: the line holds a list, expected an object"),
    ("a.csv", "a,b\n1,2\n3\n", r"a\.csv:3: 1 columns, expected 2 \(a, b\)"),
    ("a.csv", 'a,b\n1,"2\n', r"a\.csv:2: "),
    ("a.tsv", "a\ta\n1\t2\n", r"a\.tsv:1: the header .* repeated names.*columns:"),
    ("a.json", '[{"a": 1},\n{"a" 2}]', r"a\.json:2: not JSON"),
    ("a.yaml", "a: [1\nb: 2\n", r"a\.yaml:2: not YAML"),
    ("a.parquet", "PAR1", r"a\.parquet: not a Parquet file"),
    ("a.jsonl.gz", "no gzip", r"a\.jsonl\.gz: cannot be read"),
  ],
)
def test_a_malformed_record_is_named_with_file_and_line(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(RecordError, match=message):
    read({"files": name}, tmp_path)


@pytest.mark.parametrize(
  ("settings", "error", "message"),
  [
    ({}, ConfigError, "exactly one of package, tfds, files, callable"),
    ({"files": "*.jsonl", "formt": "csv"}, UnknownName, "'formt'.*'format'"),
    ({"files": "*.jsonl", "format": "josnl"}, UnknownName, "'josnl'.*'jsonl'"),
    ({"files": "*.dat"}, ConfigError, r"\*\.dat.*format:"),
    ({"files": "*.jsonl", "columns": ["a"]}, ConfigError, "columns belong to"),
    ({"package": "x==1", "members": "*.jsonl"}, ConfigError, "lacks the setting 'sha256'"),
    ({"tfds": "glue/rte"}, ConfigError, "not pinned to a version"),
    ({"callable": "json:lods"}, UnknownName, "'lods'.*'loads'"),
    ({"callable": "no_such_module:f"}, ConfigError, "no module 'no_such_module'"),
  ],
)
def test_a_source_that_is_described_wrongly_is_refused_at_once(settings, error, message, tmp_path):
  with pytest.raises(error, match=message):
    open_source(settings, tmp_path)


def test_no_matching_file_is_a_config_error(tmp_path):
  with pytest.raises(ConfigError, match=r"no file matches 'absent\.jsonl'"):
    read({"files": "absent.jsonl"}, tmp_path)


@pytest.fixture
def made_up_module(monkeypatch):
  module = types.ModuleType("made_up_source")
  module.rows = lambda part: ({"part": part, "n": n} for n in range(2))
  module.wrong = lambda part: [{"n": 1}, "text"]
  monkeypatch.setitem(sys.modules, "made_up_source", module)


def test_a_callable_is_asked_for_each_part(made_up_module, tmp_path):
  source = open_source({"callable": "made_up_source:rows", "parts": ["train", "test"]}, tmp_path)
  assert list(source.records("test")) == [{"part": "test", "n": 0}, {"part": "test", "n": 1}]


def test_a_callable_that_yields_something_else_is_a_record_error(made_up_module, tmp_path):
  with pytest.raises(RecordError, match=r"made_up_source:wrong\('all'\): record 2 is str"):
    read({"callable": "made_up_source:wrong"}, tmp_path)


def test_the_fingerprint_follows_the_content_of_files(tmp_path):
  write_lines(tmp_path / "a.jsonl", ROWS)
  before = open_source({"files": "a.jsonl"}, tmp_path).fingerprint()
  assert open_source({"files": "a.jsonl"}, tmp_path).fingerprint() == before
  write_lines(tmp_path / "a.jsonl", ROWS[:1])
  assert open_source({"files": "a.jsonl"}, tmp_path).fingerprint() != before


@pytest.mark.filterwarnings("ignore")
class TestTFDS:
  @pytest.fixture(autouse=True)
  def mocked(self):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=4):
      yield

  def test_bytes_become_text_and_classes_their_names(self, tmp_path):
    records = read({"tfds": "glue/rte:2.0.0"}, tmp_path, "train")
    assert len(records) == 4
    assert {type(record["sentence1"]) for record in records} == {str}
    assert {record["label"] for record in records} <= {"entailment", "not_entailment"}

  def test_sequences_become_lists(self, tmp_path):
    record = read({"tfds": "squad/v1.1:3.0.0"}, tmp_path, "validation")[0]
    assert isinstance(record["answers"]["text"][0], str)
    assert isinstance(record["answers"]["answer_start"][0], int)

  @pytest.mark.parametrize(
    ("name", "message"),
    [
      ("gluee/rte:2.0.0", "TFDS dataset 'gluee'.*'glue'"),
      ("glue/rtee:2.0.0", "configuration 'rtee'.*'rte'.*TFDS dataset glue"),
      ("glue/rte:9.0.0", r"glue/rte:9\.0\.0.*only: 2\.0\.0"),
    ],
  )
  def test_an_unknown_name_or_version_names_the_nearest(self, name, message, tmp_path):
    with pytest.raises((UnknownName, ConfigError), match=message):
      read({"tfds": name}, tmp_path, "train")


@pytest.mark.filterwarnings("ignore")
def test_a_tfds_dataset_on_disk_is_read_as_tfds_wrote_it(tmp_path):
  import tensorflow_datasets as tfds

  labels = ["billing", "technical"]
  rows = [{"text": f"Ticket {i}: défaut", "label": i % 2, "tags": ["a"] * i} for i in range(7)]
  tfds.dataset_builders.store_as_tfds_dataset(
    name="tickets",
    version="1.0.0",
    features=tfds.features.FeaturesDict(
      {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=labels),
        "tags": tfds.features.Sequence(tfds.features.Text()),
      }
    ),
    split_datasets={"train": list(enumerate(rows[:5])), "test": list(enumerate(rows[5:]))},
    data_dir=tmp_path / "tfds",
  )
  source = open_source({"tfds": "tickets:1.0.0", "data_dir": str(tmp_path / "tfds")}, tmp_path)
  assert set(source.parts) == {"train", "test"}
  for part, wanted in (("train", rows[:5]), ("test", rows[5:]), ("train[:2]", None)):
    found = list(source.records(part))
    if wanted is None:
      assert found == list(source.records("train"))[:2]
      continue
    by_text = {record["text"]: record for record in found}
    assert by_text == {row["text"]: {**row, "label": labels[row["label"]]} for row in wanted}


def write_tfrecords(path, rows):
  """As TensorFlow itself writes Examples."""
  import tensorflow as tf

  kinds = {str: "bytes_list", int: "int64_list", float: "float_list"}
  with tf.io.TFRecordWriter(str(path)) as writer:
    for row in rows:
      example = tf.train.Example()
      for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        feature = example.features.feature[name]
        for item in values:
          spelt = item.encode() if isinstance(item, str) else item
          getattr(feature, kinds[type(item)]).value.append(spelt)
      writer.write(example.SerializeToString())


class TestTFRecords:
  ROWS = ({"text": "Größe", "n": 3, "ids": [1, 2], "score": 0.5, "none": []},) * 3

  @pytest.fixture
  def path(self, tmp_path):
    write_tfrecords(tmp_path / "rows.tfrecord-00000-of-00001", self.ROWS)
    return tmp_path / "rows.tfrecord-00000-of-00001"

  def test_examples_become_records_plain_or_gzipped(self, path, tmp_path):
    (tmp_path / "packed.tfrecord.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("rows.tfrecord-*", "packed.tfrecord.gz"):
      assert read({"files": name}, tmp_path) == list(self.ROWS)

  def test_a_damaged_file_is_named_with_the_record(self, path, tmp_path):
    content = path.read_bytes()
    for name, damaged, number in (
      ("cut", content[:-3], 3),
      ("altered", content[:30] + b"?" + content[31:], 1),
      ("other", b"text, and no records at all", 1),
    ):
      (tmp_path / f"{name}.tfrecord").write_bytes(damaged)
      with pytest.raises(RecordError, match=rf"{name}.tfrecord: record {number}: the file is cut"):
        read({"files": f"{name}.tfrecord"}, tmp_path)
    (tmp_path / "cut.tfrecord.gz").write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(RecordError, match="cut.tfrecord.gz: cannot be read"):
      read({"files": "cut.tfrecord.gz"}, tmp_path)

  def test_a_record_that_is_no_example_or_no_text_is_named(self, path, tmp_path):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "noise.tfrecord")) as writer:
      writer.write(b"\xff\xff\xff")
    with pytest.raises(RecordError, match=r"noise.tfrecord: record 1: not a tf.train.Example"):
      read({"files": "noise.tfrecord"}, tmp_path)
    latin = tf.train.Example()
    latin.features.feature["text"].bytes_list.value.append(b"Gr\xf6\xdfe")
    with tf.io.TFRecordWriter(str(tmp_path / "latin.tfrecord")) as writer:
      writer.write(latin.SerializeToString())
    with pytest.raises(RecordError, match=r"latin.tfrecord: record 1: text: byte 3 is not utf-8"):
      read({"files": "latin.tfrecord"}, tmp_path)
    assert read({"files": "latin.tfrecord", "encoding": "latin-1"}, tmp_path) == [{"text": "Größe"}]
