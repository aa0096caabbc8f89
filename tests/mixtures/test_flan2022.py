"""What Flan 2022 adds: rows in the form in which they are published become fields, and caps are the published ones.

The rows are made up, and read through copies of a file at a URL, as those of the dataset files are.
"""

import gzip
import json
import re
from pathlib import Path

import pytest

from flan_jax.data import dataset_spec, rates, training_tasks
from flan_jax.data.mixtures import get_mixture
from flan_jax.data.sources import open_source
from flan_jax.errors import SourceError
from flan_jax.mixtures.fields import chain_of_thought, dialogue, instructions
from flan_jax.prompting import read_dataset

FOLDER = Path(__file__).parents[2] / "templates"
SPECS = {
  path.stem.removeprefix("cot_"): read_dataset(path) for path in sorted(FOLDER.glob("*/cot_*.yaml"))
}
OPTIONS = r"\nOptions:\n- yes\n- no"
PUBLISHED = {
  "gsm8k": (
    "Mia has 3 bags of 12\N{LINE SEPARATOR} marbles. How many marbles is that?\t36\tThat is 3 * 12 = 36 marbles.",
    {"question": "Mia has 3 bags of 12 marbles. How many marbles is that?", "answer": "36"},
  ),
  "strategyqa": (
    "Could a giraffe  fit into a phone booth??\tno\tGiraffes are five metres high. Phone booths are lower .",
    {
      "question": "Could a giraffe fit into a phone booth?",
      "reply": "No",
      "rationale": "Giraffes are five metres high. Phone booths are lower.",
    },
  ),
  "creak": (
    rf'Claim: "Owls hunt at night."\nIs the claim above correct?{OPTIONS}'
    "\tyes\tOwls see well in the dark.",
    {"claim": "Owls hunt at night.", "verdict": "true", "reply": "yes"},
  ),
  "qasc": (
    r"What melts in the sun?\nOptions:\n- (A) snow\n- (B) sand"
    "\t(A)\tHeat melts snow. The sun gives heat.",
    {"question": "What melts in the sun?", "lettered": "(A) snow\n(B) sand", "answer": "snow"},
  ),
  "ecqa": (
    r"Where do you put a letter\nOptions:\n- letterbox\n- oven\n- letterbox\n- tree"
    "\tletterbox\tLetters are put into a letterbox.",
    {
      "question": "Where do you put a letter?",
      "listed": "- letterbox\n- oven\n- tree",
      "letter": "A",
    },
  ),
  "sensemaking": (
    r'Which is nonsensical?\nOptions:\n- Sentence A: "she drank tea"\n- Sentence B: "She drank a chair."\n'
    "\tSentence B\tA chair is no drink.",
    {"first": "She drank tea.", "letter": "B", "nonsense": "She drank a chair."},
  ),
  "aqua": (
    r"What is half of 3âˆš4 ?\nOptions:\n(A) A) 3\n(B) B) 6\n(C) None of these"
    "\t(A)\t"
    r"3 * 2 = 6\n\ half of 6 = 3",
    {
      "question": "What is half of 3√4?",
      "lettered": "(A) 3\n(B) 6\n(C) None of these",
      "rationale": "3 * 2 = 6\nhalf of 6 = 3",
      "pattern": "What is half of #√#?",
    },
  ),
  "esnli": (
    r'Premise: "Two dogs run along the beach."\nHypothesis: "It rains."\nIs it entailed?'
    r"\nOptions:\n- yes\n- it is not possible to tell\n- no"
    "\tit is not possible to tell\tDogs run in any weather.",
    {
      "question": 'Premise: "Two dogs run along the beach."\nHypothesis: "It rains."\nIs it entailed?',
      "scene": "Two dogs run along the beach.",
      "answer": "it is not possible to tell",
    },
  ),
  "qed": (
    r"Passage: The mill was built in 1790 by Ann Low.\n\nQuestion: who built the mill"
    "\tAnn Low\tThe sentence that counts names its builder.",
    {
      "question": "Passage: The mill was built in 1790 by Ann Low.\nQuestion: who built the mill",
      "passage": "Passage: The mill was built in 1790 by Ann Low.",
      "answer": "Ann Low",
    },
  ),
}
each_set = pytest.mark.parametrize("name", PUBLISHED)


def published(question: str, answer: str, rationale: str) -> dict[str, str]:
  return {"question": question, "answer": answer, "rationale": rationale}


