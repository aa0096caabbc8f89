"""What both families promise behind one face."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flan_jax.errors import ConfigError
from flan_jax.models import (
  DecoderConfig,
  EncoderDecoderConfig,
  build_model,
  described,
  parameter_count,
)

DECODER = DecoderConfig(64, 16, 2, 4, 2, 8, 32)
T5 = EncoderDecoderConfig(64, 16, 4, 8, 1, 2, 32)
FAMILIES = pytest.mark.parametrize("config", [DECODER, T5], ids=["decoder", "t5"])


@functools.cache
def model_and_params(config):
  model = build_model(config)
  params = jax.jit(model.init)(jax.random.key(0))
  # A fresh decoder attends almost uniformly, which would hide mistakes in its attention.
  factor = 10.0 if config is DECODER else 1.0
  return model, jax.tree.map(lambda x: x if x.ndim == 1 else x * factor, params)


@functools.cache
def jitted_logits(config):
  return jax.jit(model_and_params(config)[0].logits)


def random_batch(rows: int = 2, source: int = 7, target: int = 6, seed: int = 0) -> dict:
  draw = np.random.default_rng(seed)
  return {
    "encoder_input_tokens": draw.integers(1, 64, (rows, source), np.int32),
    "decoder_input_tokens": draw.integers(1, 64, (rows, target), np.int32),
  }


@pytest.mark.parametrize(
  "shape, count",
  [
    ((512, 6, 8, 1024), 76_961_152),
    ((768, 12, 12, 2048), 247_577_856),
    ((1024, 16, 24, 2816), 783_150_080),
    ((2048, 32, 24, 5120), 2_849_757_184),
    ((4096, 64, 24, 10240), 11_135_332_352),
  ],
  ids=["small", "base", "large", "xl", "xxl"],
)
def test_t5_1_1_has_the_published_number_of_parameters(shape, count):
  emb_dim, heads, layers, mlp_dim = shape
  config = EncoderDecoderConfig(32_128, emb_dim, heads, 64, layers, layers, mlp_dim)
  assert parameter_count(build_model(config)) == count


def test_smollm2_has_the_published_number_of_parameters():
  config = DecoderConfig(49_152, 576, 30, 9, 3, 64, 1536)
  assert parameter_count(build_model(config)) == 134_515_008


@FAMILIES
def test_every_parameter_has_as_many_logical_axes_as_dimensions(config):
  model, params = model_and_params(config)
  axes = model.logical_axes()
  checked = jax.tree.map(lambda leaf, names: leaf.ndim == len(names), params, axes)
  assert all(jax.tree.leaves(checked))


@FAMILIES
def test_logits_are_hidden_states_times_the_unembedding(config):
  model, params = model_and_params(config)
  batch = random_batch()
  product = jitted_hidden(config)(params, batch) @ model.lm_head(params).kernel
  np.testing.assert_allclose(jitted_logits(config)(params, batch), product, rtol=1e-5, atol=1e-5)


KINDS = {
  "llama": {},
  "gemma": {
    "norm": "rms_plus_one",
    "post_norms": True,
    "attention_softcap": 5.0,
    "sliding_window": 2,
    "window_pattern": (True, False),
    "local_rope_theta": 100.0,
  },
  "gpt2": {"norm": "layer", "learned_positions": 16, "mlp_activations": ("gelu",)},
  "gptj": {"norm": "layer", "block": "parallel_shared_norm", "rotary_dim": 4},
  "neox": {"norm": "layer", "block": "parallel", "biases": ("query_key_value", "mlp")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_read_in_both_directions_where_the_batch_says_so(kind):
  model = build_model(dataclasses.replace(DECODER, **KINDS[kind]))
  # A fresh decoder attends almost uniformly, which would hide mistakes in its attention.
  fresh = jax.jit(model.init)(jax.random.key(0))
  params = jax.tree.map(lambda x: x if x.ndim == 1 else x * 10, fresh)
  segments = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0], [1] * 10], np.int32)
  inputs = np.array([[1, 1, 1, 0, 0, 1, 1, 0, 0, 0], [0] * 10], np.int32)
  batch = {
    "decoder_input_tokens": random_batch(target=10)["decoder_input_tokens"],
    "decoder_segment_ids": segments,
    "decoder_positions": np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0], range(10)], np.int32),
  }
  mask = np.zeros((2, 10, 10), bool)
  for row, query, key in np.ndindex(2, 10, 10):
    both_inputs = inputs[row, query] and inputs[row, key]
    same = segments[row, query] == segments[row, key]
    mask[row, query, key] = same and (key <= query or both_inputs)
  hidden = jax.jit(model.hidden)
  found = hidden(params, batch | {"decoder_causal_attention": inputs})
  np.testing.assert_allclose(found, hidden(params, batch, attention_mask=mask), atol=1e-6)
  causal = hidden(params, batch)
  assert not np.allclose(found[0, :5], causal[0, :5], atol=1e-3)
  np.testing.assert_allclose(found[1], causal[1], atol=1e-6)
  # Unpacked, the second example is the same.
  single = hidden(
    params,
    {
      "decoder_input_tokens": batch["decoder_input_tokens"][:1, 5:9],
      "decoder_causal_attention": inputs[:1, 5:9],
    },
  )
  np.testing.assert_allclose(found[0, 5:9], single[0], atol=1e-5)


@pytest.mark.parametrize("table", [{"relative_buckets": 2}, {"relative_max_distance": 16}])
def test_a_table_of_positions_without_room_for_far_ones_is_refused(table):
  with pytest.raises(ConfigError, match=next(iter(table))):
    dataclasses.replace(T5, **table)


def test_only_a_decoder_can_be_said_to_read_in_both_directions():
  with pytest.raises(ConfigError, match="an encoder reads both ways anyway"):
    dataclasses.replace(build_model(T5), bidirectional_inputs=True)


@FAMILIES
@pytest.mark.parametrize("change", [{"scan_layers": False, "remat": "dots"}, {"remat": "full"}])
def test_loops_and_remat_change_no_number(config, change):
  _, params = model_and_params(config)
  value, gradient = loss_and_gradient(config, params)
  other_value, other_gradient = loss_and_gradient(dataclasses.replace(config, **change), params)
  np.testing.assert_allclose(value, other_value, rtol=1e-6)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, other_gradient
  )


def loss_and_gradient(config, params, batch=None):
  return jitted_gradient(config)(params, batch or random_batch(rows=4))


@functools.cache
def jitted_gradient(config):
  model = build_model(config)

  def loss(params, batch) -> jax.Array:
    return jnp.square(model.logits(params, batch)).mean()

  return jax.jit(jax.value_and_grad(loss))


@FAMILIES
def test_bfloat16_computes_near_float32_and_ends_in_float32(config):
  _, params = model_and_params(config)
  narrow = build_model(dataclasses.replace(config, dtype="bfloat16"))
  batch = random_batch()
  assert jax.eval_shape(narrow.hidden, params, batch).dtype == jnp.bfloat16
  logits, exact = jax.jit(narrow.logits)(params, batch), jitted_logits(config)(params, batch)
  assert logits.dtype == jnp.float32
  assert np.abs(logits - exact).mean() < 0.1 * np.abs(exact).mean()


@FAMILIES
def test_dropout_follows_its_key(config):
  model = build_model(dataclasses.replace(config, dropout_rate=0.3))
  _, params = model_and_params(config)
  batch = random_batch()
  hidden = jax.jit(model.hidden)
  still, one, again, two = (
    hidden(params, batch, key)
    for key in (None, jax.random.key(1), jax.random.key(1), jax.random.key(2))
  )
  np.testing.assert_array_equal(one, again)
  assert not np.allclose(one, two) and not np.allclose(one, still)
  np.testing.assert_allclose(still, jitted_hidden(config)(params, batch), rtol=1e-5, atol=1e-5)


@functools.cache
def jitted_hidden(config):
  return jax.jit(model_and_params(config)[0].hidden)


@FAMILIES
@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3))
def test_packed_examples_give_the_logits_of_single_ones(config, lengths):
  _, params = model_and_params(config)
  logits = jitted_logits(config)
  singles = [single_example(i, *pair) for i, pair in enumerate(lengths)]
  packed = logits(params, pack(singles))
  start = 0
  for single in singles:
    length = int((single["decoder_segment_ids"] > 0).sum())
    alone = logits(params, single)[0, :length]
    np.testing.assert_allclose(packed[0, start : start + length], alone, rtol=2e-5, atol=2e-5)
    start += length


def single_example(seed: int, source: int, target: int) -> dict:
  """One example in a row of 16."""
  draw, row = np.random.default_rng(seed), {}
  for side, length in (("encoder", source), ("decoder", target)):
    real = np.arange(16) < length
    row[f"{side}_input_tokens"] = np.where(real, draw.integers(1, 64, 16), 0).astype(np.int32)[None]
    row[f"{side}_segment_ids"] = real.astype(np.int32)[None]
    row[f"{side}_positions"] = np.where(real, np.arange(16), 0).astype(np.int32)[None]
  return row


def pack(singles: list[dict]) -> dict:
  """The examples one after the other in one row of 16, numbered from 1."""
  packed = {}
  for side in ("encoder", "decoder"):
    real = [single[f"{side}_segment_ids"][0] > 0 for single in singles]
    for key in ("input_tokens", "positions"):
      parts = [s[f"{side}_{key}"][0][r] for s, r in zip(singles, real, strict=True)]
      packed[f"{side}_{key}"] = fill(np.concatenate(parts))
    numbers = [np.full(int(r.sum()), i + 1) for i, r in enumerate(real)]
    packed[f"{side}_segment_ids"] = fill(np.concatenate(numbers))
  return packed


def fill(values: np.ndarray) -> np.ndarray:
  return np.pad(values, (0, 16 - len(values))).astype(np.int32)[None]


@FAMILIES
def test_gradients_flow_through_input_embeddings(config):
  model, params = model_and_params(config)
  batch = random_batch()
  key = "decoder_input_tokens" if model.layout == "decoder" else "encoder_input_tokens"
  embeds = model.embed(params, batch.pop(key))

  @jax.jit
  def total(embeds):
    logits = model.logits(params, batch, inputs_embeds=embeds)
    return jnp.square(logits).sum(), logits

  gradient, logits = jax.grad(total, has_aux=True)(embeds)
  assert gradient.shape == embeds.shape and np.abs(gradient).min() > 0
  from_tokens = jitted_logits(config)(params, random_batch())
  np.testing.assert_allclose(logits, from_tokens, rtol=1e-5, atol=1e-5)


@FAMILIES
def test_options_beside_each_other_score_as_if_alone(config):
  """The mask of rank classification: prompt, option 1, option 2; each option sees the prompt."""
  model, params = model_and_params(config)
  batch = random_batch(rows=1, target=7)
  tokens = batch["decoder_input_tokens"]
  # Tokens 0..2 are the prompt, 3..4 the first option and 5..6 the second.
  owner = jnp.array([0, 0, 0, 1, 1, 2, 2])
  sees = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
  mask = sees & jnp.tril(jnp.ones((7, 7), jnp.bool_))
  positions = jnp.array([[0, 1, 2, 3, 4, 3, 4]])
  together = jax.jit(model.logits)(
    params, {**batch, "decoder_positions": positions}, attention_mask=mask[None]
  )
  for kept in ([0, 1, 2, 3, 4], [0, 1, 2, 5, 6]):
    alone = jitted_logits(config)(params, {**batch, "decoder_input_tokens": tokens[:, kept]})
    np.testing.assert_allclose(together[:, kept], alone, rtol=1e-5, atol=1e-5)


@FAMILIES
def test_decoding_piece_by_piece_gives_the_logits_of_all_at_once(config):
  model, params = model_and_params(config)
  batch = random_batch()
  batch["encoder_segment_ids"] = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)
  tokens = batch["decoder_input_tokens"]
  positions = jnp.broadcast_to(jnp.arange(6), tokens.shape)
  cache = model.init_cache(params, batch, 8)
  decode, pieces = jax.jit(model.decode), []
  for start, stop in ((0, 2), (2, 4), (4, 5), (5, 6)):
    piece, cache = decode(params, cache, tokens[:, start:stop], positions[:, start:stop])
    pieces.append(piece)
  # Without decoder segments every decoder token sees all that is no padding in the encoder.
  np.testing.assert_allclose(
    jnp.concatenate(pieces, axis=1), jitted_logits(config)(params, batch), rtol=1e-4, atol=1e-4
  )


@FAMILIES
def test_a_position_outside_the_cache_is_not_written(config):
  model, params = model_and_params(config)
  cache = model.init_cache(params, random_batch(), 4)
  positions = jnp.array([[0, 1], [0, 4]])
  _, cache = jax.jit(model.decode)(params, cache, jnp.ones((2, 2), jnp.int32), positions)
  written = np.abs(cache.own.key).max((0, 2, 4)) > 0
  np.testing.assert_array_equal(written, [[True, True, False, False], [True, False, False, False]])


RULES = (
  ("batch", ("data", "fsdp")),
  ("vocab", "tensor"),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
)


@FAMILIES
def test_a_mesh_changes_no_number_and_no_gradient(config):
  model, params = model_and_params(config)
  batch = random_batch(rows=4)

  value, gradient = loss_and_gradient(config, params, batch)
  names = ("data", "fsdp", "tensor")
  mesh = jax.make_mesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    layout = jax.tree.map(
      lambda axes: NamedSharding(mesh, nn.logical_to_mesh_axes(axes, RULES)),
      model.logical_axes(),
      is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    placed = jax.device_put(params, layout)
    rows = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    spread_value, spread_gradient = loss_and_gradient(config, placed, rows)
  np.testing.assert_allclose(value, spread_value, rtol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), gradient, spread_gradient
  )


@pytest.mark.parametrize(
  "change, message",
  [
    ({"remat": "dot"}, "Did you mean 'dots'"),
    ({"num_layers": 0}, "num_layers=0"),
    ({"num_kv_heads": 3}, "no multiple"),
    ({"dtype": "float"}, "float32"),
    ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
  ],
)
def test_a_setting_that_cannot_be_obeyed_is_refused_by_name(change, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(DECODER, **change)


def test_a_description_holds_what_is_not_the_default():
  config = DecoderConfig(64, 32, 2, 4, 2, 8, 48, qk_norm=True)
  told = described(config)
  assert told.startswith("DecoderConfig(vocab_size=64") and told.endswith("qk_norm=True)")
  assert eval(told) == config
