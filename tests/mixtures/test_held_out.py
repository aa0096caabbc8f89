"""What is for evaluation alone cannot be trained on, and its published records become the fields that are asked for."""

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from flan_jax.data import (
  Mixture,
  dataset_spec,
  held_out_datasets,
  load_records,
  rates,
  training_datasets,
  training_tasks,
)
from flan_jax.data.formats import Format
from flan_jax.errors import ConfigError
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.mixtures.fields import bigbench, exams
from flan_jax.mixtures.held_out import BIGBENCH
from flan_jax.prompting import read_dataset

ROOT = Path(__file__).parents[2]
MIXTURES = ("bigbench_heldout", "exams_heldout", "mmlu_heldout")
NAMES = [name for mixture in MIXTURES for name in held_out_datasets(mixture)]
TASKS = [f"bigbench_{task}" for tasks in BIGBENCH.values() for task in tasks]
# Of the published records, those of which the derive function makes something and that come but once.
COUNTS = {
  **{"analytic_entailment": 70, "entailed_polarity": 148, "epistemic_reasoning": 2000},
  **{"presuppositions_as_nli": 732, "disambiguation_qa": 258, "winowhy": 2861},
  **{"implicatures": 492, "social_iqa": 1931, "strategyqa": 2289, "timedial": 2550},
  **{"understanding_fables": 189, "causal_judgment": 190, "moral_permissibility": 342},
  "simple_ethical_questions": 115,
}
EXAMS = {"mmlu_sample": 2839, "medqa": 1273, "medmcqa": 4162}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_of_them_has_nothing_to_train_on(mixture, tmp_path):
  assert held_out_datasets(mixture) and not training_datasets(mixture)
  with pytest.raises(ConfigError, match="nothing to train on"):
    training_tasks(mixture, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_none_can_be_trained_on_in_a_mixture_of_ones_own(name, tmp_path, monkeypatch):
  splits = dataset_spec(name).splits
  assert "train" not in splits
  counts = SimpleNamespace(kept=dict.fromkeys(splits, 9))
  monkeypatch.setattr(rates, "load_records", lambda *_: SimpleNamespace(counts=counts))
  with pytest.raises(ConfigError, match=f"{name} is trained on and has no train split"):
    training_tasks(Mixture("mine", {name: None}), tmp_path)
  with pytest.raises(ConfigError, match=f"{name} is trained on and has no train split"):
    training_tasks(Mixture("mine", {name: "30%"}), tmp_path, split="test")


def test_nothing_of_them_is_running_text():
  assert not [name for name in NAMES if "text" in dataset_spec(name).data]


def test_big_bench_s_tasks_are_in_the_clusters_that_the_mixture_says():
  assert sorted(TASKS) == sorted(held_out_datasets("bigbench_heldout"))
  for cluster, tasks in BIGBENCH.items():
    assert {dataset_spec(f"bigbench_{task}").cluster for task in tasks} == {cluster}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_what_trains_on_their_clusters_cannot_call_them_held_out(mixture):
  plan = EvaluationPlan(mixture, {"inputs": 64, "targets": 8})
  for trained in ("mini", "mini_short", "flan2021 without nli, coreference, commonsense"):
    plan.check_trained(trained)
  if mixture == "bigbench_heldout":
    with pytest.raises(ConfigError, match="would be judged as held out"):
      plan.check_trained("flan2021")


def test_one_source_holds_all_of_the_tasks():
  sources = [dataset_spec(name).source for name in TASKS]
  assert {(s["package"], s["sha256"], s["archive"]) for s in sources} == {
    ("bigbench==1.0.0", sources[0]["sha256"], "sdist")
  }


def scores(right, *wrong):
  return {**dict.fromkeys(wrong, 0), right: 1}


@pytest.mark.parametrize("word", ["So", "So,", "Therefore", "Therefore,"])
def test_a_conclusion_is_taken_from_what_introduces_it(word):
  record = {"input": f"It rains. {word} it is wet.", "target_scores": scores("entailment", "no")}
  fields = {"premise": "It rains.", "conclusion": "It is wet.", "label": "entailment"}
  assert bigbench.analytic_entailment(record) == fields


def test_the_last_sentence_of_a_story_is_its_question():
  record = {"input": "A fell. 'Oh!' said B.  Did A fall?", "target_scores": scores("Yes", "No")}
  fields = {"story": "A fell. 'Oh!' said B.", "question": "Did A fall?", "label": "yes"}
  assert bigbench.judgement(record) == fields


def test_a_conversation_keeps_its_lines_and_shows_a_gap():
  asked = "Which phrase best fits the <MASK> span? Context: \nA: When? \nB: At <MASK>."
  record = {"input": asked, "target_scores": scores("ten ", "a ", "b")}
  fields = {"dialogue": "A: When?\nB: At ____.", "options": ["a", "b", "ten"], "answer": "ten"}
  assert bigbench.timedial(record) == fields
  assert bigbench.timedial({**record, "input": f"{asked} <MASK>"}) is None


def test_a_reply_and_a_reason_are_told_from_what_stands_around_them():
  said = {
    "input": "Speaker 1: 'Isn't it?' Speaker 2: 'It's 'fine'.'",
    "target_scores": scores("yes"),
  }
  assert bigbench.implicatures(said)["reply"] == "It's 'fine'."
  why = "A hit B because he was mad. The 'he' refers to A because the mad because of it."
  fields = bigbench.winowhy({"input": why, "target_scores": scores("correct", "incorrect")})
  assert (fields["pronoun"], fields["noun"]) == ("he", "A")
  assert fields["reason"] == "the mad because of it."


def test_records_without_one_right_answer_are_dropped():
  asked = {"input": "A met B. How would A feel?"}
  assert bigbench.social_iqa({**asked, "target_scores": scores("glad", "sad", "mad")})
  assert bigbench.social_iqa({**asked, "target_scores": scores("glad", "sad")}) is None
  assert bigbench.social_iqa({**asked, "target_scores": scores("glad", "Sad", "sad.")}) is None
  assert bigbench.yes_or_no({**asked, "target_scores": {"yes": 1, "no": 1}}) is None
  assert bigbench.entailed_polarity({**asked, "target_scores": scores("yes", "no")}) is None


QUESTION = {"question": "Legs of a spider?", "options": ["4", "6", "8", "all"], "answer": "8"}


def test_every_form_of_an_examination_gives_the_same_record():
  asked, options = {"question": "Legs of a  spider?"}, QUESTION["options"]
  columns = dict(zip("ABCD", options, strict=True))
  assert exams.multiple_choice({**asked, "choices": options, "answer": 2}) == QUESTION
  assert exams.multiple_choice({**asked, "choices": options, "answer": "C"}) == QUESTION
  assert exams.multiple_choice({**asked, **columns, "answer": "C"}) == QUESTION
  text = {"options": 'A. 4\nB. 6\nC. 8\nD. all\n"', "answer": "C. 8"}
  assert exams.lettered({**asked, **text}) == QUESTION


def test_an_option_of_several_lines_becomes_one():
  code = {
    "question": "Which?",
    "options": "A. x = 1\n y = 2\nB. x = 2",
    "answer": "A. x = 1\n y = 2",
  }
  assert exams.lettered(code)["options"] == ["x = 1; y = 2", "x = 2"]


def test_an_examination_s_question_without_one_right_answer_is_dropped():
  assert exams.lettered({"question": "?", "options": "A. 4\nB. 4", "answer": "A. 4"}) is None
  assert exams.lettered({"question": "?", "options": "A. 4\nB. 5", "answer": "C. 6"}) is None
  assert exams.multiple_choice({"question": "?", "choices": ["4", "5"], "answer": 2}) is None
  assert exams.multiple_choice({"question": "?", "choices": ["4", "5"], "answer": -1}) is None


def test_mmlu_is_read_from_a_parquet_file_as_it_is_published(tmp_path):
  spec = dataset_spec("mmlu")
  table = pyarrow.Table.from_pylist([dict(spec.record)])
  parquet.write_table(table, tmp_path / "test.parquet")
  with (tmp_path / "test.parquet").open("rb") as stream:
    (raw,) = Format("parquet").read(stream, "test.parquet")
  assert spec.derive_record(raw) == spec.derive_record(spec.record)


def test_the_page_s_own_files_are_read(tmp_path):
  (text,) = re.findall(
    r"^```yaml\n(.*?)^```", (ROOT / "docs/evaluation_sets.md").read_text(), re.M | re.S
  )
  given = yaml.safe_load(text)
  given["templates"]["like"] = str(ROOT / "templates/exams/mmlu.yaml")
  (tmp_path / "mmlu_files.yaml").write_text(yaml.safe_dump(given))
  for split in ("val", "test"):
    folder = tmp_path / "data" / split
    folder.mkdir(parents=True)
    for subject in ("anatomy", "law"):
      line = f'"Which of these, in {subject},\nis {split}?",one,two,"three, or none",four,C\n'
      (folder / f"{subject}_{split}.csv").write_text(line)
  spec = read_dataset(tmp_path / "mmlu_files.yaml")
  splits = load_records(spec, tmp_path / "home")
  assert splits.counts.kept == {"validation": 2, "test": 2}
  assert {record["answer"] for record in splits["test"]} == {"three, or none"}
  assert [template.name for template in spec.templates] == [
    template.name for template in dataset_spec("mmlu").templates
  ]


@pytest.mark.network
def test_the_published_exams_are_what_they_were(tmp_path):
  for name, count in EXAMS.items():
    assert load_records(dataset_spec(name), tmp_path).counts.kept == {"test": count}


@pytest.mark.network
@pytest.mark.slow  # 358 MB are fetched, and gone through for each task.
def test_the_published_tasks_are_what_they_were(tmp_path):
  for task, count in COUNTS.items():
    spec = dataset_spec(f"bigbench_{task}")
    splits = load_records(spec, tmp_path)
    assert splits.counts.kept == {"test": count}, task
    # BIG-bench asks that its examples be spread no further: the record of the file is none of them.
    assert spec.derive_record(spec.record) not in splits["test"]
    if spec.answer.labels:
      labels = Counter(record["label"] for record in splits["test"])
      assert labels.keys() == set(spec.answer.labels) and min(labels.values()) > 0.17 * count
