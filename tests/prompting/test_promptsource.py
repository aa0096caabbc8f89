"""promptsource's templates, read by us: small ones of every kind, and all 2,085 against promptsource itself."""

import copy
import json

import pytest
import yaml

from flan_jax.errors import RecordError, TemplateError
from flan_jax.prompting import DoesNotApply, Draw, promptsource, read_dataset
from flan_jax.prompting.promptsource import VALUE_LIMIT, PromptsourceTemplate, read_promptsource

from . import promptsource_itself
from .promptsource_examples import drawn_out, examples, lengthened, raw_records


def template(jinja, answer_choices=None, **more):
  return PromptsourceTemplate("Is it so?", jinja, answer_choices=answer_choices, **more)


def rendered(jinja, record, answer_choices=None, limit=None, seed=0):
  return template(jinja, answer_choices).render(record, Draw(seed), limit)


def test_input_and_target_stand_on_two_sides_of_the_bars():
  shown = rendered(
    "{{text}}\nGood?\n|||\n{{ answer_choices[label] }}", {"text": "Fun", "label": 1}, "no ||| yes"
  )
  assert (shown.turns[-1].input, shown.turns[-1].target) == ("Fun\nGood?", "yes")
  assert (shown.options, shown.golds, shown.style) == (("no", "yes"), ("yes",), "none")
  assert shown.template == "Is_it_so"


def test_a_target_that_is_no_choice_is_free_text():
  shown = rendered(
    "{{text}} ||| because it is {{answer_choices[0]}}", {"text": "Why?"}, "no ||| yes"
  )
  assert (shown.options, shown.golds) == ((), ("because it is no",))


def test_bars_in_fields_lists_and_mappings_are_text():
  record = {"text": "a|||b", "more": ["c ||| d", {"e": "f|||g"}]}
  shown = rendered("{{text}} {{more[0]}} ||| {{more[1].e}}", record)
  assert (shown.turns[-1].input, shown.turns[-1].target) == ("a|||b c ||| d", "f|||g")
  shown = rendered("{{text}}?|||{{text}}", record, "{{text}} ||| {{more | first}}")
  assert shown.options == ("a|||b", "c ||| d")


def test_a_template_can_split_a_text_at_its_bars():
  jinja = (
    '{% for part in text.split("3ed2dface8203c4c9dfb1a5dc58e41e0||") %}<{{part}}>{% endfor %} ||| x'
  )
  assert rendered(jinja, {"text": "one|||||two"}).turns[-1].input == "<one><two>"


@pytest.mark.parametrize(
  "expression", ["text", '"" + text + ""', "[text, text] | join", "text.lower() ~ text"]
)
def test_a_value_is_cut_whatever_expression_it_comes_from(expression):
  text = "word " * 1000
  shown = rendered("{{" + expression + "}} ||| x", {"text": text})
  assert VALUE_LIMIT - 8 < len(shown.turns[-1].input) <= VALUE_LIMIT
  assert shown.turns[-1].input.endswith("word...")


def test_a_shorter_limit_cuts_values_of_the_input_alone():
  record = {"text": "one two three four five", "answer": "six seven eight nine ten"}
  shown = rendered("Read: {{text}} ||| {{answer}}", record, limit=12)
  assert shown.turns[-1] == promptsource.Turn("Read: one two...", record["answer"])


def test_choices_are_drawn_by_example_and_never_by_the_global_state():
  jinja = '{{ ["a", "b", "c"] | choice }}{{ range(9) | random }} ||| x'
  texts = [rendered(jinja, {}, seed=seed).turns[-1].input for seed in range(200)]
  assert texts == [rendered(jinja, {}, seed=seed).turns[-1].input for seed in range(200)]
  assert len(set(texts)) == 27


def test_the_most_frequent_items_are_all_of_them_in_order():
  shown = rendered(
    "{{ votes | most_frequent | join(', ') }} ||| x", {"votes": ["b", "a", "b", "a", "c"]}
  )
  assert shown.turns[-1].input == "b, a"


@pytest.mark.parametrize(
  "jinja", ["{% if label == 1 %} a ||| b {% endif %}", "{{text}} |||", "a ||| b ||| c", "a"]
)
def test_a_template_that_gives_no_input_and_target_is_not_for_this_record(jinja):
  with pytest.raises(DoesNotApply, match="'Is it so\\?' does not give one input and one target"):
    rendered(jinja, {"label": 0, "text": ""})


def test_what_an_expression_raises_names_the_template():
  with pytest.raises(RecordError, match="'Is it so\\?' fails with TypeError"):
    rendered("{{ text + 1 }} ||| x", {"text": "a"})
  with pytest.raises(RecordError, match="'Is it so\\?' fails with SecurityError"):
    rendered("{{ ''.__class__.__mro__ }} ||| x", {})
  with pytest.raises(TemplateError, match="'Is it so\\?': Unexpected end of template"):
    template("{% if text %} a ||| b")


def test_what_the_dataset_was_not_made_for_is_trained_on_and_not_judged():
  assert template("a ||| b", original_task=False).turned_around
  assert template("a ||| b", metrics=["BLEU", "ROUGE"]).metrics == (
    "rougeL",
    "rouge1",
    "rouge2",
    "bleu",
  )
  assert template("a ||| b", "b ||| c", metrics=["Other"]).metrics == ("accuracy",)


