"""Generation against decoding without a cache, and the hook into it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from flan_jax.errors import ConfigError
from flan_jax.inference import generate
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model

DECODER = DecoderConfig(40, 16, 2, 4, 2, 8, 32)
T5 = EncoderDecoderConfig(40, 16, 4, 8, 2, 2, 32)
# One longer than the shortest width, so that two widths are in play.
PROMPTS = [[5, 9, 2], [7] * 40, [3], [11, 30, 8, 21, 4]]


@pytest.fixture(scope="module", params=[DECODER, T5], ids=["decoder", "t5"])
def trained(request):
  model = build_model(request.param)
  params = jax.jit(model.init)(jax.random.key(3))
  return model, jax.tree.map(lambda x: x * 6.0 if x.ndim > 1 else x, params)


def without_cache(model, params, prompt: list[int], steps: int, start_id: int = 0) -> list[int]:
  """Greedy decoding that reads everything again for every token."""
  answer: list[int] = []
  for _ in range(steps):
    seen = [*prompt, *answer] if model.layout == "decoder" else [start_id, *answer]
    padded = jnp.array([seen + [0] * (64 - len(seen))])
    logits = all_logits(model, params, padded, jnp.array([prompt]))
    answer.append(int(logits[0, len(seen) - 1].argmax()))
  return answer


@functools.partial(jax.jit, static_argnums=0)
def all_logits(model, params, tokens, source):
  batch = {"decoder_input_tokens": tokens, "encoder_input_tokens": source}
  if model.bidirectional_inputs:
    prompt = jnp.arange(tokens.shape[1]) < source.shape[1]
    batch["decoder_causal_attention"] = prompt[None].astype(jnp.int32)
  return model.logits(params, batch)


def test_the_cache_changes_no_token(trained):
  model, params = trained
  answers = generate(model, params, PROMPTS, 6, eos_ids=(), batch_size=2)
  assert answers == [without_cache(model, params, prompt, 6) for prompt in PROMPTS]
  assert len({tuple(answer) for answer in answers}) > 1


def test_a_prompt_that_was_learnt_in_both_directions_is_read_so():
  model = dataclasses.replace(build_model(DECODER), bidirectional_inputs=True)
  params = jax.tree.map(
    lambda x: x * 6.0 if x.ndim > 1 else x, jax.jit(model.init)(jax.random.key(3))
  )
  answers = generate(model, params, PROMPTS, 6, eos_ids=(), batch_size=2)
  assert answers == [without_cache(model, params, prompt, 6) for prompt in PROMPTS]
  causal = generate(build_model(DECODER), params, PROMPTS, 6, eos_ids=())
  assert answers[0] != causal[0]


def test_a_row_stops_before_an_end_token_and_the_others_go_on(trained):
  model, params = trained
  free = generate(model, params, PROMPTS, 6, eos_ids=())
  end = free[0][2]
  stopped = generate(model, params, PROMPTS, 6, eos_ids=(39, end))
  for answer, full in zip(stopped, free, strict=True):
    kept = [i for i, token in enumerate(full) if token in (39, end)]
    assert answer == full[: kept[0] if kept else None]


def test_an_empty_prompt_is_refused_by_number():
  model = build_model(DECODER)
  with pytest.raises(ConfigError, match="prompt 1 is empty"):
    generate(model, {}, [[1], []], 4, eos_ids=(2,))
  with pytest.raises(ConfigError, match="max_new_tokens=0"):
    generate(model, {}, [[1]], 0, eos_ids=(2,))
