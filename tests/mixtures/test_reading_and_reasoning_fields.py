"""Derived fields of the datasets about reading, reasoning, maths, summaries, irony, stress and chat."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_jax.mixtures.fields import (
  closed_book_qa,
  conversation,
  irony,
  maths,
  mending,
  questions,
  reading_comprehension,
  reasoning,
  stress,
  summarisation,
)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_that_was_decoded_as_latin_1_is_repaired(text):
  assert mending.repair_encoding(text.encode().decode("latin-1")) == text


@pytest.mark.parametrize(
  "broken, sound",
  [
    ("a fine of Â£500,000", "a fine of £500,000"),
    ("La ConquĂŞte de Plassans", "La Conquête de Plassans"),
    ("â‚¬100m", "€100m"),
    ("Stéphanie Szostak – naïve", "Stéphanie Szostak – naïve"),
  ],
)
def test_broken_runs_are_repaired_and_sound_ones_stay(broken, sound):
  assert mending.repair_encoding(broken) == sound


@pytest.mark.parametrize(
  "typed, question",
  [
    ("is i am a rock by simon", "Is I am a rock by simon?"),
    ("does it sell data ?  ", "Does it sell data?"),
    ("name the planets", "Name the planets."),
    (" ? ", ""),
  ],
)
def test_search_queries_become_questions(typed, question):
  assert mending.as_question(typed) == question


@pytest.mark.parametrize(
  "typed, question",
  [
    ("where did he live", "where did he live?"),
    ("Tell me more  about him", "Tell me more about him."),
    ("Tell me more?", "Tell me more?"),
    (" ", ""),
  ],
)
def test_a_question_or_order_gets_the_mark_that_it_lacks(typed, question):
  assert questions.asked(typed) == question


@pytest.mark.parametrize("answer", ["the U.S.", "Martin Luther King Jr.", "Foible"])
def test_the_full_stop_of_an_abbreviation_stays(answer):
  assert mending.without_final_stop(answer) == answer


def test_both_parts_of_boolq_come_to_the_same_fields():
  passage = "The so-called ``King's shilling'' was paid 1949--1952."
  train = {"question": "was it paid", "passage": f"Pay -- {passage}", "idx": 3, "label": True}
  dev = {
    "question": "was it paid",
    "title": "Pay",
    "answer": "True",
    "passage": "The so-called “King's shilling” was paid 1949–1952.",
  }
  one, other = reading_comprehension.boolq(train), reading_comprehension.boolq(dev)
  assert one["passage"] == 'The so-called "King\'s shilling" was paid 1949–1952.'
  for field in ("title", "question", "label", "paragraph"):
    assert one[field] == other[field]


def test_boolq_rows_that_nobody_labelled_are_dropped():
  assert reading_comprehension.boolq({"passage": "A -- b", "question": "is it", "idx": 0}) is None


def test_links_in_a_policy_get_their_spaces_back():
  record = {
    "context": " We (or ourVendorson our behalf) may share yourPersonal Informationas needed under theTerms.",
    "question": "is it sold        ",
    "answer": "True",
  }
  fields = reading_comprehension.privacy_policy(record)
  assert fields["context"] == (
    "We (or our Vendors on our behalf) may share your Personal Information as needed under the Terms."
  )
  assert (fields["question"], fields["label"]) == ("Is it sold?", "relevant")


def test_a_missing_reader_s_answer_is_left_out():
  record = {"passage": "A\n\nb.", "question": "Who?", "answer": ["nan", "Mal. "]}
  fields = reading_comprehension.narrative_qa(record)
  assert (fields["answer"], fields["answers"], fields["passage"]) == ("Mal", ["Mal"], "A\nb.")


def test_judged_answers_count_after_the_annotators_own():
  record = {
    "question": "which season",
    "answer": ['"season\xa06"'],
    "def_correct_predictions": ["season 6", r"Seasons 6\u20137"],
  }
  fields = closed_book_qa.nq_open(record)
  assert (fields["answer"], fields["answers"]) == ("season 6", ["season 6", "Seasons 6–7"])


def test_a_question_that_goes_on_with_the_passage_keeps_its_small_letter():
  problem = {"passage": "If he buys 3,", "question": "how many are left? ", "answer": "8 toys"}
  fields = maths.asdiv(problem)
  assert fields["problem"] == "If he buys 3, how many are left?"
  assert fields["answers"] == ["8 toys", "8"]


def test_lines_of_the_web_page_are_no_news():
  story = "\n".join(
    ["Media playback is not supported on this device", "A long sentence of news. " * 10]
  )
  summary = "A sentence of no fewer than eight words in all."
  fields = summarisation.xsum({"document": story, "summary": summary})
  assert fields["document"].startswith("A long sentence")
  assert summarisation.xsum({"document": "Caption.", "summary": summary}) is None


def test_headlines_without_a_tone_are_dropped():
  def turn(text):
    return {"input": [{"role": "user", "content": text}], "ideal": "1"}

  assert irony.sarcasm(turn("life unfair")) is None
  assert irony.sarcasm(turn("bird has big plans for cage"))["label"] == "sarcastic"


def test_markdown_and_addresses_leave_a_post():
  post = {"text": r"micro\-managing men, see <url>, and I am tired of all of it", "label": "1"}
  fields = stress.dreaddit(post)
  assert fields["post"].startswith("micro-managing men, see [link],")


@pytest.mark.parametrize(
  "path, lines",
  [
    ("data/psychology.yml", ["you are cruel", "i couldn't have said it better."]),
    ("data/coding.yml", ["write a loop", "Here it is:\n```\nfor i in x: pass\n```"]),
    ("data/science.yml", ["how far is the sun", "it"]),
    ("data/emotion.yml", ["Do you feel emotions", "Do you feel emotions?"]),
    ("data/sports.yml", ["EACH YEAR IN PRO BASEBALL THE ", "The Gold Glove."]),
  ],
)
def test_replies_that_teach_nothing_are_dropped(path, lines):
  assert conversation.chatterbot({"path": path, "value": lines}) is None


def test_shouted_prompts_are_spoken():
  record = {"path": "data/sports.yml", "value": ["I PLAY SOCCER", "i see..", "why?"]}
  assert conversation.chatterbot(record) == {"prompt": "I play soccer", "response": "I see."}


@pytest.mark.parametrize(
  "content, question, options",
  [
    ("It will go\n\n A: slower\n B: faster", "It will go _____.", ["slower", "faster"]),
    ("Would it go\n\n A: slower or\n B: faster?", "Would it go _____?", ["slower", "faster"]),
    ("A _____ b\n\n A: More\n B: Less.", "A _____ b.", ["more", "less"]),
    (
      "Tanner met Ann. Who won?\n\n A: Tanner\n B: Ann",
      "Tanner met Ann. Who won?",
      ["Tanner", "Ann"],
    ),
  ],
)
def test_options_are_taken_out_of_the_chat_turn(content, question, options):
  record = {"input": [{"role": "user", "content": content}], "ideal": "B"}
  fields = reasoning.quartz(record)
  assert fields["question"] == question
  assert (fields["options"], fields["answer"]) == (options, options[1])


QUALITIES = ("poor", "sad", "thin", "short", "tiny", "little", "young", "old", "quiet", "nice")


def test_statements_are_true_exactly_if_the_rules_prove_them():
  kinds = set()
  for quality in QUALITIES:
    passage = (
      "Erin is huge. Bob is bad. Bob is dull. If someone is bad and dull then they are rough. "
      f"If someone is huge then they are fast. All rough people are {quality}."
    )
    fields = reasoning.pararule(pararule_record(passage, f"Bob is {quality}"))
    truth = {
      f"Bob is {quality}": "true",
      f"Bob is not {quality}": "false",
      f"Erin is {quality}": "false",
      f"Erin is not {quality}": "true",
    }
    assert fields["label"] == truth[fields["statement"]]
    kinds.add(fields["statement"].replace(quality, "..."))
  assert len(kinds) > 2


def test_a_passage_where_all_may_hold_of_everybody_is_dropped():
  passage = "Erin is huge. Bob is bad. If someone is not dull then they are poor."
  assert reasoning.pararule(pararule_record(passage, "Bob is not poor")) is None


def pararule_record(passage, statement):
  content = f"\nPassage: {passage} Question: {statement}. \nAnswer: "
  ideal = "false" if " not " in statement else "true"
  return {"input": [{"role": "user", "content": content}], "ideal": ideal}


def test_a_short_name_of_a_text_ignores_how_it_is_set():
  assert mending.text_key("``A''  b--c.") == mending.text_key('"A" b – C')
  assert re.fullmatch("[0-9a-f]{24}", mending.text_key("A"))