def test_there_are_nine_sets_and_all_are_of_one_commit():
  assert sorted(SPECS) == sorted(PUBLISHED)
  places = {spec.source["files"]["train"].rpartition("/")[0] for spec in SPECS.values()}
  assert len(places) == 1 and re.search(r"/[0-9a-f]{40}/", places.pop())


@each_set
def test_a_published_row_becomes_fields_that_every_template_can_use(name, tmp_path):
  spec, (row, wanted) = SPECS[name], PUBLISHED[name]
  url = spec.source["files"]["train"]
  table = tmp_path / url.rpartition("/")[2]
  table.write_text(f"{row}\n", encoding="utf-8")
  settings = {**spec.source, "files": {"train": table.as_uri()}}
  (raw,) = open_source(settings, cache_dir=tmp_path / "cache").records("train")
  record = spec.derive_record(raw)
  assert record.items() >= wanted.items()
  assert not any("\\n" in value for value in record.values())
  for template in spec.templates:
    for rendering in template.renderings(record):
      assert all(turn.input and turn.target for turn in rendering.turns)


@each_set
def test_whoever_is_asked_for_an_answer_says_why(name):
  spec = SPECS[name]
  record = spec.derive_record(spec.record)
  for template in spec.templates:
    (rendering,) = template.renderings(record)
    said = "\n".join(turn.target for turn in rendering.turns)
    assert template.turned_around or record["rationale"] in said


@each_set
def test_a_row_without_a_rationale_is_dropped(name):
  spec = SPECS[name]
  assert spec.derive_record({**spec.record, "rationale": " "}) is None


def test_a_problem_with_two_equal_options_is_dropped():
  row = published(r"Half of 6?\nOptions:\n(A) 3\n(B) 2\n(C) 3", "(A)", "6 / 2 = 3")
  assert chain_of_thought.worked_choice(row) is None


def test_problems_that_differ_in_their_numbers_alone_are_of_one_group():
  one, other = (
    chain_of_thought.word_problem(published(f"What are {n} eggs at $0.{n}?", "9", "It is so."))
    for n in (12, 15)
  )
  assert one["question"] != other["question"]
  assert one["pattern"] == other["pattern"]


SAID = ["I know mills.", "Who built it?", "Ann Low did.", "When?", "In 1790.", "Why?", "To grind."]


def test_a_conversation_begins_after_the_greeting_and_the_question_has_something_before_it():
  record = {"title": "A mill", "passage": "Ann Low did.", "utterances": SAID}
  fields = dialogue.wiki_dialog(record)
  assert fields["conversation"].startswith("- Who built it?\n- Ann Low did.\n- When?")
  assert fields["question"] in ("When?", "Why?")
  assert fields["history"].startswith("A: Who built it?\nB: Ann Low did.")
  assert fields["question"] not in fields["dialogue"]
  assert SAID[SAID.index(fields["question"]) + 1] == fields["answer"]
  assert SAID[SAID.index(fields["question"]) - 1] == fields["last_answer"]


@pytest.mark.filterwarnings("ignore")
def test_conversations_are_those_that_tfds_reads_from_the_same_files(tmp_path):
  import tensorflow_datasets as tfds

  spec = read_dataset(FOLDER / "dialogue" / "wiki_dialog.yaml")
  builder = tfds.builder("wiki_dialog/OQ:1.0.0", data_dir=tmp_path)
  assert spec.record.keys() == builder.info.features.keys()
  builder.info.features.encode_example(spec.record)
  for url in spec.source["files"]["train"]:
    assert url.startswith(builder.builder_config.base_download_url)
  shards = {url.rpartition("/")[2]: url for url in spec.source["files"]["train"]}
  lines = gzip.compress(json.dumps(dict(spec.record)).encode())
  for name in shards:
    (tmp_path / name).write_bytes(lines)
  settings = {"files": [(tmp_path / name).as_uri() for name in shards]}
  read = list(open_source(settings, cache_dir=tmp_path / "cache").records("all"))
  assert read == [spec.record, spec.record]


def test_a_conversation_of_one_exchange_is_dropped():
  record = {"title": "A mill", "passage": "Ann Low did.", "utterances": SAID[:4]}
  assert dialogue.wiki_dialog(record) is None


