"""The objectives of pretraining against `t5.data.preprocessors`, mask by mask and in distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.data.objectives import (
  LM,
  PrefixLM,
  SpanCorruption,
  random_spans_mask,
  split_seed,
  uniform,
  with_sentinels,
)
from flan_jax.errors import ConfigError
from flan_jax.vocabularies import ByteVocabulary

SEEDS = [(0, 0), (1, 2), (-5, 7), (2**31 - 1, -(2**31))]


@pytest.fixture(scope="module")
def tf():
  return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def preprocessors(tf):
  return pytest.importorskip("t5.data.preprocessors")


@pytest.fixture(scope="module")
def features():
  import seqio

  vocabulary = seqio.ByteVocabulary(extra_ids=100)
  return {"inputs": seqio.Feature(vocabulary), "targets": seqio.Feature(vocabulary)}


def vocabulary() -> ByteVocabulary:
  return ByteVocabulary(extra_ids=100)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_numbers_are_those_of_tensorflow(tf, seed):
  np.testing.assert_array_equal(uniform(seed, 13), tf.random.stateless_uniform([13], seed).numpy())
  split = tf.random.experimental.stateless_split(tf.constant(seed, tf.int32), 6)
  assert split_seed(seed, 6) == [tuple(pair) for pair in split.numpy().tolist()]


@pytest.mark.parametrize("length", [2, 3, 5, 17, 141, 568])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.3, 8.0), (0.15, 1.0)])
def test_a_seed_gives_the_mask_that_t5_draws(preprocessors, tf, length, density, mean):
  for k in range(3):
    seeds = [(k, length), (length, k + 9)]
    theirs = preprocessors.random_spans_noise_mask(length, density, tf.constant(seeds), mean)
    np.testing.assert_array_equal(random_spans_mask(length, density, mean, seeds), theirs.numpy())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", [2, 40, 141])
def test_a_seed_gives_the_inputs_and_targets_that_t5_makes(
  preprocessors, tf, features, seed, length
):
  tokens = np.random.default_rng(length).integers(3, 259, length).astype(np.int32)
  ways = {
    SpanCorruption(): {
      "noise_density": 0.15,
      "noise_mask_fn": preprocessors.random_spans_noise_mask,
      "inputs_fn": preprocessors.noise_span_to_unique_sentinel,
      "targets_fn": preprocessors.nonnoise_span_to_unique_sentinel,
    },
    PrefixLM(): {
      "noise_density": 0.5,
      "noise_mask_fn": preprocessors.random_prefix_noise_mask,
      "inputs_fn": preprocessors.drop_nonnoise_tokens,
      "targets_fn": preprocessors.drop_noise_tokens,
    },
  }
  for objective, settings_ in ways.items():
    theirs = preprocessors.single_example_denoise(
      {"targets": tf.constant(tokens)},
      tf.constant(seed, tf.int32),
      output_features=features,
      **settings_,
    )
    inputs, targets = objective.apply(tokens, seed, vocabulary())
    np.testing.assert_array_equal(inputs, theirs["inputs"].numpy())
    np.testing.assert_array_equal(targets, theirs["targets"].numpy())


@pytest.mark.parametrize("inputs", [16, 64, 128, 512, 1024])
@pytest.mark.parametrize("density", [0.15, 0.5])
def test_a_stretch_is_as_long_as_t5_makes_it(preprocessors, inputs, density):
  length, targets = preprocessors.random_spans_helper(
    inputs_length=inputs,
    noise_density=density,
    mean_noise_span_length=3.0,
    extra_tokens_per_span_inputs=1,
    extra_tokens_per_span_targets=1,
  )
  objective = SpanCorruption(density)
  # T5's lengths count the end tokens.
  assert objective.text_length(inputs - 1, targets - 1) == length
  with pytest.raises(ConfigError, match=f"targets {targets - 1} or more"):
    objective.text_length(inputs - 1, targets - 2)


def test_spans_are_distributed_as_those_of_t5_run_as_a_dataset(preprocessors, tf, features):

  tokens = np.random.default_rng(0).integers(3, 259, 141 * 400).astype(np.int32)
  dataset = tf.data.Dataset.from_tensors({"targets": tokens})
  lengths = {"inputs": 128, "targets": 64}
  dataset = preprocessors.span_corruption(dataset, lengths, features)
  theirs = [example["inputs"].numpy() for example in dataset]
  ours = [
    SpanCorruption().apply(tokens[i * 141 :][:141], (i, 3), vocabulary())[0] for i in range(400)
  ]

  places = {
    name: [np.flatnonzero(row >= 259) for row in rows]
    for name, rows in (("ours", ours), ("theirs", theirs))
  }
  assert len(ours) == len(theirs)
  assert {len(row) for row in ours} == {len(row) for row in theirs}
  sentinels = [{tuple(row[row >= 259]) for row in rows} for rows in (ours, theirs)]
  assert sentinels[0] == sentinels[1]
  for statistic in (
    lambda at: at[0],
    lambda at: np.diff(at).mean(),
    lambda at: np.diff(at).std(),
  ):
    one, other = (np.array([statistic(at) for at in rows]) for rows in places.values())
    error = np.sqrt((one.var() + other.var()) / len(one))
    assert abs(one.mean() - other.mean()) < 5 * error


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.integers(3, 258), min_size=2, max_size=200),
  st.integers(-(2**31), 2**31 - 1),
  st.sampled_from([SpanCorruption(), SpanCorruption(0.5, 8.0), PrefixLM()]),
)
def test_inputs_and_targets_together_are_the_text(tokens, seed, objective):
  tokens = np.array(tokens, np.int32)
  inputs, targets = objective.apply(tokens, (seed, 1), vocabulary())
  if isinstance(objective, PrefixLM):
    assert len(inputs) and len(targets)
    np.testing.assert_array_equal(np.concatenate([inputs, targets]), tokens)
    return
  spans, text = _by_sentinel(targets), []
  for token in inputs.tolist():
    text += spans[token] if token >= 259 else [token]
  assert text == tokens.tolist()


def test_a_language_model_reads_nothing_and_writes_everything():
  inputs, targets = LM().apply(np.arange(5), (0, 0), vocabulary())
  assert not len(inputs)
  assert targets.tolist() == [0, 1, 2, 3, 4]


def test_more_spans_than_sentinels_is_one_clear_message():
  noise = np.arange(20) % 2 == 1
  with pytest.raises(ConfigError, match="10 spans.*extra_ids=10"):
    with_sentinels(np.arange(20), noise, ByteVocabulary(extra_ids=4))


@pytest.mark.parametrize("settings_", [{"noise_density": 0.0}, {"mean_noise_span_length": 0.5}])
def test_noise_that_cannot_be_drawn_is_refused(settings_):
  with pytest.raises(ConfigError, match="must lie between"):
    SpanCorruption(**settings_)


def test_more_spans_than_there_is_text_between_them_is_one_clear_message():
  with pytest.raises(ConfigError, match="noise_density=0.6 leaves .* mean_noise_span_length=1"):
    SpanCorruption(noise_density=0.6, mean_noise_span_length=1.0).text_length(100, 200)


def _by_sentinel(targets):
  """Each sentinel's span. Targets name the text that is left out after the sentinel of the gap before."""
  spans, current = {}, None
  ids = targets.tolist()
  # Targets: the sentinel of each run of text, then the noise that follows it. The inputs' sentinel i stands
  # for the noise that follows the i-th run of text.
  for token in ids:
    if token >= 259:
      current = spans.setdefault(token, [])
    else:
      current.append(token)
  return spans
