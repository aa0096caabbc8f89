"""Texts that are written side by side are those that each gets alone, whatever comes and goes beside them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flan_jax.inference.engine as engine_module
from flan_jax.errors import ConfigError
from flan_jax.inference import Engine, Sampling, generate
from flan_jax.inference import slots as on_devices
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings

CONFIGS = {
  "decoder": DecoderConfig(40, 16, 2, 4, 2, 8, 32, sliding_window=24, window_pattern=(True, False)),
  "t5": EncoderDecoderConfig(40, 16, 4, 8, 2, 2, 32),
}
QUICK = ["decoder", pytest.param("t5", marks=pytest.mark.slow)]
# Longer than one chunk, than the shortest width, and of one token.
PROMPTS = [[5, 9, 2], [7, 3] * 45, [3], [11, 30, 8, 21, 4], [*range(1, 39)], [2, 2, 2], [6] * 33]
LENGTHS = [9, 3, 14, 1, 6, 20, 11]
DRAWN = {"temperature": 1.3, "top_k": 30, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}
SIZES = {"length": 120, "source_length": 100, "chunk": 32, "block": 3, "stop_ids": ()}


@functools.cache
def trained(family):
  model = build_model(CONFIGS[family])
  params = jax.jit(model.init)(jax.random.key(3))
  return model, jax.tree.map(lambda x: x * 6.0 if x.ndim > 1 else x, params)


def settings(**same):
  return [Sampling(n, seed=i, **same) for i, n in enumerate(LENGTHS)]


def alone(family, **same):
  engine = Engine(*trained(family), slots=3, **SIZES)
  return [engine.run([p], s)[0].tokens for p, s in zip(PROMPTS, settings(**same), strict=True)]


@pytest.mark.parametrize("same", [{}, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
  "family, slots, chunk", [("decoder", 3, 32), ("t5", 3, 32), ("decoder", 7, 128)]
)
def test_each_gets_the_text_that_it_gets_alone(family, slots, chunk, same):
  engine = Engine(*trained(family), slots=slots, **SIZES | {"chunk": chunk})
  texts = engine.run(PROMPTS, settings(**same))
  assert [text.tokens for text in texts] == alone(family, **same)
  assert [len(text.tokens) for text in texts] == LENGTHS
  assert {text.finish for text in texts} == {"length"}
  assert len({text.tokens[0] for text in texts}) > 1


@pytest.mark.parametrize("slots", [1, 7])
def test_where_a_product_needs_two_rows_texts_are_the_same(slots, monkeypatch):
  monkeypatch.setattr(engine_module, "platform", lambda: "gpu")
  engine = Engine(*trained("decoder"), slots=slots, **SIZES | {"length": 125})
  assert engine._rows == max(slots, 2) and engine._counts[0] == 2
  texts = [engine.run([PROMPTS[0]], settings()[0])[0], *engine.run(PROMPTS[1:], settings()[1:])]
  monkeypatch.undo()
  assert [text.tokens for text in texts] == alone("decoder")


@pytest.mark.parametrize(
  "mesh", [{"tensor": 4, "data": 2}, {"fsdp": 4, "sequence": 2}, {"data": 8}], ids=str
)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_mesh_changes_no_token(family, mesh):
  model, params = trained(family)
  layout = make_layout(model, make_mesh(MeshConfig(**{"data": 1} | mesh)))
  params = jax.device_put(params, param_shardings(model, layout))
  texts = Engine(model, params, slots=3, layout=layout, **SIZES).run(PROMPTS, settings())
  assert [text.tokens for text in texts] == alone(family)


@pytest.mark.parametrize("family", QUICK)
def test_nothing_is_compiled_once_warm(family):
  engine = Engine(*trained(family), slots=9, **SIZES)
  engine.warm_up()
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
  )
  try:
    engine.run(PROMPTS * 3, settings() * 3)
    numbers = [engine.add(prompt, Sampling(5, **DRAWN)) for prompt in PROMPTS]
    engine.step()
    for number in numbers[::2]:
      engine.cancel(number)
    while engine.busy:
      engine.step()
  finally:
    jax.monitoring.clear_event_listeners()
  assert not compiled


@pytest.mark.parametrize("family", CONFIGS)
def test_where_parameters_lie_on_a_mesh_that_nobody_named_nothing_is_compiled_twice(family):
  model, params = trained(family)
  layout = make_layout(model, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
  params = jax.device_put(params, param_shardings(model, layout))
  engine = Engine(model, params, slots=2, **SIZES)
  reads = on_devices.read if family == "decoder" else on_devices.encode
  functions = (reads, on_devices.begin, on_devices.write)
  before = [function._cache_size() for function in functions]
  for _ in range(2):
    engine.run(PROMPTS[:1], Sampling(7))
  assert [function._cache_size() for function in functions] == [n + 1 for n in before]


def test_the_probability_told_is_the_model_s_own():
  model, params = trained("decoder")
  prompt = PROMPTS[3]
  found = Engine(model, params, slots=2, **SIZES).run([prompt], Sampling(6, temperature=0.7))[0]
  whole = jnp.array([[*prompt, *found.tokens]])
  scores = jax.nn.log_softmax(model.logits(params, {"decoder_input_tokens": whole})[0])
  own = [scores[len(prompt) - 1 + i, token] for i, token in enumerate(found.tokens)]
  np.testing.assert_allclose(found.logprobs, own, rtol=1e-4)


@pytest.mark.parametrize("family", QUICK)
def test_an_answer_begins_as_it_is_told(family):
  model, params = trained(family)
  free = generate(model, params, PROMPTS[:4], 8, ())
  for prompt, answer in zip(PROMPTS, free, strict=False):
    prefix = Sampling(prefix=tuple(answer[:3]))
    assert generate(model, params, [prompt], 5, (), sampling=prefix) == [answer]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_text_that_was_kept_goes_on_behind_what_a_tool_said(family):
  model, params = trained(family)
  engine = Engine(model, params, slots=2, **SIZES)
  free = engine.run([PROMPTS[0]], Sampling(9))[0].tokens
  call = free.index(free[3])
  number = engine.add(PROMPTS[0], Sampling(9), stop_ids=(free[3],), keep=True)
  other = engine.add(PROMPTS[2], Sampling(30))
  texts = {number: [], other: []}
  while engine.busy:
    for news in engine.step():
      texts[news.number] += news.tokens
      if (news.number, news.finish) == (number, "stop") and len(texts[number]) == call:
        engine.go_on(number, [free[3], 17, 21], Sampling(4))
  assert texts[number][:call] == list(free[:call])
  said = (*free[: call + 1], 17, 21)
  again = Sampling(4, prefix=said)
  stops = (free[3],)
  other_way = Engine(model, params, slots=2, **SIZES | {"stop_ids": stops}).run([PROMPTS[0]], again)
  assert tuple(texts[number][call:]) == other_way[0].tokens
  assert tuple(texts[other]) == engine.run([PROMPTS[2]], Sampling(30))[0].tokens


def test_a_hook_forces_a_token_and_ends_a_text():
  def hook(logits, text):
    force = jnp.where(text.ends % 4 == 0, 17, -1)[:, None]
    forced = jnp.where(jnp.arange(40)[None] == force, 1e9, logits)
    return jnp.where(((jnp.arange(40) == 39) & (text.tokens[:, :1] == 3))[:, :], 1e10, forced)

  model, params = trained("decoder")
  engine = Engine(model, params, slots=2, hook=hook, **SIZES | {"stop_ids": (39,)})
  free, ended = engine.run([PROMPTS[0], PROMPTS[2]], Sampling(8))
  assert ended.tokens == () and ended.finish == "stop"
  assert [i for i, token in enumerate(free.tokens) if token == 17][:2] == [1, 5]


def test_a_request_is_forgotten_wherever_it_is():
  engine = Engine(*trained("decoder"), slots=2, **SIZES)
  numbers = [engine.add(prompt, Sampling(20)) for prompt in PROMPTS[:4]]
  engine.step()
  engine.cancel(numbers[0])
  engine.cancel(numbers[3])
  ended = []
  while engine.busy:
    ended += [news.number for news in engine.step() if news.finish]
  assert sorted(ended) == numbers[1:3]
  assert engine.run([PROMPTS[0]], Sampling(9))[0].tokens == alone("decoder")[0]


def test_logits_that_are_not_finite_end_their_row_alone():
  model, params = trained("decoder")
  embedding = params["embed"]["embedding"].at[30].set(jnp.nan)
  broken = {**params, "embed": {"embedding": embedding}}
  good, bad = Engine(model, broken, slots=2, **SIZES).run([PROMPTS[3], [1, 2]], Sampling(4))
  assert good.finish == bad.finish == "broken"  # tied: every row's logits have the word's
  untied = build_model(dataclasses.replace(CONFIGS["decoder"], tied_embeddings=False))
  params = untied.init(jax.random.key(0))
  params["embed"]["embedding"] = params["embed"]["embedding"].at[30].set(jnp.nan)
  bad, good = Engine(untied, params, slots=2, **SIZES).run([PROMPTS[3], [1, 2]], Sampling(1))
  assert (bad.finish, bad.tokens) == ("broken", ()) and good.finish == "length"


@pytest.mark.parametrize(
  ("prompt", "sampling", "told"),
  [
    ([], {}, "the prompt is empty"),
    ([40], {}, "the id 40 is unknown: the model knows 0 to 39"),
    ([1] * 110, {}, "110 tokens and 64 new ones are more than 120"),
    ([1], {"prefix": (41,)}, "the id 41 is unknown"),
    ([1], {"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
    ([1], {"temperature": -1.0}, "temperature=-1.0 must be 0"),
    ([1], {"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
    ([1], {"temperature": float("nan")}, "temperature=nan must be 0"),
  ],
)
def test_what_cannot_be_written_is_refused(prompt, sampling, told):
  engine = Engine(*trained("decoder"), slots=2, **SIZES)
  with pytest.raises(ConfigError, match=told):
    engine.add(prompt, Sampling(**sampling))
  assert not engine.busy