def test_a_question_that_hangs_on_nothing_is_dropped():
  row = {"question": "why", "question_rewrite": "Why was it built?", "answer": "To grind."}
  assert dialogue.qrecc({**row, "context": SAID[1:3]}) is None
  fields = dialogue.qrecc({**row, "context": SAID[1:5]})
  assert fields["question"] == "why?"
  assert fields["opening"] == "Who built it?"
  assert fields["dialogue"] == "- Who built it?\n- Ann Low did.\n- When?\n- In 1790."


def test_of_natural_instructions_what_is_made_of_mmlu_is_left_out():
  row = {"definition": "Add up. ", "input": "1, 2", "output": "3", "task_name": "task9_sums"}
  assert instructions.natural_instructions(row) == {**row, "definition": "Add up."}
  mmlu = {**row, "task_name": "task685_mmmlu_answer_generation_clinical_knowledge"}
  assert instructions.natural_instructions(mmlu) is None


def test_caps_are_those_of_the_collection():
  assert {name: get_mixture(name).max_examples for name in ("cot", "dialogue")} == {
    "cot": 100_000,
    "dialogue": 200_000,
  }
  assert set(get_mixture("cot").datasets) == {f"cot_{name}" for name in SPECS}
  assert get_mixture("niv2").rate(5_000_000) == 5_000_000
  spec = read_dataset(FOLDER / "instructions" / "natural_instructions.yaml")
  assert spec.at_most == {"task_name": 5000}


PARTS = ("flan2021_30k", "t0_sf", "niv2", "cot", "dialogue")
# Chung et al. 2022, table 23 (the released models, then sections 3 and 4), and the collection as it was published.
PROPORTIONS = {
  "flan2022": (0.461, 0.279, 0.242, 0.018, 0),
  "flan2022_scaling": (0.52, 0.15, 0.30, 0.03, 0),
  "flan2022_collection": (0.40, 0.32, 0.20, 0.05, 0.03),
}


@pytest.fixture
def shares(monkeypatch, tmp_path):
  """A mixture's shares, part by part, where each dataset has 50,000 training examples and none of `gone` can be had."""

  def shares(name, gone=()):
    def size(dataset, split, data_dir):
      if dataset in gone:
        raise SourceError(f"{dataset} is gone")
      return 50_000

    monkeypatch.setattr(rates, "_size", size)
    found = {task.name: task for task in training_tasks(name, tmp_path)}
    parts = {
      part: sum(found[n].share for n in get_mixture(part).datasets if n in found) for part in PARTS
    }
    return found, parts

  return shares


@pytest.mark.network
@pytest.mark.parametrize("name", PROPORTIONS)
def test_the_parts_have_the_published_proportions(name, shares):
  _, parts = shares(name)
  assert list(parts.values()) == pytest.approx(PROPORTIONS[name])


@pytest.mark.network
def test_the_caps_are_those_of_each_part(shares):
  found, _ = shares("flan2022_collection")
  assert {found[name].cap for name in get_mixture("flan2021").datasets} == {30_000}
  of_t0 = [found[name] for name in get_mixture("t0_sf").datasets]
  assert {task.examples for task in of_t0} == {20_000}
  templates = [len(dataset_spec(task.name).training_templates()) for task in of_t0]
  assert sum(templates) == 193
  for task, count in zip(of_t0, templates, strict=True):
    assert task.share == pytest.approx(0.32 * count / 193)
  assert found["cot_esnli"].examples == found["wiki_dialog"].examples == 50_000


@pytest.mark.network
def test_what_is_gone_or_held_out_leaves_its_share_to_the_others_in_proportion(shares):
  _, parts = shares("flan2022_collection", gone=get_mixture("dialogue").datasets)
  assert parts["dialogue"] == 0
  assert [parts[p] for p in PARTS[:4]] == pytest.approx([x / 0.97 for x in (0.4, 0.32, 0.2, 0.05)])
  found, parts = shares("flan2022 without entailment, instructions")
  assert not found.keys() & {"cot_esnli", "snli", "glue_mrpc", "natural_instructions"}
  assert {"cot_gsm8k", "p3_qasc", "squad_v1"} <= found.keys()
  found, _ = shares("flan2022 without commonsense")
  assert not found.keys() & {"cot_ecqa", "p3_cos_e_v1.11", "p3_social_i_qa", "cosmos_qa", "copa"}
  assert {"p3_quoref", "squad_v1", "cot_esnli"} <= found.keys()
  assert parts["niv2"] == 0 and parts["cot"] == pytest.approx(0.018 / 0.758)
