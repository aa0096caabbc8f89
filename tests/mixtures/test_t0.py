"""T0's datasets and mixtures against what its authors published: lists, sizes, rates, prompts."""

import io
from pathlib import Path

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from flan_jax.cli.main import main
from flan_jax.data import (
  Mixture,
  dataset_spec,
  get_mixture,
  held_out_datasets,
  rates,
  training_datasets,
  training_tasks,
)
from flan_jax.data.formats import Format
from flan_jax.data.library import dataset_files
from flan_jax.errors import ConfigError
from flan_jax.mixtures.fields import alternatives, question_classification
from flan_jax.prompting import DoesNotApply, Draw
from flan_jax.prompting.promptsource import template_name

HERE = Path(__file__).parent
FILES = {name: path for name, path in dataset_files().items() if name.startswith("p3_")}
TABLE = yaml.safe_load((HERE / "t0_datasets.yaml").read_text())
SIZES = {f"p3_{name}": size for part in TABLE.values() for name, size in part.items()}
each_dataset = pytest.mark.parametrize("name", sorted(FILES))
from_package = pytest.mark.network  # promptsource's templates lie in its package

# Templates whose target is none of their answer choices: (dataset, template).
NO_CHOICE = {
  ("p3_imdb", "Negation template for positive and negative"),  # "review." follows the choice
  # What a direct effect is called is missing among the choices.
  ("p3_wiqa", "which_of_the_following_is_the_supposed_perturbation"),
}


def listed(*parts):
  return [f"p3_{name}" for part in parts for name in TABLE[part]]


def test_each_mixture_has_the_datasets_of_its_model():
  for name, count, parts in (
    ("t0", 38, ["t0"]),
    ("t0_plus", 48, ["t0", "plus"]),
    ("t0_plus_plus", 54, ["t0", "plus", "plus_plus"]),
    ("t0_evaluation", 11, ["evaluation"]),
  ):
    assert len(listed(*parts)) == count
    assert sorted(get_mixture(name).datasets) == sorted(listed(*parts)), name
  assert set(SIZES) == set(FILES) and len(FILES) == 61


def test_nothing_that_is_judged_was_trained_on_but_what_the_paper_says():
  judged = set(get_mixture("t0_evaluation").datasets)

  def seen(name):
    return judged & set(get_mixture(name).datasets)

  sglue = {f"p3_super_glue_{name}" for name in ("copa", "wic", "wsc.fixed")}
  assert seen("t0") == set()
  assert seen("t0_plus") == {"p3_hellaswag"}
  assert seen("t0_plus_plus") == {"p3_hellaswag", *sglue}


@pytest.mark.parametrize("examples", [1, 70, 499_999, 500_000])
def test_a_dataset_up_to_the_cap_has_its_size_once_for_every_template(examples):
  assert get_mixture("t0").rate(examples, templates=7) == 7 * examples


@pytest.mark.parametrize("examples", [500_001, 3_803_957])
def test_the_templates_of_a_larger_dataset_share_the_cap(examples):
  for templates in range(1, 20):
    rate = get_mixture("t0").rate(examples, templates)
    assert rate == templates * (500_000 // templates)
    assert 500_000 - templates < rate <= 500_000


def test_a_temperature_acts_on_each_template_s_rate_as_on_a_task_of_seqio():
  mixture = Mixture("m", {"a": None}, 10**6, 500_000, temperature=2.0, per_template=True)
  assert mixture.rate(10_000, templates=3) == 3 * 100
  assert mixture.rate(600_000, templates=5) == pytest.approx(5 * 100_000**0.5)


def test_a_cap_below_the_number_of_templates_leaves_each_of_them_a_rate():
  assert Mixture("m", {"a": None}, rate_cap=5, per_template=True).rate(40, templates=9) == 9


def test_templates_do_not_count_unless_the_mixture_says_so():
  assert Mixture("m", {"a": None}).rate(40, templates=9) == 40


@each_dataset
def test_the_file_s_name_is_the_one_of_p3_and_its_folder_the_cluster(name):
  data = yaml.safe_load(FILES[name].read_text())
  about = data["templates"]["promptsource"]
  rounds = (
    {f"p3_anli_r{n}" for n in (1, 2, 3)} if about == "anli" else {f"p3_{template_name(about)}"}
  )
  assert name in rounds
  assert data["licence"] and data["citation"] and data["url"]
  for part, url in data["source"].get("files", {}).items():
    part = {"train": "train_r", "validation": "dev_r"}[part] + name[-1] if "anli" in name else part
    assert url.startswith("hf://datasets/") and url.endswith(f"/{part}/*.parquet")
    assert url.count("@refs/convert/parquet/") == 1


def test_story_cloze_gives_each_sentence_of_the_story():
  record = yaml.safe_load(FILES["p3_story_cloze_2016"].read_text())["record"]
  assert record.keys() == dataset_spec("story_cloze").record.keys()
  read = alternatives.story_cloze_by_sentence(record)
  sentences = [read.pop(f"input_sentence_{n}") for n in (1, 2, 3, 4)]
  assert " ".join(sentences) == " ".join(record["context"].split())
  assert all(sentence[-1] in ".!?" for sentence in sentences)
  assert list(read.values()) == [*record["endings"], record["label"]]
  spoken = record | {"context": 'He said, "Stop." They did. It was late. "Why?" she asked.'}
  assert alternatives.story_cloze_by_sentence(spoken)["input_sentence_2"] == "They did."
  assert alternatives.story_cloze_by_sentence(record | {"context": "Two. Sentences."}) is None


def test_trec_s_fine_classes_are_numbered_as_in_2021():
  numbered = question_classification.trec_by_old_numbers
  classes = [numbered({"text": "", "coarse_label": 0, "fine_label": n}) for n in range(50)]
  assert {each["label_coarse"] for each in classes} == set(range(6))
  # "other" and "desc" stand in several coarse classes, and have one number in each.
  assert sorted({each["label_fine"] for each in classes}) == list(range(47))
  keys = numbered({"text": "How many keys ?", "coarse_label": 5, "fine_label": 38})
  assert keys == {"text": "How many keys ?", "label_coarse": 4, "label_fine": 13}


@each_dataset
def test_a_record_is_the_same_again_from_a_parquet_file(name):
  record = yaml.safe_load(FILES[name].read_text())["record"]
  stream = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist([record]), stream)
  (read,) = Format("parquet").read(io.BytesIO(stream.getvalue()), f"{name}.parquet")
  assert read == record