FILE = """
dataset: glue
subset: mrpc
templates:
  11: !Template
    answer_choices: no ||| yes
    id: 11
    jinja: '{{sentence1}} {{sentence2}} Same? ||| {{answer_choices[label]}}'
    metadata: !TemplateMetadata {choices_in_prompt: false, metrics: [Accuracy], original_task: true}
    name: same?
    reference: ''
  12: !Template
    answer_choices: null
    id: 12
    jinja: '{% if label == 1 %}Say otherwise: {{sentence1}} ||| {{sentence2}}{% endif %}'
    metadata: !TemplateMetadata {choices_in_prompt: null, metrics: [BLEU], original_task: false}
    name: generate
    reference: ''
"""
DATASET = """
cluster: paraphrase
description: Do two sentences say the same?
source: {files: pairs.jsonl}
splits: {train: 0.5, test: 0.5}
templates: {promptsource: templates.yaml}
record: {sentence1: A dog barked., sentence2: A dog was barking., label: 0}
"""


@pytest.fixture
def dataset(tmp_path):
  folder = tmp_path / "paraphrase"
  folder.mkdir()
  (folder / "templates.yaml").write_text(FILE)

  def write(text=DATASET):
    (folder / "pairs_of_mine.yaml").write_text(text)
    return folder / "pairs_of_mine.yaml"

  return write


def test_a_dataset_file_takes_its_templates_from_promptsource(dataset):
  spec = read_dataset(dataset())
  assert [t.name for t in spec.training_templates()] == ["same", "generate"]
  assert [t.name for t in spec.evaluation_templates()] == ["same"]
  assert spec.metrics == ("accuracy",)
  raw = {"sentence1": " A ", "label": 1, "more": {"kept": [1, None]}}
  assert spec.derive_record(raw) == raw
  less = read_dataset(
    dataset(DATASET.replace("templates.yaml}", "templates.yaml, without: [generate]}"))
  )
  assert [t.name for t in less.templates] == ["same"]
  assert (
    less.fingerprint != spec.fingerprint and less.records_fingerprint == spec.records_fingerprint
  )


def test_another_word_in_promptsource_s_file_changes_the_fingerprint(dataset):
  path = dataset()
  before = read_dataset(path)
  words = path.with_name("templates.yaml")
  words.write_text(FILE.replace("Same?", "The same?"))
  assert read_dataset(path).fingerprint != before.fingerprint


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    (
      "templates.yaml}",
      "templates.yaml, without: [generat]}",
      "unknown template 'generat'; did you mean 'generate'",
    ),
    ("templates.yaml}", "other.yaml}", "there is no such file of promptsource's templates"),
    ("templates.yaml}", "glue/mrpc}", "'glue/mrpc' is no path to a templates.yaml"),
    ("splits:", "fields: {sentence1: text}\nsplits:", "unknown key 'fields'"),
    ("label: 0}", "label: 7}", "no template is for the record: template 'same\\?' does not"),
  ],
)
def test_mistakes_are_told_with_file_and_line(dataset, old, new, message):
  with pytest.raises(TemplateError, match=f"pairs_of_mine.yaml:\\d+: .*{message}"):
    read_dataset(dataset(DATASET.replace(old, new)))


def by_content(items):
  """A choice that depends on nothing but the items, so that two readers make the same."""
  items = list(items)
  return items[sum(map(ord, json.dumps(items, default=str))) % len(items)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
  """promptsource itself, and its folder of templates."""
  return promptsource_itself.load(tmp_path_factory.mktemp("promptsource"))


# Templates that promptsource cuts in the wrong place, since its filter acts on the last operand of `+` alone: in these
# the text's first letter, made small, stands before the cut rest, and 2,048 characters become one or two more.
REPAIRED = {
  ("piqa", "Correct the solution if false: from sol 1"),
  ("piqa", "Correct the solution if false: from sol 2"),
  ("piqa", "Does this solution make sense? sol1"),
}


@pytest.mark.oracle
@pytest.mark.network
@pytest.mark.slow
def test_every_template_gives_promptsource_s_text(collection, monkeypatch):
  module, folder = collection
  for environment in (module.env, promptsource._environment):
    for name in ("choice", "random"):
      monkeypatch.setitem(environment.filters, name, by_content)
  compared, never, more, otherwise = 0, [], raw_records(), set()
  for path in sorted(folder.glob("**/templates.yaml")):
    theirs = list(yaml.load(path.read_text(), yaml.FullLoader)["templates"].values())
    ours = read_promptsource(path)
    assert [t.name for t in theirs] == [t.title for t in ours]
    jinjas = [jinja for t in theirs for jinja in (t.jinja, t.answer_choices) if jinja]
    records = [*examples(jinjas, 4), *more.get(str(path.parent.relative_to(folder)), ())]
    records.append(lengthened(records[-1], 1.3 * VALUE_LIMIT))
    long = list(map(drawn_out, records))
    for their, our in zip(theirs, ours, strict=True):
      if any(differ(their, our, record) for record in long):
        otherwise.add((str(path.parent.relative_to(folder)), our.title))
      texts = [(parts_of(their, record), our_parts_of(our, record)) for record in records]
      for one, other in texts:
        assert one == other, (path, our.title)
      compared += 1
      if not any(len(one[0]) == 2 and all(one[0]) for one, _ in texts):
        never.append(f"{path.parent.relative_to(folder)}: {our.title}")
  assert compared == 2085 and not never, never
  assert otherwise == REPAIRED


def differ(their, our, record):
  """Whether the two give different texts of a record of which promptsource gives any."""
  parts, choices = parts_of(their, record)
  return bool(parts) and (parts, choices) != our_parts_of(our, record)


def parts_of(template, record):
  try:
    return template.apply(copy.deepcopy(record)), template.get_answer_choices_list(
      copy.deepcopy(record)
    )
  except Exception:  # whatever Jinja raises
    return [], None


def our_parts_of(template, record):
  try:
    return template.parts(copy.deepcopy(record), Draw(0))
  except RecordError:
    return [], None
