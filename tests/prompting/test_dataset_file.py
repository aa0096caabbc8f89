"""The reader takes what is right, and says of what is wrong where it stands."""

import pickle
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from flan_jax.errors import RecordError, TemplateError, UnknownName
from flan_jax.prompting import Draw, gallery, read_dataset

REVIEWS = """\
cluster: sentiment
description: A film review, and whether it is positive.
source: {files: reviews.jsonl}
splits: {train: 0.8, validation: 0.1, test: 0.1}
group: film
fields: {title: text, review: long, label: text}
answer:
  field: label
  choices: {neg: negative, pos: positive}
metrics: [accuracy]
licence: CC0-1.0
citation: Nobody. Nothing. 2020.
record: {title: Up, review: "It is {really} 100% good.", label: pos, film: up-2009, year: 2009}
templates:
  - name: plain
    input: |-
      A review of {title}:

      {review}
      {options}
    target: "{answer}"
  - name: cloze
    input: "{review} So the film is ___."
    target: It is {answer}.
    choices: {pos: good, neg: bad}
    unseen: true
  - name: chat
    turns:
      - {input: "I saw {title}.", target: "And?", loss: false}
      - {input: "{review}", target: "{answer}"}
    metrics: [accuracy, macro_f1]
  - name: back
    input: Write a {answer} review.
    target: "{review}"
    turned_around: true
"""


@pytest.fixture
def write(tmp_path):
  def written(text: str, folder: str = "sentiment") -> Path:
    path = tmp_path / folder / "reviews.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path

  return written


@pytest.fixture
def spec(write):
  return read_dataset(write(REVIEWS))


def test_what_the_file_says_is_what_the_spec_holds(spec):
  data = yaml.safe_load(REVIEWS)
  assert (spec.name, spec.cluster) == ("reviews", data["cluster"])
  for key in ("description", "source", "splits", "fields", "licence", "citation", "record"):
    assert getattr(spec, key) == data[key]
  assert (spec.group, spec.unique, spec.long) == (("film",), ("title", "review", "label"), "review")
  assert spec.metrics == ("accuracy",)
  assert spec.answer.labels == data["answer"]["choices"]
  assert [template.name for template in spec.templates] == ["plain", "cloze", "chat", "back"]
  assert spec.template("chat").metrics == ("accuracy", "macro_f1")


def test_training_leaves_out_unseen_and_evaluation_turned_around_templates(spec):
  assert [template.name for template in spec.training_templates()] == ["plain", "chat", "back"]
  assert [template.name for template in spec.evaluation_templates()] == ["plain", "cloze", "chat"]


def test_an_unknown_template_is_told_the_nearest(spec):
  with pytest.raises(UnknownName, match="unknown template 'plane'. Did you mean 'plain'"):
    spec.template("plane")


def test_other_words_come_in_the_order_of_the_labels(spec):
  record = spec.derive_record(spec.record)
  rendering = spec.template("cloze").render(record, Draw())
  assert rendering.options == ("It is bad.", "It is good.")
  assert rendering.golds == ("It is good.",)


def test_options_are_shown_by_default_where_the_input_has_a_place_for_them(spec):
  assert spec.template("plain").styles == ("list", "letters", "inline")
  assert spec.template("cloze").styles == ("none",)


def test_a_derived_record_keeps_its_fields_and_its_group(spec):
  assert spec.derive_record(spec.record) == {
    "title": "Up",
    "review": "It is {really} 100% good.",
    "label": "pos",
    "film": "up-2009",
  }


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"label": "positive"}, "dataset 'reviews': field 'label' is 'positive'; .* 'neg', 'pos'"),
    ({"title": None}, "field 'title' should be text, not null"),
  ],
)
def test_a_record_that_does_not_fit_is_refused(spec, change, message):
  with pytest.raises(RecordError, match=message):
    spec.derive_record({**spec.record, **change})


def test_a_spec_travels_to_another_process(spec):
  copy = pickle.loads(pickle.dumps(spec))
  record = copy.derive_record(spec.record)
  for template in spec.templates:
    again = copy.template(template.name).render(record, Draw(1))
    assert again == template.render(record, Draw(1))


