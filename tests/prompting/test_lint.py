"""The lint finds what is wrong with a template, says where, and leaves alone what is meant."""

from itertools import combinations
from pathlib import Path

import pytest
import yaml
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from flan_jax.prompting import read_dataset
from flan_jax.prompting.lint import lint, rouge_l, words_of

HOTELS = """\
cluster: sentiment
description: A hotel review, and whether it is good.
source: {files: hotels.jsonl}
splits: {train: train}
fields: {review: long, town: text, stars: text, label: text}
unique: [review]
answer:
  field: label
  choices: {neg: bad, pos: good}
metrics: [accuracy]
record: {review: Loud., town: Bath, stars: 1, label: neg}
templates:
"""
IN_TOWN = [{"name": "town", "input": "{review} In {town} and its {stars}:", "target": "{answer}"}]
SHIPPED = Path(__file__).parents[2] / "templates"


@pytest.fixture
def findings(tmp_path):
  """What is found where a dataset has these templates, without the path."""

  def found(*templates: dict, used: bool = True) -> list[str]:
    path = tmp_path / "sentiment" / "hotels.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(HOTELS + yaml.safe_dump([*templates, *(IN_TOWN if used else [])]))
    return [line.removeprefix(f"{path}:") for line in lint(read_dataset(path))]

  return found


def template(text: str, target: str = "{answer}", name: str = "one") -> dict:
  return {"name": name, "input": text, "target": target}


@pytest.mark.parametrize(
  ("text", "mistake"),
  [
    ("Is the the stay good? {review}", "the same word twice: 'Is the the stay good? {}'"),
    ("Judge the\nThe review. {review}", "the same word twice"),
    ("{review} Good?? Bad?", "punctuation twice"),
    ("{review} Say it now!!", "punctuation twice"),
    ("{review} Well.. good?", "punctuation twice"),
    ("{review} , good or bad?", "a blank before punctuation"),
    ("Good ?\n{review}", "a blank before punctuation"),
    ("Is this an review? {review}", "a belongs before 'review'"),
    ("This is a opinion. {review}", "an belongs before 'opinion'"),
    ("Read for a hour. {review}", "an belongs before 'hour'"),
    ("An one-word answer: {review}", "a belongs before 'one'"),
    ("Give it a 8 or not: {review}", "an belongs before '8'"),
    ("{review} Good,bad?", "no blank after punctuation"),
    ("It is a review.Judge it. {review}", "no blank after punctuation"),
    ("Read it. judge it. {review}", "a sentence in lower case"),
    ('A "review: {review}', "a quotation mark is without its other half"),
    ("A “review: {review}", "a quotation mark is without its other half"),
    ("A review (long: {review}", "brackets without their other half: ("),
    ("A [review (long]: {review})", "brackets without their other half: [ ( ] )"),
    ("Read  this: {review}", "two blanks"),
    ("Read this  {review} now", "two blanks"),
    ("Read this: \n{review}", "blanks at the end of a line"),
    ("Read this:\n\n\n{review}", "more than one empty line"),
    ("Read\tthis: {review}", "a tab"),
    (
      f"{{review}}\n\nSay whether {'it is really true that ' * 4}the one who wrote\nthis was pleased.",
      "a line that breaks off in a sentence",
    ),
    ("Good or bad?", "the input is the same for every record"),
  ],
)
def test_a_slip_is_found_and_told_once(findings, text, mistake):
  (found,) = findings(template(text))
  assert found.startswith(f"13: template one: {mistake}")


@pytest.mark.parametrize(
  "text",
  [
    "Hm ... {review} ... Good?",
    "i read this. is it good? {review}",
    "Was it :) or :(\n{review}",
    "Pick one: a) good, b) bad, 3) none. {review}",
    "review:  {review}\ntown:    {town}",
    "judge({review})  # good or bad",
    "{review} A and B are one. A or B? A is.",
    "A unit, a European, a one-way street, an honest hour, an F, an X-ray, an 11: {review}",
    "A useful union, an uninformed heir, an e-mail, a NATO or an NBA fan: {review}",
    "{review}\n\nAll that that says, e.g. on p.m. hours; it had had time.",
    "Est-ce bien écrit ? {review}",
    "Es hieß „{review}“, und «{review}»",
    '{{"review": "{review}", "tags": [("good", "bad")]}}',
    "Fill the gap ..........\n{review}",
    f"# {'good or bad, ' * 7}as you like\nlabel({{review}})",
    f"dear all, {'we had a nice time and ' * 4}so on :)\nwould you go there? {{review}}",
    "Of {review}, hotels.com and line.replace(a,b) say:",
  ],
)
def test_what_is_meant_is_left_alone(findings, text):
  assert findings(template(text)) == []


