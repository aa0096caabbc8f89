"""The prepared store: the same whoever makes it, in one go or in several, and never half-written."""

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import types
from collections import Counter

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.data import library
from flan_jax.data import mixtures as registry
from flan_jax.data.batches import Batches
from flan_jax.data.draws import DrawStream
from flan_jax.data.library import dataset_spec, register_templates
from flan_jax.data.mixtures import Mixture
from flan_jax.data.prepare import prepare
from flan_jax.data.records import load_records
from flan_jax.data.rendering import DatasetDraws
from flan_jax.data.store import Store, StoreConfig
from flan_jax.data.workers import can_fork
from flan_jax.errors import ConfigError, SourceError, StorageError
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

VOCABULARY = ByteVocabulary(extra_ids=4)
LENGTHS = {"inputs": 96, "targets": 32}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
  """What a test registers is forgotten after it."""
  library.import_library()
  monkeypatch.setattr(registry, "_mixtures", dict(registry._mixtures))
  monkeypatch.setattr(library, "_template_folders", [])


@pytest.fixture
def mixture(make_dataset, tmp_path):
  """Datasets of 12 and 40 records, the first with two records a group."""
  rows = [{"question": f"is {i} odd? {'why ' * (i % 5)}", "label": "ny"[i % 2]} for i in range(12)]
  for i, row in enumerate(rows):
    row["passage"] = f"passage {i // 2}"
  fields = {"question": "text", "label": "text", "passage": "text"}
  record = {"question": "is 3 odd?", "label": "y", "passage": "p"}
  everything = {"train": 1.0}
  make_dataset("small", rows, splits=everything, fields=fields, record=record, group="passage")
  make_dataset("large", 40, "other", splits=everything)
  register_templates(tmp_path / "templates")
  return Mixture("both", {"small": None, "large": None})


@pytest.fixture
def config(mixture):
  return StoreConfig(mixture, VOCABULARY, PlainFormat(), "decoder", LENGTHS, seed=5, window=64)


@pytest.fixture
def make(config, tmp_path):
  def make(rows=20, data_dir="data", workers=1, strict=False, **changes):
    changed = dataclasses.replace(config, **changes)
    return prepare(changed, rows, tmp_path / data_dir, workers, progress=False, strict=strict)

  return make


def content(store):
  """Everything in the files of a store, by name."""
  files = [path for path in store.directory.rglob("*") if path.is_file()]
  return {str(path.relative_to(store.directory)): path.read_bytes() for path in files}


def drawn(store):
  """(dataset, example, epoch) of every stored example."""
  rows = [store.row(r) for r in range(store.rows)]
  return [(store.tasks[e.task].name, e.example, e.epoch) for row in rows for e in row]


def text(store, example):
  return store.vocabulary.decode(example.targets.tolist())


def test_a_store_has_the_rows_that_were_asked_for_and_tells_what_is_in_it(make):
  store = make(30)
  assert store.rows >= 30
  assert [(task.name, task.cluster, task.licence) for task in store.tasks] == [
    ("small", "trivia", "CC0-1.0"),
    ("large", "other", "CC0-1.0"),
  ]
  counts = store.counts()
  seen = Counter(name for name, _, _ in drawn(store))
  assert {name: count.examples for name, count in counts.items()} == seen
  assert seen["large"] / seen["small"] == pytest.approx(40 / 12, rel=0.1)
  widths = [sum(len(e.targets) - 1 for e in store.row(r)) for r in range(store.rows)]
  assert sum(widths) == sum(count.tokens for count in counts.values())
  assert max(widths) <= 128


def test_every_example_is_drawn_once_an_epoch(make):
  store = make(60)
  for name, size in (("small", 12), ("large", 40)):
    epochs = Counter(epoch for dataset, _, epoch in drawn(store) if dataset == name)
    whole = [epoch for epoch in epochs if epoch < max(epochs)]
    assert whole
    for epoch in whole:
      examples = [e for dataset, e, at in drawn(store) if (dataset, at) == (name, epoch)]
      assert sorted(examples) == list(range(size))


def test_only_templates_for_training_are_drawn_and_later_epochs_see_others(make):
  store = make(60)
  texts = {}
  for r in range(store.rows):
    for e in store.row(r):
      texts.setdefault((e.task, e.example), set()).add(text(store, e).split("\n")[0])
  assert not any("Tell me" in shown for every in texts.values() for shown in every)
  assert max(map(len, texts.values())) > 1


def test_renderings_repeat_after_so_many_epochs(mixture, tmp_path):
  spec = dataset_spec("large")
  draws = DatasetDraws(spec, load_records(spec, tmp_path / "data")["train"], 40, 5, 3, 0)
  for example in range(10):
    assert draws.render(example, 1) == draws.render(example, 4)
  assert any(draws.render(e, 0) != draws.render(e, 1) for e in range(10))


