"""The derive functions of sentiment, commonsense and topic mend the noise that the sources really hold."""

import pytest

from flan_jax.mixtures.fields import commonsense, sentiment, topic


def rated(text: str, mean: float, id: str = "12_3") -> dict:
  return {"id": id, "mean": str(mean), "text": text}


class TestSentiment:
  @pytest.mark.parametrize(
    ("mean", "label"),
    [(-3.1, "negative"), (-0.5, "negative"), (0.5, "positive"), (2.9, "positive")],
  )
  def test_the_mean_rating_becomes_a_label(self, mean: float, label: str):
    example = sentiment.tweets(rated("So it goes.", mean))
    assert (example["text"], example["label"]) == ("So it goes.", label)

  def test_variants_of_a_tweet_go_together(self):
    texts = ("STUPID rain!! @mum", "Stupid rain!!!", "stupid RAIN [link]")
    assert len({sentiment.tweets(rated(text, -2))["words"] for text in texts}) == 1

  def test_ratings_near_zero_are_dropped(self):
    for derive in (sentiment.rotten_tomatoes, sentiment.amazon_snippets, sentiment.tweets):
      assert derive(rated("It has two games.", 0.45)) is None

  def test_editorials_keep_the_neutral_ones_and_their_editorial(self):
    example = sentiment.nyt_editorials(rated("The lottery was shut down.", -0.4, id="282_8"))
    assert example == {
      "text": "The lottery was shut down.",
      "label": "neutral",
      "editorial": "282",
    }

  def test_reviews_know_the_customer_review_they_come_from(self):
    example = sentiment.amazon_snippets(rated("great buy.", 2.7, id="187_1"))
    assert example is not None
    assert example["review"] == "187"

  def test_film_snippets_get_their_dashes_and_quotation_marks_back(self):
    example = sentiment.rotten_tomatoes(rated("A ''real'' treat    almost.  Go.", 1.5))
    assert example == {"text": 'A "real" treat - almost. Go.', "label": "positive"}

  @pytest.mark.parametrize(
    ("raw", "mended"),
    [
      ("i went to an at &amp;#38; t store.", "i went to an at&t store."),
      ("they refunded my $ $ $ fast.", "they refunded my $$$ fast."),
      ("it cost $ 49.99.", "it cost $49.99."),
      ('press " menu " twice.', 'press "menu" twice.'),
      ('"  this problem vanished.', "this problem vanished."),
      (") never works.", "never works."),
      (" enjoy !", "enjoy!"),
      ("what a ' toy ' it is!", "what a 'toy' it is!"),
    ],
  )
  def test_product_reviews_lose_their_tokenisation(self, raw: str, mended: str):
    example = sentiment.amazon_snippets(rated(raw, -2.0))
    assert example is not None
    assert example["text"] == mended

  def test_tweets_keep_handles_and_emoticons(self):
    example = sentiment.tweets(rated("@anonymous  I &lt;3 it! http://url_removed", 2.0))
    assert example is not None
    assert example["text"] == "@anonymous I <3 it! [link]"
    assert sentiment.tweets(rated("@anonymous :) :)", 2.4)) is not None

  def test_a_tweet_of_handles_and_links_is_dropped(self):
    assert sentiment.tweets(rated("@anonymous http://url_removed", 1.0)) is None

  def test_names_of_letter_writers_are_dropped(self):
    assert sentiment.nyt_editorials(rated("KENT GORDIS  New York, Nov. 5, 1989", 0)) is None
    assert sentiment.nyt_editorials(rated("A man sold decoys in 1986, battered.", 0)) is not None


class TestCommonsense:
  def test_lettered_options_become_a_list(self):
    record = {
      "question": "Cut  bacon.",
      "options": "A. Freeze it.\nB. Boil it. ",
      "answer": "A. Freeze it.",
    }
    assert commonsense.piqa(record) == {
      "goal": "Cut bacon.",
      "options": ["Freeze it.", "Boil it."],
      "answer": "Freeze it.",
    }

  def test_a_question_mark_left_on_the_last_option_is_taken_off(self):
    options = "\nA. coming home\nB. row boat\nC. board ship\nD. raft\nE. sail boat?"
    record = {"question": "Which boat?", "options": options, "answer": "E. sail boat"}
    example = commonsense.commonsense_qa(record)
    assert example is not None
    assert example["answer"] == example["options"][-1] == "sail boat"

  def test_a_full_stop_before_the_options_is_no_option(self):
    options = ".\nA. shelf\nB. game\nC. keg\nD. can\nE. fridge"
    record = {"question": "He settled for what?", "options": options, "answer": "D. can"}
    example = commonsense.commonsense_qa(record)
    assert example is not None
    assert example["options"] == ["shelf", "game", "keg", "can", "fridge"]

  @pytest.mark.parametrize(
    "options",
    ["A. a\nB. b\nC. b\nD. d\nE. e", "A. a\nB. b\nC. c", "A. a\nB. b\nC. c\nD. d\nE. e\nF. f"],
    ids=["repeated", "too few", "too many"],
  )
  def test_questions_without_five_different_options_are_dropped(self, options: str):
    record = {"question": "Which?", "options": options, "answer": "A. a"}
    assert commonsense.commonsense_qa(record) is None

  def test_a_chat_turn_becomes_situation_question_and_options(self):
    content = "Ann met Dr. Bo. She ran. How would Bo feel? A: fine; B: sad, alone; C: glad."
    record = {"input": [{"role": "user", "content": content}], "ideal": "B"}
    assert commonsense.social_iqa(record) == {
      "situation": "Ann met Dr. Bo. She ran.",
      "question": "How would Bo feel?",
      "options": ["fine", "sad, alone", "glad"],
      "answer": "sad, alone",
    }

  def test_web_pages_pasted_into_an_option_are_dropped(self):
    content = f"Ann ran. Why did Ann do this? A: {'read more ' * 30}; B: sad; C: glad."
    record = {"input": [{"role": "user", "content": content}], "ideal": "B"}
    assert commonsense.social_iqa(record) is None