def test_a_finding_stands_at_its_line_of_a_literal_block(tmp_path):
  path = tmp_path / "sentiment" / "hotels.yaml"
  path.parent.mkdir()
  block = '- name: block\n  input: |-\n    {town} {stars}\n    {review}\n    Good?? Bad?\n  target: "{answer}"\n'
  path.write_text(HOTELS + block)
  line = 1 + path.read_text().split("\n").index("    Good?? Bad?")
  assert lint(read_dataset(path)) == [
    f"{path}:{line}: template block: punctuation twice: '{{}}\\n{{}}\\nGood?? Bad?'"
  ]


def test_a_mark_may_be_opened_in_the_input_and_closed_in_the_target(findings):
  assert findings(template('{review} She says: "It was', '{answer}."')) == []
  assert len(findings(template('{review} She says: "It was', "{answer}."))) == 1


def test_the_words_for_choices_and_every_turn_are_read(findings):
  turns = [
    {"input": "A hotel in {town}.", "target": "And  then?"},
    {"input": "{review}", "target": "{answer}"},
  ]
  choices = {"neg": "a odd place", "pos": "a good one"}
  assert [
    line.partition("template ")[2]
    for line in findings({"name": "t", "turns": turns, "choices": choices})
  ] == ["t: two blanks: 'And  then?'", "t: an belongs before 'odd': 'a odd place'"]


def test_options_that_are_sentences_do_not_stand_in_one(findings):
  asked = {**template("{review}\n{options}"), "choices": {"neg": "Not good.", "pos": "Good."}}
  assert findings(asked) == [
    "13: template one: options that are sentences should be a list or have letters: 'Not good.'"
  ]
  assert findings({**asked, "options": "list"}) == []


def test_near_copies_are_named(findings):
  text = "Here is what a guest wrote about the hotel where she stayed: {review} Was it good?"
  found = findings(template(text), template(text.replace("a guest", "the guest"), name="two"))
  assert [line.partition(": ")[2] for line in found] == [
    "template two: says nearly the same as one (ROUGE-L 0.94)"
  ]


def test_templates_that_differ_in_their_fields_alone_are_told_apart(findings):
  assert findings(template("{review}, {town}:"), template("{stars}, {town}:", name="two")) == []


def test_a_field_that_nothing_uses_is_found_at_its_line(findings):
  unused = findings(template("{review}"), used=False)
  assert unused == [
    "5: field 'town' is used by no template",
    "5: field 'stars' is used by no template",
  ]


def test_a_template_that_shows_the_answer_alone_is_found(findings):
  back = {**template("{answer}", "It was {answer}."), "turned_around": True}
  back["input"], back["target"] = "Say that it was {answer}.", "{review}"
  assert findings(back) == []
  only = {"name": "only", "input": "{options}", "target": "{answer}"}
  assert findings(only) == ["13: template only: the input is the same for every record"]


def test_rouge_l_is_that_of_the_rouge_score_package():
  class Words(Tokenizer):
    def tokenize(self, text):
      return text.split()

  scorer = RougeScorer(["rougeL"], tokenizer=Words())
  spec = read_dataset(SHIPPED / "entailment" / "cb.yaml")
  pairs = list(combinations(map(words_of, spec.templates), 2))
  assert len(pairs) > 50
  for one, other in pairs:
    expected = scorer.score(" ".join(one), " ".join(other))["rougeL"].fmeasure
    assert rouge_l(one, other) == pytest.approx(expected)
  assert rouge_l([], ["word"]) == 0