def test_exemplars_come_from_other_groups_and_are_answered_by_the_same_template(mixture, tmp_path):
  spec = dataset_spec("small")
  records = load_records(spec, tmp_path / "data")["train"]
  draws = DatasetDraws(spec, records, 12, seed=5, renderings=4, shots=3)
  passages = [records[i]["passage"] for i in range(12)]
  questions = {records[i]["question"]: i for i in range(12)}
  for example in range(12):
    shown = draws.render(example, 0)
    assert shown.shots == (1, 1, 1)
    asked = [
      next(i for question, i in questions.items() if f"{question}\n" in f"{turn.input}\n")
      for turn in shown.turns
    ]
    assert asked[-1] == example
    assert len(set(asked)) == 4
    assert passages[example] not in [passages[i] for i in asked[:-1]]
    assert len({turn.input.startswith("Answer:") for turn in shown.turns}) == 1
    assert [turn.loss for turn in shown.turns] == [False, False, False, True]


def test_more_rows_later_are_appended(make):
  grown, at_once = make(10, "a"), make(60, "b")
  before = content(grown)
  grown = make(60, "a")
  assert content(grown) == content(at_once)
  kept = [name for name in before if name.startswith("windows")]
  assert all(content(grown)[name] == before[name] for name in kept)
  assert make(5, "a").rows == grown.rows


def test_what_decides_the_rows_decides_where_the_store_is(make, make_dataset, tmp_path):
  first = make(1)
  changes = [
    {"seed": 6},
    {"renderings": 2},
    {"few_shot": 1},
    {"window": 65},
    {"layout": "encoder_decoder"},
    {"lengths": {"inputs": 97, "targets": 32}},
    {"format": PlainFormat(" ")},
    {"vocabulary": ByteVocabulary()},
    {"loss_on": "everything"},
    {"mixture": Mixture("both", {"small": None, "large": 2.0})},
  ]
  directories = {make(1, **change).directory for change in changes} | {first.directory}
  assert len(directories) == len(changes) + 1
  assert make(1).directory == first.directory
  rows = [{"question": f"is large {i} even?", "label": "ny"[i % 2]} for i in range(40)]
  make_dataset("large", rows, "other", splits={"train": 1.0})
  assert make(1).directory not in directories


def test_a_store_that_was_carried_elsewhere_is_read_without_its_sources(make, tmp_path):
  store = make(20)
  carried = shutil.copytree(store.directory, tmp_path / "carried")
  batches = list(Batches(store, 5, stop_row=20))
  for folder in ("data", "templates"):
    shutil.rmtree(tmp_path / folder)
  again = Store.open(carried)
  assert again.vocabulary.fingerprint == VOCABULARY.fingerprint
  assert again.format == PlainFormat()
  assert again.encoder().capacities == (128,)
  for ours, theirs in zip(Batches(again, 5, stop_row=20), batches, strict=True):
    for name in theirs:
      np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_dataset_is_used_up_to_its_limit(make, mixture):
  limited = dataclasses.replace(mixture, max_examples=7)
  examples = {(name, e) for name, e, _ in drawn(make(40, mixture=limited))}
  assert {name: sum(n == name for n, _ in examples) for name in ("small", "large")} == {
    "small": 7,
    "large": 7,
  }


def test_nothing_that_fits_is_one_clear_message(make):
  with pytest.raises(ConfigError, match=r"not one of 64 draws of 'both'.*'too_long': "):
    make(1, lengths={"inputs": 3, "targets": 2})
  for wrong in ({"renderings": 0}, {"few_shot": -1}, {"window": 0}):
    with pytest.raises(ConfigError, match="must be at least"):
      make(1, **wrong)


@pytest.mark.parametrize("damage", ["short", "empty", "altered"])
def test_a_torn_window_is_named_and_made_again_once_it_is_deleted(make, damage):
  store = make(40)
  whole = content(store)
  path = sorted((store.directory / "windows").iterdir())[1]
  torn = path.read_bytes()
  if damage == "altered":
    torn = torn[:-3] + bytes([torn[-3] ^ 1]) + torn[-2:]
  path.write_bytes({"short": torn[:-9], "empty": b"", "altered": torn}[damage])
  with pytest.raises(StorageError, match=f"{path.name} is torn.*delete it"):
    list(Batches(Store.open(store.directory), 1))
  path.unlink()
  with pytest.raises(StorageError, match="missing"):
    list(Batches(Store.open(store.directory), 1))
  assert content(make(1)) == whole


