"""Shared prompts, packed rows and one forward give what each option alone would get."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.errors import EvaluationError, UnknownName
from flan_jax.evaluation import option_rows, rank_classification
from flan_jax.evaluation.option_scores import OptionScores, RankRequest
from flan_jax.evaluation.rank_classification import score_options
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings

ROWS = {"row_lengths": (32, 64), "batch_tokens": 128}


@partial(jax.jit, static_argnums=0)
def all_log_probs(model, params, batch):
  return jax.nn.log_softmax(model.logits(params, batch)[0])


def padded(ids) -> np.ndarray:
  row = np.zeros((1, 64), np.int32)
  row[0, : len(ids)] = ids
  return row


def alone(model, params, prompt, option) -> np.ndarray:
  """Log-probabilities of one option's tokens, with no packing and no mask of our own."""
  if model.layout == "decoder":
    batch, first = {"decoder_input_tokens": padded([*prompt, *option][:-1])}, len(prompt) - 1
    if model.bidirectional_inputs:
      batch["decoder_causal_attention"] = padded([1] * len(prompt))
  else:
    batch, first = {"decoder_input_tokens": padded([0, *option[:-1]])}, 0
    batch["encoder_input_tokens"] = padded(prompt)
    batch["encoder_segment_ids"] = padded([1] * len(prompt))
    batch["decoder_segment_ids"] = np.ones((1, 64), np.int32)
  log_probs = np.asarray(all_log_probs(model, params, batch))
  return log_probs[first + np.arange(len(option)), list(option)]


def check(model, params, requests, scored):
  for request, scores in zip(requests, scored, strict=True):
    for k, option in enumerate(request.option_ids):
      expected = alone(model, params, request.prompt_ids, option)
      end = request.end_tokens[k] if request.end_tokens else 0
      np.testing.assert_allclose(scores.total[k], expected.sum(), rtol=2e-5, atol=2e-5)
      np.testing.assert_allclose(
        scores.without_end[k], expected[: len(expected) - end].sum(), rtol=2e-5, atol=2e-5
      )


def random_requests(seed: int, count: int = 12, begin: tuple[int, ...] = ()) -> list[RankRequest]:
  generator = np.random.default_rng(seed)

  def ids(low, high):
    return tuple(generator.integers(3, 300, generator.integers(low, high)).tolist())

  requests = []
  for i in range(count):
    options = tuple((*ids(1, 6), 1) for _ in range(generator.integers(1, 5)))
    requests.append(
      RankRequest((*begin, *ids(1, 20)), options, (1,) * len(options), name=f"request {i}")
    )
  return requests


def test_scores_are_those_of_each_option_alone(tiny):
  model, params = tiny
  requests = random_requests(0)
  check(model, params, requests, score_options(model, params, requests, **ROWS))


def test_a_decoder_that_reads_prompts_in_both_directions_scores_so(tiny):
  model, params = tiny
  if model.layout != "decoder":
    pytest.skip("an encoder always does")
  both_ways = replace(model, bidirectional_inputs=True)
  requests = random_requests(0, begin=(8, 9, 10))
  found = score_options(both_ways, params, requests, **ROWS)
  check(both_ways, params, requests, found)
  assert found != score_options(model, params, requests, **ROWS)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**31), st.integers(0, 9))
def test_scores_do_not_depend_on_what_shares_the_row(tiny, seed, begin):
  model, params = tiny
  requests = random_requests(seed, 8, tuple(range(50, 50 + begin)))
  together = score_options(model, params, requests, **ROWS)
  for i in (0, 5):
    (single,) = score_options(model, params, [requests[i]], **ROWS)
    np.testing.assert_allclose(single.total, together[i].total, rtol=2e-5, atol=2e-5)


def test_a_mesh_of_eight_devices_gives_the_scores_of_one(tiny):
  model, params = tiny
  requests = random_requests(1)
  expected = score_options(model, params, requests, **ROWS)
  layout = make_layout(model, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
  spread = jax.device_put(params, param_shardings(model, layout))
  found = score_options(model, spread, requests, layout=layout, **ROWS)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours.total, theirs.total, rtol=2e-5, atol=2e-5)


