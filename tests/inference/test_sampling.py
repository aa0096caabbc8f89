"""What is drawn from, against transformers' processors of logits; and that it is drawn as often as it should be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flan_jax.inference.sampling import (
  Sampling,
  SamplingRows,
  Text,
  choose,
  most_probable,
  without_repeats,
)

WORDS, LENGTH = 50, 24


def rows(*settings):
  return jax.tree.map(jnp.asarray, SamplingRows.of(settings))


def texts(*told):
  tokens = np.zeros((len(told), LENGTH), np.int32)
  seen = np.zeros((len(told), WORDS), bool)
  for row, text in enumerate(told):
    tokens[row, : len(text)] = text
    seen[row, text] = True
  return Text(*map(jnp.asarray, (tokens, np.array([*map(len, told)], np.int32), seen)))


TEXTS = ([1, 2, 3, 1, 2], [7, 7, 7, 7], [9], [4, 5, 4, 6, 4, 5, 4])
LOGITS = jax.random.normal(jax.random.key(0), (len(TEXTS), WORDS)) * 3

SETTINGS = (
  {"temperature": 0.6},
  {"temperature": 1.0, "top_k": 5},
  {"temperature": 1.5, "top_p": 0.8},
  {"temperature": 1.0, "min_p": 0.1},
  {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
  {"temperature": 1.0, "top_k": 500, "top_p": 1e-6},
  {"repetition_penalty": 1.7},
  {"no_repeat_ngram": 1},
  {"no_repeat_ngram": 2},
  {"no_repeat_ngram": 3, "repetition_penalty": 0.7},
)


@pytest.mark.oracle
@pytest.mark.parametrize("told", SETTINGS, ids=str)
def test_settings_leave_the_tokens_that_transformers_leaves(told):
  torch = pytest.importorskip("torch")
  from transformers.generation import logits_process as theirs

  processors = {
    "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
    "no_repeat_ngram": theirs.NoRepeatNGramLogitsProcessor,
    "temperature": theirs.TemperatureLogitsWarper,
    "top_k": theirs.TopKLogitsWarper,
    "top_p": theirs.TopPLogitsWarper,
    "min_p": theirs.MinPLogitsWarper,
  }
  each = rows(*[Sampling(**told)] * len(TEXTS))
  ours = without_repeats(LOGITS, texts(*TEXTS), each)
  if "temperature" in told:
    ours = most_probable(ours, each)
  for row, text in enumerate(TEXTS):
    scores = torch.tensor(np.array(LOGITS[row : row + 1]))
    for name in processors:
      if name in told:
        scores = processors[name](told[name])(torch.tensor([text]), scores)
    expected = scores[0].numpy()
    left = np.isfinite(expected)
    np.testing.assert_array_equal(np.asarray(ours[row]) > -1e20, left)
    np.testing.assert_allclose(ours[row][left], expected[left], rtol=1e-5)


def test_a_run_longer_than_any_text_forbids_nothing_and_takes_no_time():
  text = texts(*TEXTS[:2])
  endless = rows(*[Sampling(no_repeat_ngram=2**31 - 1)] * 2)
  np.testing.assert_array_equal(without_repeats(LOGITS[:2], text, endless), LOGITS[:2])


def test_rows_have_settings_of_their_own():
  different = [Sampling(**told) for told in SETTINGS[:4]]
  together = most_probable(LOGITS, rows(*different))
  for row, setting in enumerate(different):
    alone = most_probable(LOGITS[row : row + 1], rows(setting))
    np.testing.assert_array_equal(together[row : row + 1], alone)


def test_tokens_are_drawn_as_often_as_they_are_probable():
  setting, draws = Sampling(temperature=1.3, top_k=12, top_p=0.9), 20_000
  probable = jax.nn.softmax(most_probable(LOGITS[:1], rows(setting)))[0]
  many = rows(*[dataclasses.replace(setting, seed=seed) for seed in range(draws)])
  text = texts(TEXTS[0])
  text = jax.tree.map(lambda x: jnp.repeat(x, draws, 0), text)
  drawn, _ = choose(jnp.repeat(LOGITS[:1], draws, 0), text, many)
  counts = np.bincount(np.asarray(drawn), minlength=WORDS)
  kept = np.asarray(probable) > 0
  assert not counts[~kept].any()
  expected = draws * np.asarray(probable)[kept]
  chi_squared = float(((counts[kept] - expected) ** 2 / expected).sum())
  # The 99.99 % point of the chi-squared distribution of as many degrees of freedom, by Wilson and Hilferty.
  freedom = kept.sum() - 1
  assert chi_squared < freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_another_place_or_seed_draws_anew_and_the_same_ones_alike():
  setting, text = Sampling(temperature=5.0), texts(*[TEXTS[0]] * 64)
  logits = jnp.repeat(LOGITS[:1], 64, 0)
  one, _ = choose(logits, text, rows(*[setting] * 64))
  assert len(set(np.asarray(one).tolist())) == 1
  places = text._replace(ends=jnp.arange(64) % LENGTH)
  assert len(set(np.asarray(choose(logits, places, rows(*[setting] * 64))[0]).tolist())) > 5
  seeds = rows(*[dataclasses.replace(setting, seed=seed) for seed in range(64)])
  assert len(set(np.asarray(choose(logits, text, seeds)[0]).tolist())) > 10