def test_a_directory_that_is_no_store_is_said_to_be_none(make, tmp_path):
  with pytest.raises(StorageError, match="flan-jax prepare"):
    Store.open(tmp_path)
  store = make(1)
  (store.directory / "store.json").write_text('{"fingerprint": ')
  with pytest.raises(StorageError, match="torn"):
    Store.open(store.directory)
  (store.directory / "store.json").write_text("{}")
  with pytest.raises(StorageError, match="describes no store .it lacks fingerprint"):
    Store.open(store.directory)


@pytest.fixture
def bucket(make):
  """A store in a file system that is not a disk: (its local original, its URL)."""
  store = make(30)
  files = fsspec.filesystem("memory")
  files.put(str(store.directory), "/bucket/store", recursive=True)
  yield store, "memory://bucket/store"
  files.rm("/bucket", recursive=True)


def test_a_remote_store_is_read_through_copies_of_the_windows_that_are_asked_for(bucket, tmp_path):
  original, url = bucket
  store = Store.open(url, tmp_path / "cache")
  assert not (store.directory / "windows").exists()
  np.testing.assert_equal(store.row(0)[0].targets, original.row(0)[0].targets)
  assert [path.name for path in (store.directory / "windows").iterdir()] == ["000000.safetensors"]
  assert drawn(store) == drawn(original)
  assert store.vocabulary.fingerprint == original.vocabulary.fingerprint
  fsspec.filesystem("memory").rm("/bucket/store/windows", recursive=True)
  assert drawn(Store.open(url, tmp_path / "cache")) == drawn(original)


def test_a_remote_store_that_is_not_there_is_named(tmp_path):
  with pytest.raises(StorageError, match="there is no memory://bucket/nothing/store.json"):
    Store.open("memory://bucket/nothing", tmp_path)
  with pytest.raises(ConfigError, match="bucket://nothing cannot be read"):
    Store.open("bucket://nothing", tmp_path)


def test_a_row_beyond_the_end_is_refused(make):
  store = make(1)
  with pytest.raises(StorageError, match="prepare more rows"):
    store.row(store.rows)


def test_a_full_disk_leaves_nothing_half_written(make):
  small = make(3)
  windows = content(small)
  # No file may grow beyond 2 kB: as on a full disk, the write of the next window fails part way.
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
  try:
    with pytest.raises(StorageError, match="cannot write"):
      make(400)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  assert content(small) == windows
  assert make(400).rows >= 400


def test_jax_in_the_process_forbids_workers_and_says_why(make):
  assert not can_fork()
  with pytest.raises(ConfigError, match="workers=1"):
    make(1, workers=2)


# Workers are forked from processes that never saw JAX, so these run in one of their own.


