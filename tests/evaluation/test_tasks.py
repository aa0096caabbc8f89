"""Which examples are scored, and what a model is given of them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_jax.errors import ConfigError, EvaluationError, UnknownName
from flan_jax.evaluation.tasks import EvaluationTask, draw_examples, prepare_task


@pytest.fixture
def prepare(reviews, questions, capitals, encoder_of, dataset_files):
  known = {"reviews": reviews, "questions": questions, "capitals": capitals}

  def run(task: EvaluationTask, layout: str = "decoder", **lengths):
    spec, records = known[task.dataset]
    encoder = encoder_of(layout, **lengths)
    return prepare_task(task, encoder, dataset_files, spec=spec, records=records)

  return run


@given(st.integers(1, 300), st.integers(1, 100), st.integers(0, 5))
def test_a_larger_draw_holds_the_smaller_one(size, count, seed):
  few = draw_examples("boolq", size, count, seed)
  more = draw_examples("boolq", size, count + 7, seed)
  assert set(few) <= set(more) and len(few) == min(size, count)
  assert few == sorted(few)


def test_another_seed_or_dataset_draws_other_examples():
  assert draw_examples("a", 1000, 50, 0) != draw_examples("a", 1000, 50, 1)
  assert draw_examples("a", 1000, 50, 0) != draw_examples("b", 1000, 50, 0)
  assert draw_examples("a", 10, None, 0) == list(range(10))


def test_every_template_gets_the_same_examples(prepare):
  prepared = prepare(EvaluationTask("reviews", examples=9))
  assert [t.name for t in prepared.templates] == ["verdict_first", "words_only"]
  assert [t.unseen for t in prepared.templates] == [False, True]
  for template in prepared.templates:
    assert tuple(prompt.index for prompt in template.prompts) == prepared.indices
  assert len(prepared.indices) == 9


def test_labels_follow_the_options_through_letters_and_shuffling(prepare, reviews):
  _, records = reviews
  prepared = prepare(EvaluationTask("reviews", examples=None))
  orders = set()
  for prompt in prepared.templates[0].prompts:
    assert prompt.options == ("A", "B")
    orders.add(prompt.labels)
    shown = prompt.inputs.splitlines()[-2:]
    words = {"negative": "bad", "positive": "good"}
    assert shown == [f"({x}) {words[y]}" for x, y in zip("AB", prompt.labels, strict=True)]
    gold = prompt.labels[prompt.options.index(prompt.golds[0])]
    assert gold == records["test"][prompt.index]["label"]
  assert orders == {("negative", "positive"), ("positive", "negative")}


def test_options_of_each_record_are_counted_by_position(prepare):
  template = prepare(EvaluationTask("questions", examples=None)).templates[0]
  assert not template.fixed_labels
  assert {len(prompt.options) for prompt in template.prompts} == {2, 3, 4}
  for prompt in template.prompts:
    assert prompt.labels == tuple(str(k + 1) for k in range(len(prompt.options)))


@pytest.mark.parametrize("layout", ["decoder", "encoder_decoder"])
def test_prompt_and_option_spell_the_whole_text(prepare, layout):
  prepared = prepare(EvaluationTask("reviews", examples=3), layout)
  prompt = prepared.templates[1].prompts[0]

  def text(ids):
    return bytes(i - 3 for i in ids if i >= 3).decode()

  assert text(prompt.input_ids).strip() == prompt.inputs.strip()
  for option, ids, end in zip(prompt.options, prompt.option_ids, prompt.ends, strict=True):
    assert text(ids) == option
    assert (ids[-1], end) == (1, 1)


def test_exemplars_come_from_training_and_other_groups(prepare, reviews):
  _, records = reviews
  prepared = prepare(EvaluationTask("reviews", examples=5, shots=2), inputs=600)
  train = {record["text"] for record in records["train"]}
  for prompt in prepared.templates[1].prompts:
    *exemplars, query = prompt.inputs.split("\n\n")
    assert len(exemplars) == 2 and len(set(exemplars)) == 2
    assert all(text.split(" The film was")[0] in train for text in exemplars)
    assert query.startswith(records["test"][prompt.index]["text"])


class Rows(list):
  """Records that are each a group by themselves."""

  def group(self, index):
    return hash(self[index]["text"] + self[index]["label"])


def test_a_training_record_that_asks_the_same_is_no_exemplar(reviews, encoder_of, tmp_path):
  spec, _ = reviews
  train = Rows({"text": f"Film {i}.", "label": "positive"} for i in range(4))
  records = {"train": train, "test": Rows([{"text": "film  0.", "label": "negative"}])}
  for seed in range(9):
    task = EvaluationTask("reviews", examples=None, seed=seed, shots=3)
    prepared = prepare_task(task, encoder_of("decoder", 600), tmp_path, spec=spec, records=records)
    for template in prepared.templates:
      assert template.prompts[0].inputs.casefold().count("film 0.") == 0
      assert all(f"Film {i}." in template.prompts[0].inputs for i in (1, 2, 3))
  with pytest.raises(EvaluationError, match="has only 3 records .* that ask something else"):
    task = EvaluationTask("reviews", examples=None, shots=4)
    prepare_task(task, encoder_of("decoder", 600), tmp_path, spec=spec, records=records)


def test_too_many_exemplars_are_refused(prepare):
  with pytest.raises(EvaluationError, match=r"reviews: 99 exemplars .* has only \d+ records"):
    prepare(EvaluationTask("reviews", shots=99))


def test_what_does_not_fit_is_an_error_that_names_it(prepare):
  with pytest.raises(
    EvaluationError, match=r"questions.pick_one: example \d+ of test .*unfit='count'"
  ):
    prepare(EvaluationTask("questions"), inputs=10, targets=10)


def test_or_is_counted_and_left_out_under_every_template(prepare):
  task = EvaluationTask("questions", examples=None, unfit="count")
  everything = prepare(task)
  sizes = [
    len(p.input_ids) + max(map(len, p.option_ids)) - 1 for p in everything.templates[0].prompts
  ]
  middle = sorted(sizes)[len(sizes) // 2]
  prepared = prepare(task, inputs=middle - 10, targets=10)
  assert prepared.unfit and prepared.indices
  assert {*prepared.unfit, *prepared.indices} == {*everything.indices}
  assert len(prepared.templates[0].prompts) == len(prepared.indices)


def test_the_fingerprint_knows_everything_a_model_is_given(prepare):
  task = EvaluationTask("reviews", examples=4)
  first = prepare(task).templates[0].fingerprint
  assert prepare(task).templates[0].fingerprint == first
  for other in (dataclasses.replace(task, examples=5), dataclasses.replace(task, seed=1)):
    assert prepare(other).templates[0].fingerprint != first


def test_a_prompt_without_content_shows_the_same_options(reviews, encoder_of, dataset_files):
  spec, records = reviews
  prepared = prepare_task(
    EvaluationTask("reviews", examples=9),
    encoder_of("decoder"),
    dataset_files,
    spec=spec,
    records=records,
    content_free=True,
  )
  for template in prepared.templates:
    for prompt in template.prompts:
      text = records["test"][prompt.index]["text"]
      assert [p.inputs.split() for p in prompt.content_free] == [
        prompt.inputs.replace(text, content).split() for content in ("N/A", "", "[MASK]")
      ]
      assert {p.labels for p in prompt.content_free} == {prompt.labels}


def test_the_fingerprint_does_not_know_the_metrics(prepare):
  template = prepare(EvaluationTask("reviews", examples=4)).templates[0]
  other = dataclasses.replace(template, metrics=("matthews",))
  assert other.fingerprint == template.fingerprint


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"split": "tset"}, UnknownName, "'test'"),
    ({"templates": ("verdict_frist",)}, UnknownName, "'verdict_first'"),
    ({"templates": ("write_one",)}, EvaluationError, "given the answer"),
  ],
)
def test_wrong_names_are_answered_with_the_nearest(prepare, change, error, message):
  with pytest.raises(error, match=message):
    prepare(EvaluationTask("reviews", **change))


@pytest.mark.parametrize("change", [{"examples": 0}, {"shots": -1}, {"unfit": "drop"}])
def test_impossible_settings_are_refused(change):
  with pytest.raises(ConfigError, match="reviews"):
    EvaluationTask("reviews", **change)


def test_templates_of_another_metric_are_another_task(prepare):
  (other,) = prepare(EvaluationTask("capitals", templates=("to_the_letter",))).templates
  assert other.metrics == ("exact_match",)
  with pytest.raises(EvaluationError, match="f1: name_it; exact_match: to_the_letter"):
    prepare(EvaluationTask("capitals", templates=("name_it", "to_the_letter")))
