"""Splash attention, interpreted, against the plain path: the same hidden states and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flan_jax.errors import ConfigError, MeshError
from flan_jax.models import DecoderConfig, build_model, described
from flan_jax.training.partitioning import (
  MeshConfig,
  check_kernels,
  make_layout,
  make_mesh,
  param_shardings,
)

CONFIG = DecoderConfig(
  vocab_size=64, emb_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=48
)
# 150 tokens: the kernel's blocks do not divide them. The last row ends in padding.
SEGMENTS = np.array(
  [[1] * 60 + [2] * 90, [1] * 150, [1] * 20 + [2] * 1 + [3] * 129, [1] * 110 + [0] * 40]
)


def batch_of(rows=2, length=150):
  tokens = np.random.default_rng(0).integers(0, 64, (rows, length), np.int32)
  segments = np.resize(SEGMENTS[:, :length], (rows, length))
  positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
  return {
    "decoder_input_tokens": tokens,
    "decoder_segment_ids": segments.astype(np.int32),
    "decoder_positions": positions,
  }


def hidden_and_gradients(config, batch, params):
  """Of what the model makes of tokens that are no padding."""
  model = build_model(config)

  def loss(params):
    hidden = model.hidden(params, batch)
    real = batch["decoder_segment_ids"][..., None] > 0
    return jnp.sum(jnp.where(real, jnp.sin(hidden), 0.0)), jnp.where(real, hidden, 0.0)

  (_, hidden), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return hidden, gradients


def assert_close(found, wanted):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


KINDS = {
  "grouped heads": {},
  "window": {"sliding_window": 40},
  "softcap and scale": {"attention_softcap": 3.0, "attention_scale": 0.5},
  "remat": {"remat": "full", "scan_layers": False},
}


@pytest.mark.parametrize(
  "kind",
  [kind if kind == "window" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_packed_rows_give_the_hidden_states_and_gradients_of_the_plain_path(kind):
  config = dataclasses.replace(CONFIG, **KINDS[kind])
  params = build_model(config).init(jax.random.key(0))
  batch = batch_of()
  splash = dataclasses.replace(config, attention="splash")
  assert_close(
    hidden_and_gradients(splash, batch, params), hidden_and_gradients(config, batch, params)
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "mesh",
  [MeshConfig(2, 2, 1, 2), MeshConfig(1, 2, 2, 2), MeshConfig(1, 2, 1, 4)],
  ids=["rows and heads", "sequence", "more devices than key heads"],
)
def test_on_a_mesh_every_device_has_its_rows_heads_and_queries(mesh):
  batch = batch_of(4, 128)
  config = dataclasses.replace(CONFIG, attention="splash")
  model = build_model(config)
  params = model.init(jax.random.key(0))
  wanted = hidden_and_gradients(CONFIG, batch, params)
  layout = make_layout(model, make_mesh(mesh))
  with pytest.raises(MeshError, match="kernel for TPUs"):
    check_kernels(config, layout.mesh)
  with layout.active():
    placed = jax.device_put(params, param_shardings(model, layout))
    found = hidden_and_gradients(config, batch, placed)
  assert_close(found, wanted)


def test_a_mask_of_the_callers_is_obeyed():
  config = dataclasses.replace(CONFIG, attention="splash")
  params = build_model(CONFIG).init(jax.random.key(0))
  mask = np.tri(16, dtype=bool)[None] & (np.arange(16) % 3 > 0)[None, None]
  batch = {"decoder_input_tokens": np.arange(16, dtype=np.int32)[None]}
  found, wanted = (
    build_model(c).hidden(params, batch, attention_mask=mask) for c in (config, CONFIG)
  )
  np.testing.assert_array_equal(found, wanted)


def test_what_the_kernel_cannot_compute_is_refused():
  with pytest.raises(ConfigError, match="Did you mean 'splash'"):
    dataclasses.replace(CONFIG, attention="splsh")
  with pytest.raises(ConfigError, match="one mask for all layers"):
    dataclasses.replace(CONFIG, attention="splash", sliding_window=8, window_pattern=(True, False))
  model = build_model(dataclasses.replace(CONFIG, attention="splash"))
  batch = {**batch_of(1, 16), "decoder_causal_attention": np.ones((1, 16), np.int32)}
  with pytest.raises(ConfigError, match="is causal"):
    model.hidden(model.init(jax.random.key(0)), batch)
  with pytest.raises(ConfigError, match="is causal"):
    dataclasses.replace(model, bidirectional_inputs=True)


def test_models_that_leave_it_alone_are_described_as_ever():
  assert "attention" not in described(CONFIG)