def test_more_options_than_a_row_holds_are_divided(tiny):
  model, params = tiny
  many = RankRequest((5, 6, 7), tuple((k, k + 1, 1) for k in range(10, 60)))
  check(model, params, [many], score_options(model, params, [many], **ROWS))


@pytest.fixture
def read(monkeypatch):
  """The arrays of each call of the compiled function."""
  calls = []
  scored = rank_classification._target_log_probs

  def noted(model, params, batch):
    calls.append({name: np.asarray(array) for name, array in batch.items()})
    return scored(model, params, batch)

  monkeypatch.setattr(rank_classification, "_target_log_probs", noted)
  return calls


def test_a_prompt_is_read_once_and_each_option_once(tiny, read):
  """P - 1 + nO tokens of a decoder, which reads a prompt's last token at the head of each option in place of the
  option's own last one; P and nO of an encoder-decoder. Options of different lengths are summed."""
  model, params = tiny
  draw = np.random.default_rng(0)
  sizes = [(1, (3, 2)), (14, (4,)), (9, (1, 5, 2, 2)), (25, (6,) * 6)]
  requests = [
    RankRequest(
      (10 + i, *draw.integers(50, 300, prompt - 1).tolist()),
      tuple(
        (100 + k, *draw.integers(50, 300, size - 1).tolist()) for k, size in enumerate(options)
      ),
    )
    for i, (prompt, options) in enumerate(sizes)
  ]
  prompts, options = sum(size for size, _ in sizes), sum(sum(each) for _, each in sizes)
  score_options(model, params, requests, **ROWS)
  held = sum((batch["units"] != 0).sum() for batch in read)
  asked = sum((batch["options"] != 0).sum() for batch in read)
  assert asked == options
  if model.layout == "decoder":
    assert held == prompts - len(sizes) + options
    assert sum((batch["decoder_input_tokens"] != 0).sum() for batch in read) == held
  else:
    assert held == options
    assert sum((batch["encoder_segment_ids"] != 0).sum() for batch in read) == prompts
    assert sum((batch["encoder_input_tokens"] != 0).sum() for batch in read) == prompts


@pytest.mark.parametrize(
  ("layout", "wide", "narrow"),
  [("decoder", (2, 64, 64), (4, 32, 32)), ("encoder_decoder", (2, 64, 16), (4, 32, 4))],
)
def test_rows_are_as_long_as_makes_the_least_work(layout, wide, narrow):
  """Of prompts that take more than half of a row of 32, three share one of 64, unless attention costs too much."""
  requests = [RankRequest((10 + i, *range(60, 78)), ((5, 1), (6,))) for i in range(12)]
  rows = option_rows.FAMILIES[layout](requests, 0, False)
  units = option_rows.units_of(requests, rows, 64)

  def planned(width):
    batches = [*option_rows.planned(units, rows, (32, 64), 128, 1, width)]
    held = sorted(unit.prompt[0] for batch in batches for row in batch.rows for unit in row)
    assert held == [request.prompt_ids[0] for request in requests]
    return {(batch.row_count, batch.length, batch.options) for batch in batches}

  assert planned(10_000) == {wide}
  assert planned(8) == {narrow}


def test_equal_prompts_are_read_once(tiny, monkeypatch):
  model, params = tiny
  prompt, options = tuple(range(10, 30)), ((4, 1), (5, 1))
  requests = [RankRequest(prompt, options), RankRequest(prompt, (*options, (6, 7, 1)))]
  rows = []
  run = rank_classification._run
  monkeypatch.setattr(
    rank_classification, "_run", lambda m, p, arrays, s: rows.append(arrays) or run(m, p, arrays, s)
  )
  scored = score_options(model, params, requests, **ROWS)
  check(model, params, requests, scored)
  assert scored[0].total == scored[1].total[:2]
  assert len(rows) == 1
  assert (rows[0]["targets"] > 0).sum() == 2 + 2 + 3


