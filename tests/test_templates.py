"""Every dataset file that comes with the library keeps the house's rules for templates."""

import re
from itertools import combinations
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from flan_jax.prompting import DatasetSpec, Template, read_dataset

FOLDER = Path(__file__).parents[1] / "templates"
# Those that begin with p3_ have promptsource's templates; mixtures/test_t0.py is about them.
FILES = sorted(path for path in FOLDER.glob("*/*.yaml") if not path.stem.startswith("p3_"))
MOST_ALIKE = 0.8

each_dataset = pytest.mark.parametrize(
  "path", FILES, ids=[f"{path.parent.name}/{path.stem}" for path in FILES]
)


@pytest.fixture
def spec(path: Path) -> DatasetSpec:
  return read_dataset(path)


@each_dataset
def test_the_file_loads_and_its_record_renders_in_every_template(spec: DatasetSpec):
  record = spec.derive_record(spec.record)
  for template in spec.templates:
    for rendering in template.renderings(record):
      assert all(turn.input and turn.target for turn in rendering.turns)


@each_dataset
def test_there_are_eight_templates_and_two_of_them_stay_unseen(spec: DatasetSpec):
  assert len(spec.templates) >= 8
  unseen = [template for template in spec.templates if template.unseen]
  assert len(unseen) >= 2
  assert any(not template.turned_around for template in unseen), "evaluation needs an unseen prompt"


@each_dataset
def test_one_template_does_without_the_options(spec: DatasetSpec):
  if spec.answer is None or not spec.answer.has_choices:
    return
  straight = [template for template in spec.templates if not template.turned_around]
  assert any(template.styles == ("none",) for template in straight)


@each_dataset
def test_one_template_asks_a_question(spec: DatasetSpec):
  assert any("?" in turn.input for template in spec.templates for turn in template.texts)


@each_dataset
def test_no_two_templates_begin_with_the_same_four_words(spec: DatasetSpec):
  beginnings: dict[tuple[str, ...], str] = {}
  for template in spec.templates:
    beginning = tuple(re.findall(r"[^\W_]+(?:'\w+)?", masked(template).lower())[:4])
    other = beginnings.setdefault(beginning, template.name)
    assert other == template.name, (
      f"{other} and {template.name} both begin with {' '.join(beginning)!r}"
    )


@each_dataset
def test_no_two_templates_say_nearly_the_same(spec: DatasetSpec):
  scorer = RougeScorer(["rougeL"])
  for one, other in combinations(spec.templates, 2):
    likeness = scorer.score(masked(one), masked(other))["rougeL"].fmeasure
    assert likeness < MOST_ALIKE, f"{one.name} and {other.name}: ROUGE-L {likeness:.2f}"


@each_dataset
def test_the_source_declares_licence_and_citation(spec: DatasetSpec):
  assert spec.licence, "licence is missing"
  assert spec.citation, "citation is missing"


def test_no_cluster_is_an_empty_folder():
  if not FILES:
    return
  empty = [
    folder.name for folder in FOLDER.iterdir() if folder.is_dir() and not any(folder.glob("*.yaml"))
  ]
  assert not empty, f"clusters without a dataset: {', '.join(empty)}"


def masked(template: Template) -> str:
  """What the template itself says: each placeholder is the word `field`, each gap the word `gap`."""
  text = "\n".join(turn.input for turn in template.texts)
  text = re.sub(r"\{\w+\}", " field ", text.replace("{{", "(").replace("}}", ")"))
  return re.sub("__+", " gap ", text)