def records_of(spec):
  more = yaml.safe_load((HERE / "p3_records.yaml").read_text()).get(spec.name, ())
  for record in (spec.record, *more):
    assert record.keys() == spec.record.keys()
    yield spec.derive_record(record)


@from_package
@each_dataset
def test_every_template_gives_an_input_and_a_target_of_a_record(name):
  spec = dataset_spec(name)
  records, none = list(records_of(spec)), Draw(0)
  for template in spec.templates:
    shown = []
    for record in records:
      try:
        shown.append((template.render(record, none), template.parts(record, none)[1]))
      except DoesNotApply:
        continue
    assert shown, template.title
    for rendering, choices in shown:
      (turn,) = rendering.turns
      assert turn.input and turn.target
      is_exception = (name, template.title) in NO_CHOICE
      assert choices is None or (turn.target in choices) != is_exception, template.title


@from_package
def test_what_is_judged_are_the_templates_of_the_paper_s_evaluation():
  counts = {"anli_r1": 15, "anli_r2": 15, "anli_r3": 15, "super_glue_cb": 15, "super_glue_rte": 10}
  counts |= {"super_glue_wsc.fixed": 10, "winogrande_winogrande_xl": 5, "super_glue_wic": 10}
  counts |= {"super_glue_copa": 12, "hellaswag": 4, "story_cloze_2016": 5}
  specs = {name: dataset_spec(f"p3_{name}") for name in counts}
  assert {name: len(spec.evaluation_templates()) for name, spec in specs.items()} == counts
  for spec in specs.values():
    assert spec.evaluation_split == "validation" and spec.metrics == ("accuracy",)


@from_package
def test_what_t0_left_out_as_broken_is_not_there():
  titles = {template.name for template in dataset_spec("p3_gigaword").templates}
  assert len(titles) == 9 and not {title for title in titles if title.startswith("summarize")}


@from_package
@pytest.mark.parametrize("name", ["t0", "t0_plus", "t0_plus_plus"])
def test_the_rates_are_those_of_t0_task_by_task(name, monkeypatch, tmp_path):
  monkeypatch.setattr(rates, "_size", lambda dataset, split, data_dir: SIZES[dataset])
  tasks = training_tasks(name, tmp_path)
  by_task = {}  # as T0's own list of tasks has it, one a template
  for dataset in training_datasets(name):
    size, templates = SIZES[dataset], dataset_spec(dataset).templates
    for template in templates:
      rate = size if size <= 500_000 else 500_000 // len(templates)
      by_task[dataset, template.name] = rate
  assert len(by_task) == sum(len(dataset_spec(task.name).templates) for task in tasks)
  for task in tasks:
    mine = [rate for (dataset, _), rate in by_task.items() if dataset == task.name]
    assert task.rate == sum(mine) and task.examples == task.available == SIZES[task.name]
    assert task.share == pytest.approx(sum(mine) / sum(by_task.values()))


@from_package
def test_some_rates_by_hand(monkeypatch, tmp_path):
  monkeypatch.setattr(rates, "_size", lambda dataset, split, data_dir: SIZES[dataset])
  found = {task.name: task.rate for task in training_tasks("t0_plus_plus", tmp_path)}
  assert found["p3_glue_mrpc"] == 7 * 3_668 == 25_676
  assert found["p3_imdb"] == 11 * 25_000
  assert found["p3_trec"] == 18 * 5_452 == 98_136
  assert found["p3_cnn_dailymail_3.0.0"] == 9 * 287_113 == 2_584_017
  assert found["p3_super_glue_record"] == 20 * 100_730
  assert found["p3_amazon_polarity"] == 9 * 55_555 == 499_995
  assert found["p3_gigaword"] == found["p3_amazon_polarity"]
  assert found["p3_dbpedia_14"] == 4 * 125_000
  assert found["p3_yelp_review_full"] == 7 * 71_428


@from_package
def test_what_is_judged_cannot_be_trained_on(monkeypatch, tmp_path):
  monkeypatch.setattr(rates, "_size", lambda dataset, split, data_dir: SIZES[dataset] or 0)
  assert sorted(held_out_datasets("t0_evaluation")) == sorted(listed("evaluation"))
  assert training_datasets("t0_evaluation") == []
  with pytest.raises(ConfigError, match="'t0_evaluation' has nothing to train on"):
    training_tasks("t0_evaluation", tmp_path)


@from_package
def test_their_prompts_are_shown_without_the_hub(capsys):
  assert main(["templates", "p3_super_glue_copa"]) == 0
  shown = capsys.readouterr().out
  assert "`flan-jax mixtures p3_super_glue_copa` prepares real ones" in shown
  assert "> The stove became wet." in shown and "(not for this record)" in shown
