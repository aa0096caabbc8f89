"""Rendering: what goes in is shown as it is, and the answer agrees with the options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_jax.errors import RecordError
from flan_jax.prompting import Answer, Draw, Template, TurnText
from flan_jax.prompting.field_values import shortened
from flan_jax.prompting.placeholders import PlaceholderError

LABELS = {"neg": "negative", "neu": "neutral", "pos": "positive"}

filled = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
seeds = st.integers(0, 1000)


def template(source: str, target: str, **settings) -> Template:
  return Template("tried", [TurnText(source, target)], **settings)


def query(rendering):
  return rendering.turns[-1]


def sentiment(source="Text: {text}\n{options}", target="{answer}", **settings) -> Template:
  answer = Answer("label", labels=LABELS, shuffled=settings.pop("shuffled", False))
  return template(source, target, answer=answer, **{"options": "any", **settings})


def multiple_choice(source="{question}\n{options}", target="{answer}", **settings) -> Template:
  answer = Answer("answer", options_field="options", shuffled=settings.pop("shuffled", True))
  return template(source, target, answer=answer, **{"options": "any", **settings})


@given(filled, filled, filled)
def test_fields_are_filled_in_as_python_formats_them(first, second, third):
  source, target = "{a}: 100% {{sure}}\n{b}? {a}", "{{{c}}}"
  record = {"a": first, "b": second, "c": third}
  turn = query(template(source, target).render(record, Draw()))
  stripped = {name: value.strip() for name, value in record.items()}
  assert turn.input == source.format_map(stripped).strip()
  assert turn.target == target.format_map(stripped)


@pytest.mark.parametrize(
  "value", ["{b}", "{answer} {options}", "%s %(b)s %", "{{", "}", "\\n {0!r}"]
)
def test_nothing_in_a_field_is_interpreted(value):
  turn = query(template("Say {a}.", "{a}").render({"a": value, "b": "wrong"}, Draw()))
  assert turn.input == f"Say {value}."
  assert turn.target == value


@given(filled, st.sampled_from(sorted(LABELS)), seeds)
def test_options_and_text_are_all_shown_and_the_target_is_a_candidate(text, label, seed):
  rendering = sentiment(shuffled=True).render({"text": text, "label": label}, Draw(seed))
  turn = query(rendering)
  assert text.strip() in turn.input
  assert all(words in turn.input for words in LABELS.values())
  assert len(rendering.options) == 3
  assert rendering.golds == (turn.target,)
  assert turn.target in rendering.options


@given(st.lists(filled, min_size=2, max_size=40), st.data(), seeds)
def test_the_letter_of_the_target_stands_before_the_right_words(options, data, seed):
  gold = data.draw(st.sampled_from(options))
  record = {"question": "Which?", "options": options, "answer": gold}
  rendering = multiple_choice(options="letters").render(record, Draw(seed))
  turn = query(rendering)
  assert rendering.style == "letters"
  assert f"({turn.target}) {gold.strip()}" in turn.input
  assert turn.target in rendering.golds
  assert set(rendering.golds) <= set(rendering.options)
  right = [option.strip() == gold.strip() for option in options]
  assert len(rendering.golds) == sum(right)


@given(filled, seeds)
def test_the_same_draw_gives_the_same_rendering(text, seed):
  record = {"text": text, "label": "pos"}
  draw = Draw(seed)
  first = sentiment(shuffled=True).render(record, draw)
  draw.bits()
  assert sentiment(shuffled=True).render(record, draw) == first
  assert sentiment(shuffled=True).render(record, Draw(seed)) == first


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 30), seeds)
def test_shortening_changes_the_long_field_and_nothing_else(text, limit, seed):
  shown = sentiment(shuffled=True, long="text")
  record = {"text": text, "label": "pos"}
  whole = shown.render(record, Draw(seed))
  cut = shown.render(record, Draw(seed), limit)
  assert (cut.style, cut.options, cut.golds) == (whole.style, whole.options, whole.golds)
  kept = shortened(text.strip(), limit)
  assert query(cut).input == query(whole).input.replace(f"Text: {text.strip()}", f"Text: {kept}", 1)


def test_every_style_is_drawn_and_every_order():
  record = {"text": "Fine.", "label": "neu"}
  drawn = [sentiment(shuffled=True).render(record, Draw(seed)) for seed in range(200)]
  assert {rendering.style for rendering in drawn} == {"list", "letters", "inline"}
  orders = {rendering.options for rendering in drawn if rendering.style == "list"}
  assert len(orders) == 6


def test_a_fixed_order_is_the_order_of_the_file():
  record = {"text": "Fine.", "label": "neu"}
  for seed in range(20):
    rendering = sentiment(options="list").render(record, Draw(seed))
    assert rendering.options == ("negative", "neutral", "positive")


def test_options_inside_a_sentence_are_only_ever_inline():
  inside = sentiment("Is this {options}? {text}")
  assert inside.styles == ("inline",)
  assert query(inside.render({"text": "Fine.", "label": "neu"}, Draw())).input == (
    "Is this negative, neutral or positive? Fine."
  )


def test_options_that_take_lines_begin_a_new_one():
  shown = sentiment("{text} Choose: {options}\nNow.", options="list")
  assert query(shown.render({"text": "Fine.", "label": "neu"}, Draw())).input == (
    "Fine. Choose:\n- negative\n- neutral\n- positive\nNow."
  )


def test_a_cloze_scores_its_whole_target_for_each_option():
  cloze = sentiment("{text} The film is ___.", "The film is {answer}.", options="none")
  rendering = cloze.render({"text": "Fine.", "label": "neu"}, Draw())
  assert rendering.options == tuple(f"The film is {words}." for words in LABELS.values())
  assert rendering.golds == ("The film is neutral.",)
  assert rendering.style == "none"


def test_a_cloze_in_letters_holds_the_letter():
  cloze = sentiment("{text}\n{options}", "It is {answer}.", options="letters")
  rendering = cloze.render({"text": "Fine.", "label": "neu"}, Draw())
  assert rendering.options == ("It is A.", "It is B.", "It is C.")
  assert query(rendering).target == "It is B."


def test_a_template_may_use_other_words():
  other = sentiment(options="none", source="{text}", choices={"neg": "-", "neu": "0", "pos": "+"})
  rendering = other.render({"text": "Fine.", "label": "neu"}, Draw())
  assert rendering.options == ("-", "0", "+")
  assert query(rendering).target == "0"


def test_options_with_the_same_text_keep_their_places_and_are_all_right():
  record = {"question": "Which?", "options": ["x", "y", "x"], "answer": "x"}
  letters = multiple_choice(options="letters", shuffled=False).render(record, Draw())
  assert letters.options == ("A", "B", "C")
  assert letters.golds == ("A", "C")
  listed = multiple_choice(options="list", shuffled=False).render(record, Draw())
  assert listed.options == ("x", "y", "x")
  assert listed.golds == ("x",)


def test_turned_around_the_answer_is_given_and_the_target_is_free_text():
  back = sentiment("Write a {answer} review.", "{text}", options="none", turned_around=True)
  rendering = back.render({"text": "Fine.", "label": "neu"}, Draw())
  assert query(rendering).input == "Write a neutral review."
  assert rendering.options == ()
  assert rendering.golds == ("Fine.",)


def test_free_text_accepts_every_gold_answer_in_the_words_of_the_target():
  free = template("{question}", "It was {answer}.", answer=Answer("reply", golds_field="replies"))
  record = {"question": "Who?", "reply": "Ada", "replies": ["Ada", "Ada Lovelace", "Ada"]}
  rendering = free.render(record, Draw())
  assert query(rendering).target == "It was Ada."
  assert rendering.golds == ("It was Ada.", "It was Ada Lovelace.")
  assert rendering.options == ()


def test_turns_follow_each_other_and_the_last_is_the_query():
  chat = Template(
    "chat",
    [TurnText("Here: {text}", "And?", loss=False), TurnText("Is it good?", "{answer}")],
    answer=Answer("label", labels=LABELS),
  )
  rendering = chat.render({"text": "Fine.", "label": "pos"}, Draw())
  assert [(turn.input, turn.target, turn.loss) for turn in rendering.turns] == [
    ("Here: Fine.", "And?", False),
    ("Is it good?", "positive", True),
  ]
  assert rendering.options == ("negative", "neutral", "positive")


def test_truth_values_and_numbers_are_read_as_json_writes_them():
  turn = query(template("{a} {b} {c}", "{a}").render({"a": True, "b": 7, "c": 0.5}, Draw()))
  assert turn.input == "true 7 0.5"


@pytest.mark.parametrize(
  ("record", "message"),
  [
    ({"text": "Fine.", "label": "positiv"}, r"'label' is 'positiv'; .*choices are 'neg', 'neu'"),
    ({"text": "Fine.", "label": "poss"}, "did you mean 'pos'"),
    ({"txt": "Fine.", "label": "pos"}, "field 'text' is missing; did you mean 'txt'"),
    ({"text": None, "label": "pos"}, "field 'text' should be text, not null"),
    ({"text": ["Fine."], "label": "pos"}, "field 'text' should be text, not list"),
  ],
)
def test_a_record_that_does_not_fit_is_refused(record, message):
  with pytest.raises(RecordError, match=message):
    sentiment().render(record, Draw())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["x", "y"], "'z' .field 'answer'. is not among the options"),
    (["z"], "at least two options"),
    (["z", " "], "none empty"),
    ("z", "should be a list of texts"),
  ],
)
def test_options_that_do_not_fit_the_answer_are_refused(options, message):
  with pytest.raises(RecordError, match=message):
    multiple_choice().render({"question": "?", "options": options, "answer": "z"}, Draw())


@pytest.mark.parametrize(("source", "target"), [("{a}", "{b}"), ("{b}", "{a}")])
def test_neither_input_nor_target_may_come_out_empty(source, target):
  with pytest.raises(RecordError, match="template 'tried': the (input|target) is empty"):
    template(source, target).render({"a": "full", "b": "  "}, Draw())


@pytest.mark.parametrize(
  "text", ["{a.b}", "{a!r}", "{a:>3}", "{}", "{0}", "{a", "a}", "{ a }", "{a[0]}"]
)
def test_only_a_field_can_stand_in_braces(text):
  with pytest.raises(PlaceholderError, match="only {field} can stand in braces"):
    template(f"Read {text}", "{a}")


@given(st.text(min_size=1), st.integers(0, 40))
def test_a_shortened_text_is_a_beginning_cut_between_words(text, limit):
  text = text.strip()
  kept = shortened(text, limit)
  assert text.startswith(kept)
  assert len(kept) <= limit
  if len(text) <= limit:
    assert kept == text
    return
  word_ends = [
    end for end in range(1, limit + 1) if text[end].isspace() and not text[end - 1].isspace()
  ]
  assert len(kept) == max(word_ends, default=limit)