def test_fingerprints_see_what_matters_to_them(write, spec):
  reformatted = read_dataset(write(REVIEWS.replace("licence:", "# a comment\nlicence:")))
  assert reformatted.fingerprint == spec.fingerprint
  reworded = read_dataset(write(REVIEWS.replace("I saw", "We saw")))
  assert reworded.fingerprint != spec.fingerprint
  assert reworded.records_fingerprint == spec.records_fingerprint
  regrouped = read_dataset(write(REVIEWS.replace("group: film", "group: title")))
  assert regrouped.records_fingerprint != spec.records_fingerprint
  reordered = REVIEWS.replace("neg: negative, pos: positive", "pos: positive, neg: negative")
  assert read_dataset(write(reordered)).fingerprint != spec.fingerprint


def test_yes_and_no_and_dates_are_text(write):
  text = REVIEWS.replace("neg: negative, pos: positive", "neg: no, pos: yes")
  spec = read_dataset(write(text.replace("title: Up", "title: 2009-05-29")))
  assert spec.answer.labels == {"neg": "no", "pos": "yes"}
  assert spec.record["title"] == "2009-05-29"


def test_labels_may_be_numbers_and_truth_values(write):
  text = REVIEWS.replace("neg: negative, pos: positive", "0: negative, true: positive")
  text = text.replace("pos: good, neg: bad", "true: good, 0: bad")
  spec = read_dataset(write(text.replace("label: pos", "label: true")))
  assert spec.answer.labels == {"0": "negative", "true": "positive"}


def test_the_gallery_shows_every_template_with_its_notes(spec):
  text = gallery(spec, long_limit=5)
  for note in (
    "reviews: A film review, and whether it is positive.",
    "4 templates, 1 unseen, 1 turned around",
    "== plain (options: list or letters or inline)",
    "== cloze (unseen)",
    "== chat (metrics: accuracy, macro_f1)",
    "== back (turned around)",
    "  | It is So the film is ___.",
    "    scored: It is bad. / It is good.",
    "  > And?",
  ):
    assert note in text, note
  assert gallery(spec, long_limit=5) == text


def test_the_gallery_shows_only_what_it_is_asked_for(spec):
  records = [{"review": f"Film {number}.", "label": "neg"} for number in range(2)]
  text = gallery(spec, [spec.template("cloze")], records)
  assert [line for line in text.split("\n") if line.startswith(("==", "  |"))] == [
    "== cloze (unseen)",
    "  | Film 0. So the film is ___.",
    "  | Film 1. So the film is ___.",
  ]


class Mistake(NamedTuple):
  """One change that makes the file wrong, what the reader says of it, and where.

  `at` stands in the line that the message names: by default the first line that was changed.
  """

  old: str
  new: str
  message: str
  at: str = ""