def run_alone(code, tmp_path, **kwargs):
  preamble = f"""
    import sys, os
    from pathlib import Path
    from flan_jax.data.library import register_templates
    from flan_jax.data.mixtures import Mixture
    from flan_jax.data.prepare import prepare
    from flan_jax.data.store import StoreConfig
    from flan_jax.vocabularies import ByteVocabulary, PlainFormat
    here = Path({str(tmp_path)!r})
    register_templates(here / "templates")
    mixture = Mixture("both", {{"small": None, "large": None}})
    config = StoreConfig(
      mixture, ByteVocabulary(extra_ids=4), PlainFormat(), "decoder", {LENGTHS!r}, seed=5, window=64)
  """
  script = textwrap.dedent(preamble) + textwrap.dedent(code)
  return subprocess.run(
    [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, **kwargs
  )


def test_three_workers_make_the_bytes_that_one_makes(make, tmp_path):
  done = run_alone(
    """
    store = prepare(config, 60, here / "forked", workers=3)
    assert not {"jax", "tensorflow", "seqio"} & set(sys.modules)
    print(store.directory)
    """,
    tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert "row/s" in done.stderr
  assert content(Store.open(done.stdout.strip())) == content(make(60))


def test_a_worker_that_dies_is_reported_and_what_is_finished_is_kept(make, tmp_path):
  deadly = """
    import flan_jax.data.prepare as preparing
    write = preparing.write_window
    def die_at_three(path, *rest):
      if path.name.startswith("000003"):
        os.kill(os.getpid(), 9)
      write(path, *rest)
    preparing.write_window = die_at_three
    prepare(config, 200, here / "forked", workers=2, progress=False)
  """
  done = run_alone(deadly, tmp_path)
  assert done.returncode == 1
  assert "killed by SIGKILL" in done.stderr and "run the same command again" in done.stderr
  (windows,) = (tmp_path / "forked").glob("stores/*/windows")
  assert len(list(windows.iterdir())) >= 2
  again = run_alone('prepare(config, 200, here / "forked", 2, False)', tmp_path)
  assert again.returncode == 0, again.stderr
  (directory,) = (tmp_path / "forked").glob("stores/both-*")
  assert content(Store.open(directory)) == content(make(200))


def test_workers_end_when_their_parent_is_killed(mixture, tmp_path):
  killed = """
    import flan_jax.data.prepare as preparing, time
    def slowly(*rest):
      (here / f"worker-{os.getpid()}").touch()
      while len(list(here.glob("worker-*"))) < 2:
        time.sleep(0.01)
      os.kill(os.getppid(), 9)
      time.sleep(0.2)
    preparing.write_window = slowly
    prepare(config, 200, here / "forked", workers=2, progress=False)
  """
  # The output that `run_alone` reads ends only once the workers, who hold it open, are gone, too.
  assert run_alone(killed, tmp_path, timeout=30).returncode == -signal.SIGKILL
  assert len(list(tmp_path.glob("worker-*"))) == 2


@settings(max_examples=40, deadline=None)
@given(
  sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
  start=st.integers(0, 400),
  count=st.integers(0, 200),
  seed=st.integers(0, 9),
)
def test_any_stretch_of_the_stream_of_draws_can_be_computed_alone(sizes, start, count, seed):
  names = [str(i) for i in range(len(sizes))]
  whole = DrawStream(names, sizes, sizes, seed).draws(0, 600)
  part = DrawStream(names, sizes, sizes, seed).draws(start, count)
  for name in ("task", "example", "epoch"):
    expected = getattr(whole, name)[start : start + count]
    assert getattr(part, name).tolist() == expected.tolist()


def test_every_stretch_of_the_stream_has_nearly_the_shares():
  shares = np.array([0.5, 0.3, 0.15, 0.05])
  tasks = DrawStream("abcd", shares, [100] * 4, 1).draws(0, 20_000).task
  for start in range(0, 20_000, 777):
    for length in (100, 1000):
      counts = np.bincount(tasks[start : start + length], minlength=4)
      assert (abs(counts - shares * len(tasks[start : start + length])) <= 4).all()


def test_a_description_is_json_that_a_person_can_read(make):
  about = json.loads((make(1).directory / "store.json").read_text())
  assert about["settings"]["layout"] == "decoder"
  assert about["tasks"][1]["templates"] == ["ask", "answer_with"]


@pytest.fixture
def not_today(mixture, make_dataset, monkeypatch):
  """A third dataset, whose source counts how often it is asked and has nothing to give until it is told to."""
  source = types.ModuleType("not_today")
  source.asked, source.rows = 0, []

  def rows(part):
    source.asked += 1
    if not source.rows:
      raise SourceError("the bucket is closed")
    return source.rows

  source.read = rows
  monkeypatch.setitem(sys.modules, "not_today", source)
  make_dataset("absent", source={"callable": "not_today:read"})
  return source


def test_a_warm_start_does_not_ask_again_for_what_its_store_was_made_without(make, not_today):
  three = Mixture("three", {"small": None, "large": None, "absent": None})
  store = make(20, mixture=three)
  assert store.missing == {"absent": "the bucket is closed"} and not_today.asked == 1
  again = make(20, mixture=three)
  assert (again.directory, again.missing) == (store.directory, store.missing)
  assert not_today.asked == 1
  with pytest.raises(SourceError, match="the bucket is closed"):
    make(20, mixture=three, strict=True)
  assert not_today.asked == 2
  # What has to be made is made with all that can be had.
  make(store.rows + 1, mixture=three)
  make(1, mixture=three, seed=6)
  assert not_today.asked == 4
  not_today.rows = [{"question": f"is {i} odd?", "label": "ny"[i % 2]} for i in range(20)]
  assert make(20, mixture=three).directory == store.directory and not_today.asked == 4
  assert not make(20, mixture=three, strict=True).missing
  assert make(20, mixture=three).directory != store.directory and not_today.asked == 5


def test_nor_does_that_of_the_validation_split(make, not_today, make_dataset):
  make_dataset("large", 40, "other", splits={"train": 0.5, "validation": 0.5})
  make_dataset(
    "absent", source={"callable": "not_today:read"}, splits={"train": 0.5, "validation": 0.5}
  )
  three = Mixture("three", {"small": None, "large": None, "absent": None})
  stores = [make(3, mixture=three, split="validation") for _ in range(3)]
  assert {store.directory for store in stores} == {stores[0].directory}
  assert list(stores[-1].missing) == ["absent"] and not_today.asked == 1


def test_what_is_held_out_is_not_asked_for_to_train(make, not_today):
  three = Mixture("three", {"small": None, "large": None, "absent": None})
  assert {task.name for task in make(3, mixture=three).tasks} == {"small", "large"}
  not_today.asked = 0
  store = make(3, mixture=dataclasses.replace(three, hold_out=("trivia",)))
  assert [task.name for task in store.tasks] == ["large"] and not not_today.asked