def test_what_all_prompts_begin_with_is_read_once_a_row(tiny, monkeypatch):
  model, params = tiny
  begin = (2,) * 12  # no random prompt has this id
  requests = random_requests(1, 4, begin)
  rows = []
  run = rank_classification._run
  monkeypatch.setattr(
    rank_classification, "_run", lambda m, p, arrays, s: rows.append(arrays) or run(m, p, arrays, s)
  )
  scored = score_options(model, params, requests, row_lengths=(64,), batch_tokens=128)
  check(model, params, requests, scored)
  if model.layout == "decoder":
    tokens = rows[0]["decoder_input_tokens"]
    used = (tokens != 0).any(axis=1)
    assert used.any() and (tokens[used, : len(begin)] == begin).all()
    assert np.isin(tokens, begin).sum() == used.sum() * len(begin)


def test_few_shapes_are_compiled(tiny):
  model, params = tiny
  score = rank_classification._target_log_probs
  score.clear_cache()
  for seed in range(4):
    score_options(model, params, random_requests(seed, 30), **ROWS)
  assert score._cache_size() <= 2


def test_progress_counts_every_request_once(tiny):
  model, params = tiny
  seen = []
  requests = random_requests(3, 20)
  score_options(model, params, requests, progress=seen.append, **ROWS)
  assert sum(seen) == 20 and len(seen) > 1


def test_a_log_probability_that_is_nan_names_the_request(tiny):
  model, params = tiny
  broken = jax.tree.map(lambda x: x * np.nan, params)
  with pytest.raises(EvaluationError, match="boolq/verdict example 7.*option 1 of 2.*nan"):
    request = RankRequest((5, 6), ((7, 1), (8, 1)), name="boolq/verdict example 7")
    score_options(model, broken, [request], **ROWS)


@pytest.mark.parametrize(
  ("request_", "message"),
  [
    (RankRequest((5,), (), name="x"), "x: there are no options"),
    (RankRequest((), ((4,),), name="x"), "x: the prompt has no tokens"),
    (RankRequest((5,), ((4,), ()), name="x"), "x: option 2 of 2 is empty"),
    (RankRequest((5,), ((1,),), (1,), name="x"), "x: option 1 of 1 is empty"),
    (RankRequest((5,) * 70, ((4,),), name="x"), "x: the prompt of 70 tokens .* row of 64"),
  ],
)
def test_what_cannot_be_scored_is_refused_by_name(tiny, request_, message):
  model, params = tiny
  with pytest.raises(EvaluationError, match=message):
    score_options(model, params, [request_], **ROWS)


def test_conventions_worked_by_hand():
  scores = OptionScores((-4.0, -3.0), (-3.0, -2.5), (4, 2), (6, 10))
  assert scores.by("t0") == (-4.0, -3.0)
  assert scores.by("lm_eval") == (-3.0, -2.5)
  assert scores.by("lm_eval_norm") == (-0.5, -0.25)
  assert scores.by("per_token") == (-1.0, -1.5)
  assert replace(scores, unasked=(-5.0, -2.0)).by("pmi") == (2.0, -0.5)
  assert replace(scores, content_free=(-0.5, -1.0)).by("contextual") == (-3.5, -2.0)


def test_an_unknown_convention_names_the_nearest():
  scores = OptionScores((-4.0,), (-3.0,), (4,), (0,))
  with pytest.raises(UnknownName, match="lm_eval_norm"):
    scores.by("lm_eval_nrm")
  with pytest.raises(EvaluationError, match="bytes"):
    scores.by("lm_eval_norm")
  with pytest.raises(EvaluationError, match="asks nothing"):
    scores.by("pmi")
  with pytest.raises(EvaluationError, match="without content"):
    scores.by("contextual")
  assert replace(scores, bytes=(3,)).by("lm_eval_norm") == (-1.0,)
