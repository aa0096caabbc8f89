"""A talk in the terminal: what was said before is read again, as far as there is room."""

import io

import pytest
from small_assistants import assistant

from flan_jax.errors import ConfigError
from flan_jax.vocabularies import PlainFormat

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")


def said(*texts):
  roles = ("user", "assistant") * len(texts)
  return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def test_a_run_is_talked_to_and_the_same_words_get_the_same_answer(flan_jax, monkeypatch):
  flan_jax("train", *RECIPE, "--gin.STEPS=2")
  monkeypatch.setattr(
    "sys.stdin", io.StringIO(f"Hello\n\n/new\n{'x' * 90}\nHello\n/quit\nnever read\n")
  )
  done = flan_jax("chat", "runs/tuned", "--temperature=0", "--max_tokens=6", "--length=64")
  first, again = done.stdout.split("\n")[:-1]
  assert first == again
  assert "runs/tuned, step 2" in done.stderr
  assert "there is room for 64" in done.stderr  # 90 tokens, and the talk went on


def test_a_line_that_is_no_text_is_left_out_and_the_talk_goes_on(flan_jax, monkeypatch):
  flan_jax("train", *RECIPE, "--gin.STEPS=2")
  typed = io.TextIOWrapper(io.BytesIO(b"Hello\nbonjour \xff\n/new\nHello\n"), encoding="utf-8")
  monkeypatch.setattr("sys.stdin", typed)
  done = flan_jax("chat", "runs/tuned", "--temperature=0", "--max_tokens=6", "--length=64")
  first, again = done.stdout.split("\n")[:-1]
  assert first == again and "not UTF-8, and is left out" in done.stderr


def test_what_is_no_model_is_told(flan_jax):
  assert "no such" in flan_jax("chat", "runs/none", status=2).stderr.lower()


def test_the_oldest_turns_go_where_there_is_no_room_and_the_system_message_stays():
  small = assistant("small")
  system = {"role": "system", "content": "Be brief."}
  talk = [system, *said("a" * 40, "b" * 40, "c" * 40, "d" * 20, "e")]
  kept = small.shortened(talk, new=20)
  assert kept == [system, *talk[3:]]
  assert len(small.hear(kept)) <= small.room(20) < len(small.hear(talk))
  assert small.shortened(talk[:2], new=20) == talk[:2]


def test_a_plain_talk_is_turns_with_the_system_message_before_the_first():
  turns = said("Hi", "Hello.", "And?")
  assert PlainFormat("\n").conversation(turns) == "Hi\nHello.\n\nAnd?\n"
  system = {"role": "system", "content": "Be brief."}
  assert PlainFormat("\n").conversation([system, turns[0]]) == "Be brief.\n\nHi\n"
  for wrong in ([], [system], turns[:2], [turns[0], turns[0]], [turns[0], system, turns[2]]):
    with pytest.raises(ConfigError, match="a conversation goes user, assistant, user"):
      PlainFormat().conversation(wrong)