WRONG = {
  "an unknown key": Mistake(
    "licence:", "license:", "unknown key 'license'; did you mean 'licence'?"
  ),
  "an unknown key of a template": Mistake("unseen: true", "unsen: true", "did you mean 'unseen'?"),
  "a field that is not declared": Mistake(
    "{title}:", "{titel}:", "unknown field {titel}; did you mean {title}?"
  ),
  "a field in the second line of a block": Mistake(
    "      {review}\n", "      {reveiw}\n", "did you mean {review}?"
  ),
  "an unknown metric": Mistake(
    "\nmetrics: [accuracy]",
    "\nmetrics: [acuracy]",
    "unknown metric 'acuracy'; did you mean 'accuracy'?",
  ),
  "a metric that ranking does not give": Mistake(
    "\nmetrics: [accuracy]", "\nmetrics: [f1]", "ranked, which accuracy, macro_f1"
  ),
  "a correlation of choices that are no numbers": Mistake(
    "\nmetrics: [accuracy]",
    "\nmetrics: [accuracy, pearson]",
    "pearson needs choices that are numbers, which 'neg' is not",
  ),
  "a metric beside it that is not for choices": Mistake(
    "\nmetrics: [accuracy]", "\nmetrics: [accuracy, bleu]", "an answer with choices is ranked"
  ),
  "an unknown kind of field": Mistake(
    "review: long", "review: lang", "unknown kind of field 'lang'; did you mean 'long'?"
  ),
  "two long fields": Mistake(
    "title: text", "title: long", "only one field may be long, not title and review"
  ),
  "a long field that no template uses": Mistake(
    "review: long,", "review: text, rest: long,", "no template uses the long field 'rest'"
  ),
  "a missing choice": Mistake(
    "{pos: good, neg: bad}", "{pos: good, nag: bad}", "unknown choice 'nag'; did you mean 'neg'?"
  ),
  "a choice left out": Mistake(
    "{neg: negative, pos: positive}",
    "{neg: negative, pos: positive, neu: neutral}",
    "template 'cloze': the choice 'neu' is missing",
    "choices: {pos: good",
  ),
  "a choice without words": Mistake("pos: good", 'pos: ""', "the choice 'pos' has no words"),
  "two choices with the same words": Mistake(
    "pos: good", "pos: bad", "two choices have the same words, 'bad'"
  ),
  "a single choice": Mistake(
    "{neg: negative, pos: positive}", "{pos: positive}", "needs at least two"
  ),
  "an unknown answer field": Mistake(
    "field: label", "field: lable", "unknown field 'lable'; did you mean 'label'?"
  ),
  "options that are no list": Mistake(
    "{neg: negative, pos: positive}", "title", "the field 'title' should be a list"
  ),
  "a template name used twice": Mistake(
    "name: cloze", "name: plain", "the template name 'plain' is used twice"
  ),
  "a template name that is no name": Mistake(
    "name: cloze", "name: a cloze", "letters, digits and _"
  ),
  "an empty target": Mistake("target: It is {answer}.", 'target: " "', "target is empty"),
  "a target that never changes": Mistake(
    "target: It is {answer}.", "target: It is.", "the target is the same for every record"
  ),
  "a target that can be empty": Mistake(
    'review: "It is {really} 100% good."',
    'review: " "',
    "template 'back': the target is empty",
    "- name: back",
  ),
  "a label in place of the answer": Mistake(
    "target: It is {answer}.", "target: It is {label}.", "write {answer}"
  ),
  "an answer given away": Mistake("So the film", "So the {answer} film", "gives the answer away"),
  "an answer given away in an earlier turn": Mistake(
    '"And?"', '"{answer}"', "{answer} in an earlier target gives the answer away"
  ),
  "a turned template that asks for what it gives": Mistake(
    '    target: "{review}"\n    turned',
    '    target: "{answer}"\n    turned',
    "in its input, not in its target",
  ),
  "options in a target": Mistake(
    "target: It is {answer}.",
    'target: "{options} {answer}"',
    "{options} can only be shown in an input",
  ),
  "options in a turned template": Mistake(
    "Write a {answer} review.", "Write a {answer} review. {options}", "shows no {options}"
  ),
  "options twice": Mistake(
    "{options}", "{options}\n      {options}", "shows {options} twice", "- name: plain"
  ),
  "options that are not shown": Mistake(
    "target: It is {answer}.",
    "target: It is {answer}.\n    options: list",
    "template 'cloze' has no {options} in its input",
  ),
  "an unknown style": Mistake(
    "unseen: true",
    "unseen: true\n    options: letter",
    "unknown options setting 'letter'; did you mean 'letters'?",
  ),
  "a format in braces": Mistake("{title}:", "{title!r}:", "only {field} can stand in braces"),
  "a lonely brace": Mistake("So the film", "So } the film", "only {field} can stand in braces"),
  "turns beside an input": Mistake(
    "    turns:", "    input: x\n    turns:", "has turns, and input beside them"
  ),
  "neither turns nor input": Mistake(
    '    input: "{review} So the film is ___."\n',
    "",
    "template 'cloze' has no input",
    "- name: cloze",
  ),
  "a flag that is a word": Mistake(
    "unseen: true", "unseen: yes", "unseen is true or false, not 'yes'"
  ),
  "a text that is a number": Mistake(
    "licence: CC0-1.0", "licence: 1.0", "licence should be text, not 1.0; quote it"
  ),
  "a placeholder without quotes": Mistake(
    'target: "{answer}"',
    "target: {answer}",
    "target should be text, not {'answer': None}; quote it",
  ),
  "an unknown split": Mistake(
    "validation:", "valid:", "unknown key 'valid'; did you mean 'validation'?"
  ),
  "fractions that leave something over": Mistake(
    "train: 0.8", "train: 0.7", "add up to 1, not to 0.9"
  ),
  "fractions among parts": Mistake("train: 0.8", "train: all", "not both"),
  "a key given twice": Mistake(
    "licence:", "url: a\nurl: b\nlicence:", "the key 'url' is given twice", "url: b"
  ),
  "a list that is not closed": Mistake(
    "metrics: [accuracy]", "metrics: [accuracy", "not valid YAML", "licence:"
  ),
  "a derive function that is not there": Mistake(
    "group:", "derive: flan_jax.prompting.draw:drew\ngroup:", "has no function 'drew'"
  ),
  "a group that the record lacks": Mistake(
    "film: up-2009",
    "movie: up-2009",
    "field 'film' is missing; the record has title, review, label, movie, year",
  ),
  "a record with an unknown label": Mistake("label: pos", "label: good", "field 'label' is 'good'"),
}


