"""Exemplars come before the query and are not learned."""

import pytest

from flan_jax.prompting import Draw, Template, TurnText, few_shot, fewer_shots

ask = Template("ask", [TurnText("Q: {q}", "{a}")])
chat = Template("chat", [TurnText("Hello", "Hi"), TurnText("Q: {q}", "{a}")])


def rendered(template: Template, number: int):
  return template.render({"q": f"question {number}", "a": f"answer {number}"}, Draw())


def test_exemplars_become_earlier_turns_without_loss():
  prompt = few_shot(rendered(ask, 0), [rendered(ask, 1), rendered(chat, 2)])
  assert [(turn.input, turn.target, turn.loss) for turn in prompt.turns] == [
    ("Q: question 1", "answer 1", False),
    ("Hello", "Hi", False),
    ("Q: question 2", "answer 2", False),
    ("Q: question 0", "answer 0", True),
  ]
  assert prompt.shots == (1, 2)


def test_options_and_golds_stay_those_of_the_query():
  query = rendered(ask, 0)
  prompt = few_shot(query, [rendered(ask, 1)])
  assert (prompt.options, prompt.golds, prompt.style, prompt.template) == (
    query.options,
    query.golds,
    query.style,
    query.template,
  )


def test_dropping_exemplars_one_by_one_ends_at_the_query():
  query = rendered(chat, 0)
  prompt = few_shot(query, [rendered(chat, 1), rendered(ask, 2)])
  assert fewer_shots(prompt) == few_shot(query, [rendered(ask, 2)])
  assert fewer_shots(fewer_shots(prompt)) == query


def test_a_prompt_without_exemplars_has_none_to_drop():
  with pytest.raises(ValueError, match="'ask' has no exemplars"):
    fewer_shots(rendered(ask, 0))
