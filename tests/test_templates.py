"""Every dataset file that comes with the library keeps the house's rules for templates."""

import re
from pathlib import Path

import pytest

from flan_jax.prompting import DatasetSpec, Template, read_dataset
from flan_jax.prompting.lint import lint

FOLDER = Path(__file__).parents[1] / "templates"
# Those that begin with p3_ have promptsource's templates; mixtures/test_t0.py is about them.
FILES = sorted(path for path in FOLDER.glob("*/*.yaml") if not path.stem.startswith("p3_"))
PUNCTUATION = " \n\"'()<>.:?!"

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
def test_the_cluster_is_the_folder(spec: DatasetSpec):
  assert spec.cluster == spec.path.parent.name


@each_dataset
def test_the_lint_finds_nothing(spec: DatasetSpec):
  assert lint(spec) == []


@each_dataset
def test_of_ten_templates_or_more_at_most_three_are_turned_around(spec: DatasetSpec):
  assert len(spec.templates) >= 10
  assert sum(template.turned_around for template in spec.templates) <= 3


@each_dataset
def test_two_templates_stay_unseen(spec: DatasetSpec):
  unseen = [template for template in spec.templates if template.unseen]
  assert len(unseen) >= 2
  assert any(not template.turned_around for template in unseen), "evaluation needs an unseen prompt"


@each_dataset
def test_some_templates_show_the_choices_and_some_do_not(spec: DatasetSpec):
  if spec.answer is None or not spec.answer.has_choices:
    return
  shown = [template.styles != ("none",) for template in spec.evaluation_templates()]
  assert any(shown) and not all(shown)


@each_dataset
def test_some_templates_ask_and_some_do_not(spec: DatasetSpec):
  asks = ["?" in masked(template) for template in spec.evaluation_templates()]
  assert any(asks) and not all(asks)


@each_dataset
def test_the_record_comes_first_in_some_templates_and_last_in_some(spec: DatasetSpec):
  inputs = [masked(template, "{}").strip(PUNCTUATION) for template in spec.evaluation_templates()]
  first = [text.startswith("{}") for text in inputs]
  last = [text.endswith("{}") for text in inputs]
  assert any(first) and not all(first)
  assert any(last) and not all(last)


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


def masked(template: Template, field: str = " field ") -> str:
  """What a template's inputs say themselves, without options: a word for each field and each gap."""
  text = "\n".join(turn.input for turn in template.texts).replace("{options}", "")
  text = re.sub(r"\{\w+\}", field, text.replace("{{", "(").replace("}}", ")"))
  return re.sub("__+", " gap ", text)