def mail(text: str, group: str = "easy-ham-1") -> dict:
  return {"id": "1", "group": group, "text": text}


PLAIN = "From: a@b.c\nSubject: {subject}\n\nShall we meet on Monday or later?\n{rest}"


class TestNews:
  def test_headline_and_body_are_parted_and_the_folder_is_the_topic(self):
    record = {"path": "x/data/tech/001.txt", "text": "Phones sell\n\nThey  do.\n\nMore follow.\n"}
    assert topic.bbc_news(record) == {
      "headline": "Phones sell",
      "body": "They do.\nMore follow.",
      "topic": "tech",
      "story": "they do more follow",
    }

  @pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
  def test_either_encoding_of_the_files_is_read_right(self, encoding: str):
    text = "Profit up\n\nIt rose to £5m &lt; £6m.".encode(encoding).decode("latin-1")
    example = topic.bbc_news({"path": "x/data/business/001.txt", "text": text})
    assert example is not None
    assert example["body"] == "It rose to £5m < £6m."


class TestMail:
  def test_headers_list_tags_and_list_footers_are_taken_out(self):
    footer = "_" * 47 + "\nRPM mailing list <rpm@b.c>\nhttp://b.c/mailman/listinfo/rpm\n"
    example = topic.spam_assassin(mail(PLAIN.format(subject="Re: [RPM] Monday", rest=footer)))
    assert example == {
      "subject": "Re: Monday",
      "body": "Shall we meet on Monday or later?",
      "label": "ham",
      "thread": "monday",
    }

  def test_answers_share_the_thread_of_what_they_answer(self):
    threads = {
      topic.spam_assassin(mail(PLAIN.format(subject=subject, rest="")))["thread"]
      for subject in ("Monday", "Re: Monday", "[ILUG] RE: Monday", "Fwd: Re: Monday")
    }
    assert threads == {"monday"}

  def test_the_same_advertisement_under_two_subjects_is_one_thread(self):
    threads = {
      topic.spam_assassin(mail(PLAIN.format(subject=subject, rest=""), "spam-2"))["thread"]
      for subject in ("Act now", "You have won xyzzy")
    }
    assert len(threads) == 1

  def test_encoded_subjects_and_bodies_are_decoded(self):
    text = (
      "Subject: =?iso-8859-1?q?Gr=FC=DFe?=\nContent-Type: text/plain; charset=iso-8859-1\n"
      "Content-Transfer-Encoding: quoted-printable\n\nViele liebe Gr=FC=DFe an alle Freunde aus K=F6=\nln."
    )
    example = topic.spam_assassin(mail(text))
    assert example is not None
    assert (example["subject"], example["body"]) == (
      "Grüße",
      "Viele liebe Grüße an alle Freunde aus Köln.",
    )

  def test_html_mails_become_their_text(self):
    text = (
      "Subject: Offer\nContent-Type: text/html\n\n<html><head><style>p {color: red}</style></head>"
      "<body><p>Buy &amp; save</p><p>while stocks last</p></body></html>"
    )
    example = topic.spam_assassin(mail(text, "spam-1"))
    assert example is not None
    assert example["body"] == "Buy & save\nwhile stocks last"
    assert example["label"] == "spam"

  def test_apostrophes_lost_by_the_archive_come_back(self):
    example = topic.spam_assassin(
      mail(PLAIN.format(subject="S", rest="I don\ufffdt know \ufffd yet"))
    )
    assert example is not None
    assert example["body"].endswith("I don't know - yet")

  @pytest.mark.parametrize(
    "body", ["<img src='x.gif'>", "buy", "\ufffd\ufffd\ufffd\ufffd one two three four"]
  )
  def test_mails_without_readable_text_are_dropped(self, body: str):
    assert topic.spam_assassin(mail(f"Subject: Hello\n\n{body}")) is None