@pytest.mark.parametrize("mistake", WRONG.values(), ids=WRONG.keys())
def test_the_reader_finds(write, mistake):
  wrong = REVIEWS.replace(mistake.old, mistake.new, 1)
  before, after = REVIEWS.split("\n"), wrong.split("\n")
  changed = [one == other for one, other in zip(before, after, strict=False)].index(False)
  line = [mistake.at in text for text in after].index(True) if mistake.at else changed
  path = write(wrong)
  with pytest.raises(TemplateError) as caught:
    read_dataset(path)
  found = [text for text in str(caught.value).split("\n") if mistake.message in text]
  assert found, str(caught.value)
  assert found[0].startswith(f"{path}:{line + 1}: ")


def test_all_wrong_templates_are_told_at_once(write):
  wrong = REVIEWS.replace("{title}:", "{titel}:").replace("unseen: true", "unsen: true")
  with pytest.raises(TemplateError) as caught:
    read_dataset(write(wrong))
  assert [text.split(": ")[0][-2:] for text in str(caught.value).split("\n")] == ["17", "26"]


@pytest.mark.parametrize("key", ["record", "templates", "fields", "splits", "cluster"])
def test_a_part_that_is_missing_is_named(write, key):
  data = {name: value for name, value in yaml.safe_load(REVIEWS).items() if name != key}
  with pytest.raises(TemplateError, match=f"the file has no '{key}'"):
    read_dataset(write(yaml.safe_dump(data)))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "should map names to values"),
    (b"- a\n- b\n", "should map names to values"),
    (b"\xff\xfe", "cannot be read"),
    (b"a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    (b"a: &x {b: *x}", "an alias contains itself"),
  ],
)
def test_a_file_that_is_no_dataset_is_refused(write, content, message):
  path = write("")
  path.write_bytes(content)
  with pytest.raises(TemplateError, match=message):
    read_dataset(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(TemplateError, match=r"nowhere\.yaml: cannot be read"):
    read_dataset(tmp_path / "nowhere.yaml")


BORROWER = """\
cluster: sentiment
description: The same reviews, as somebody else keeps them.
source: {files: others.csv}
splits: {train: train, test: test}
templates: {like: reviews.yaml}
record: {title: Down, review: It is not good., label: neg}
"""


def test_a_file_borrows_the_templates_of_another_and_what_they_build_on(write):
  lender = read_dataset(write(REVIEWS))
  path = lender.path.with_name("others.yaml")
  path.write_text(BORROWER)
  spec = read_dataset(path)
  for borrowed in ("fields", "answer", "metrics", "templates"):
    assert repr(getattr(spec, borrowed)) == repr(getattr(lender, borrowed))
  assert (spec.name, spec.source, spec.group) == ("others", {"files": "others.csv"}, ())
  record = spec.derive_record(spec.record)
  assert spec.template("plain").render(record, Draw(0)).golds == ("negative",)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("reviews.yaml", "review.yaml", "others.yaml:5: .*review.yaml: cannot be read"),
    ("{like: reviews.yaml}", "{like: reviews.yaml, without: [a]}", "unknown key 'without'"),
    ("{like: reviews.yaml}", "{}", "borrowed by one of like and promptsource"),
    ("templates:", "fields: {title: text}\ntemplates:", "unknown key 'fields'"),
    ("label: neg", "label: bad", "the record cannot be used: .*'bad'"),
  ],
)
def test_mistakes_in_borrowing_are_told(write, old, new, message):
  path = write(REVIEWS).with_name("others.yaml")
  path.write_text(BORROWER.replace(old, new))
  with pytest.raises(TemplateError, match=message):
    read_dataset(path)
