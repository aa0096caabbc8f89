"""Kernels for GPUs against the plain path: hidden states and gradients, T5's relative positions among them.

Off a GPU flash attention is interpreted, and JAX's plain attention stands in for cuDNN's, so that what is tested of it
is all around it. On one: `pytest -c /dev/null --noconftest tests/models/test_gpu_attention.py`.
"""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.sharding import AbstractDevice, AbstractMesh

import flan_jax.models.cudnn_attention as cudnn_attention_module
from flan_jax.errors import ConfigError, MeshError
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model
from flan_jax.models.attention import causal_mask, same_segment, within_window
from flan_jax.models.cudnn_attention import cudnn_attention
from flan_jax.models.dot_product_attention import LowerTriangular, dot_product_attention
from flan_jax.models.flash_attention import SameSegment, flash_attention
from flan_jax.models.flash_kernels import Rules, kept_of
from flan_jax.models.splash_attention import Causal
from flan_jax.training.partitioning import (
  MeshConfig,
  check_kernels,
  make_layout,
  make_mesh,
  param_shardings,
)

ON_GPU = jax.default_backend() == "gpu"
DECODER = DecoderConfig(64, 64, 2, 4, 2, 64, 96, dtype="bfloat16", remat="dots")
T5 = EncoderDecoderConfig(
  64, 64, 4, 64, 2, 2, 96, tied_embeddings=True, dtype="bfloat16", remat="dots"
)


@pytest.fixture(autouse=True)
def standard_promotion():
  """JAX's plain attention mixes dtypes that strict promotion refuses."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def segments_of(rows, length, lengths, seed=0):
  """Packed examples of about so many tokens; every other row ends in padding."""
  draw, found = np.random.default_rng(seed), np.zeros((rows, length), np.int32)
  for row, ids in enumerate(found):
    at, end = 0, length - (row % 2) * (length // 5)
    for segment in range(1, length):
      size = int(draw.integers(max(1, lengths // 2), 2 * lengths))
      ids[at : min(at + size, end)] = segment
      at += size
      if at >= end:
        break
  return found


def batch_of(layout, rows=2, inputs=150, targets=70):
  draw = np.random.default_rng(0)

  def tokens(length):
    return draw.integers(0, 64, (rows, length), np.int32)

  def decoder(length, lengths):
    return {
      "decoder_input_tokens": tokens(length),
      "decoder_segment_ids": segments_of(rows, length, lengths),
      "decoder_positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }

  if layout == "decoder":
    return decoder(inputs, 40)
  segments, targets = segments_of(rows, inputs, 40), decoder(targets, 18)
  # Only examples that the encoder has.
  targets["decoder_segment_ids"][targets["decoder_segment_ids"] > segments.max(1)[:, None]] = 0
  return {
    "encoder_input_tokens": tokens(inputs),
    "encoder_segment_ids": segments,
    "encoder_positions": np.tile(np.arange(inputs, dtype=np.int32), (rows, 1)),
    **targets,
  }


def prefixed(batch):
  """Inputs of every example that are read in both directions."""
  inside = np.arange(batch["decoder_segment_ids"].shape[1]) % 60 < 30
  return {**batch, "decoder_causal_attention": inside * (batch["decoder_segment_ids"] > 0)}


def hidden_and_gradients(config, batch, params, key=None):
  model = build_model(config)

  def loss(params):
    hidden = model.hidden(params, batch, dropout_key=key)
    real = batch["decoder_segment_ids"][..., None] > 0
    shown = jnp.where(real, hidden, 0).astype(jnp.float32)
    return jnp.mean(jnp.sin(shown)), shown

  (_, hidden), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return {"hidden": hidden, **gradients}


def distance(found, wanted):
  """|found - wanted| / |wanted|, of every array."""
  norm = jnp.linalg.norm
  return jax.tree.map(
    lambda x, y: float(norm(jnp.ravel(x - y)) / norm(jnp.ravel(y))), found, wanted
  )


KINDS = {
  "grouped heads": (DECODER, {}, "decoder"),
  "window": (DECODER, {"sliding_window": 40}, "decoder"),
  "prefix": (DECODER, {"scan_layers": False}, "prefix"),
  "T5": (T5, {}, "encoder_decoder"),
  "T5 of blocks": (T5, {"remat": "full"}, "blocks"),
}


@pytest.mark.parametrize(
  ("kind", "kernel"),
  [
    (kind, kernel)
    if (kind, kernel) == ("T5", "flash")
    else pytest.param(kind, kernel, marks=pytest.mark.slow)
    for kind in KINDS
    for kernel in ("flash", "cudnn")
    if (kind, kernel) != ("prefix", "flash")  # It is causal in decoders.
  ],
)
def test_it_is_as_near_to_float32_as_the_plain_path_in_bfloat16(kind, kernel):
  config, settings, layout = KINDS[kind]
  config = dataclasses.replace(config, **settings)
  batch = {
    "decoder": partial(batch_of, "decoder"),
    "prefix": lambda: prefixed(batch_of("decoder")),
    "encoder_decoder": partial(batch_of, "encoder_decoder"),
    "blocks": partial(batch_of, "encoder_decoder", inputs=256, targets=128),
  }[layout]()
  params = build_model(config).init(jax.random.key(0))
  run = partial(hidden_and_gradients, batch=batch, params=params)
  exact = run(dataclasses.replace(config, dtype="float32"))
  plain = distance(run(config), exact)
  fused = distance(run(dataclasses.replace(config, attention=kernel)), exact)
  for (path, found), wanted in zip(
    jax.tree_util.tree_leaves_with_path(fused), jax.tree.leaves(plain), strict=True
  ):
    assert found < 1.5 * wanted + 1e-3, (jax.tree_util.keystr(path), found, wanted)
    print(f"{jax.tree_util.keystr(path)}: {found:.2e} of {kernel}, {wanted:.2e} plain")


@pytest.mark.parametrize(("config", "calls"), [(DECODER, 1), (T5, 3)], ids=["decoder", "T5"])
def test_dots_does_not_run_the_forward_kernel_of_cudnn_twice(config, calls, monkeypatch):
  monkeypatch.setattr(cudnn_attention_module, "platform", lambda: "gpu")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_300)
  monkeypatch.setattr(cudnn, "check_is_flash_attention", lambda *_, **__: None)
  model = build_model(dataclasses.replace(config, attention="cudnn"))
  batch = batch_of(model.layout)
  params = build_model(config).init(jax.random.key(0))
  jaxpr = jax.make_jaxpr(jax.grad(lambda params: jnp.sum(model.hidden(params, batch), dtype="f4")))
  assert len(re.findall(r"\bdot_product_attention_fwd_wrapper\b", str(jaxpr(params)))) == calls


RATE, KEY = 0.3, jax.random.key(7)


def by_cudnn(query, key, value, segments, bias, softcap, causal, window, dropout):
  assert softcap is None and not dropout
  return cudnn_attention(query, key, value, bools(segments, causal, window), bias, 0.5)


def by_flash(query, key, value, segments, bias, softcap, causal, window, dropout):
  asked = Causal(segments.keys) if causal else segments
  drawn = (RATE, KEY) if dropout else ()
  return flash_attention(query, key, value, asked, bias, 0.5, softcap, window, *drawn)


def plain(query, key, value, segments, bias, softcap, causal, window, dropout):
  mask, kept = bools(segments, causal, window), None
  if dropout:
    rows, tokens, heads, _ = query.shape
    kept = drawn(rows, heads, tokens, key.shape[1])
    kept = jnp.swapaxes(kept.reshape(rows, key.shape[2], -1, *kept.shape[2:]), 2, 3)
  return dot_product_attention(query, key, value, mask, bias, 0.5, kept, RATE, softcap)


def drawn(rows, heads, tokens, keys):
  """What dropout leaves, [B, N, T, S], of all pairs at once."""
  rules = Rules(1.0, None, False, None, RATE)
  of_head = partial(kept_of, rules, places=jnp.arange(tokens), key_places=jnp.arange(keys))
  return jax.vmap(jax.vmap(of_head))(jax.random.bits(KEY, (rows, heads)))


def bools(segments, causal, window):
  if not causal:
    return same_segment(*segments)
  mask = LowerTriangular(causal_mask(*segments.keys.shape, segments.keys))
  places = jnp.arange(segments.keys.shape[1])[None]
  return mask if window is None else within_window(mask, places, places, window)


SHAPES = {
  "encoder with positions": {"with_bias": True, "keys": 130, "kv_heads": 4},
  "grouped cross attention": {"keys": 200},
  "grouped, with dropout": {"keys": 150, "dropout": True},
  "encoder with positions and dropout": {"with_bias": True, "kv_heads": 4, "dropout": True},
  "grouped causal": {"causal": True},
  "causal with positions, softcap and window": {
    "causal": True,
    "with_bias": True,
    "kv_heads": 4,
    "softcap": 3.0,
    "window": 20,
  },
}


@pytest.mark.skipif(ON_GPU, reason="of float32, which the kernels do not compute in there")
@pytest.mark.parametrize(
  ("attend", "shape"),
  [
    *((by_flash, shape) for shape in SHAPES),
    *((by_cudnn, shape) for shape in SHAPES if "dropout" not in shape),
  ],
)
def test_value_and_gradients_in_float32_are_those_of_the_plain_path(attend, shape):
  settings = {
    "causal": False,
    "with_bias": False,
    "softcap": None,
    "window": None,
    "dropout": False,
  }
  settings |= {"keys": 130, "kv_heads": 2} | SHAPES[shape]
  with_bias, keys, kv_heads = (settings.pop(name) for name in ("with_bias", "keys", "kv_heads"))
  if attend is by_cudnn and settings["softcap"]:
    settings["softcap"] = None
  rows, tokens = 2, keys if settings["causal"] else 130
  shapes = [(rows, tokens, 4, 16), (rows, keys, kv_heads, 16), (rows, keys, kv_heads, 16)]
  shapes += [(1, 4, tokens, keys)] if with_bias else []
  arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
  ids = segments_of(rows, keys, 30)
  segments = SameSegment(ids[:, :tokens], ids)
  real = segments.queries[..., None] > 0

  def value_and_gradients(attend):
    def loss(arrays):
      query, key, value, *bias = arrays
      out = attend(query, key, value, segments, bias[0] if bias else None, **settings)
      out = jnp.where(real, out, 0)
      return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)

  close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
  jax.tree.map(close, value_and_gradients(attend), value_and_gradients(plain))


@pytest.mark.parametrize(
  ("shape", "kernels"), [("encoder with positions", 4), ("grouped causal", 3)]
)
def test_the_kernels_can_be_compiled_for_a_gpu_that_is_not_here(shape, kernels):
  causal, with_bias = SHAPES[shape].get("causal", False), SHAPES[shape].get("with_bias", False)
  shapes = [(2, 128, 4, 64), (2, 128, 2, 64), (2, 128, 2, 64)] + (
    [(1, 4, 128, 128)] if with_bias else []
  )
  arrays = [jnp.ones(shape, jnp.bfloat16) for shape in shapes]
  ids = segments_of(2, 128, 30)

  def loss(arrays):
    asked = Causal(ids) if causal else SameSegment(ids, ids)
    bias = arrays[3] if with_bias else None
    out = flash_attention(*arrays[:3], asked, bias, dropout_rate=RATE, dropout_key=KEY)
    return jnp.sum(out, dtype="f4")

  mesh = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("NVIDIA H200", None, "gpu"))
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = jax.jit(jax.grad(loss)).trace(arrays).lower(lowering_platforms=("cuda",))
  assert lowered.as_text().count("__gpu$xla.gpu.triton") == kernels


def test_dropout_leaves_its_share_whatever_the_neighbour():
  left = np.asarray(drawn(2, 4, 256, 256), np.float32)
  spread = np.sqrt(RATE * (1 - RATE) / left.size)
  assert abs(left.mean() - (1 - RATE)) < 4 * spread
  apart = left - (1 - RATE)
  neighbours = [apart[:, :, 1:] * apart[:, :, :-1], apart[..., 1:] * apart[..., :-1]]
  neighbours += [apart[:, 1:] * apart[:, :-1], apart[1:] * apart[:-1]]
  neighbours += [apart[:, :, 1:, 1:] * apart[:, :, :-1, :-1], apart * np.swapaxes(apart, 2, 3)]
  neighbours[-1] = neighbours[-1][..., np.triu_indices(256, 1)[0], np.triu_indices(256, 1)[1]]
  for products in neighbours:
    assert abs(products.mean()) < 4 * RATE * (1 - RATE) / np.sqrt(products.size)
  rows = left.mean(axis=3)
  assert 0.9 < rows.std() / np.sqrt(RATE * (1 - RATE) / 256) < 1.1


MESHES = {
  "rows and heads": MeshConfig(2, 2, 1, 2),
  "sequence": MeshConfig(1, 2, 2, 2),
  "more devices than key heads": MeshConfig(1, 2, 1, 4),  # Of the decoder's.
}


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize(
  ("kernel", "family", "mesh"),
  [
    ("flash", "decoder", "sequence"),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ("flash", "T5", "rows and heads"),
        ("flash", "T5", "sequence"),
        ("flash", "decoder", "rows and heads"),
        ("flash", "decoder", "more devices than key heads"),
        ("cudnn", "T5", "rows and heads"),
        ("cudnn", "T5", "sequence"),
        ("cudnn", "decoder", "sequence"),
        ("cudnn", "decoder", "more devices than key heads"),
      )
    ),
  ],
)
def test_on_a_mesh_every_device_has_its_rows_heads_and_queries(kernel, family, mesh):
  config, mesh = {"T5": T5, "decoder": DECODER}[family], MESHES[mesh]
  dropout = 0.1 if (kernel, family) == ("flash", "T5") else 0.0
  config = dataclasses.replace(config, attention=kernel, dropout_rate=dropout)
  model = build_model(config)
  batch = batch_of(model.layout, rows=4, inputs=128, targets=64)
  params = model.init(jax.random.key(0))
  wanted = hidden_and_gradients(config, batch, params, KEY)
  layout = make_layout(model, make_mesh(mesh))
  with pytest.raises(MeshError, match="kernel for GPUs"):
    check_kernels(config, layout.mesh)
  with layout.active():
    placed = jax.device_put(params, param_shardings(model, layout))
    found = hidden_and_gradients(config, batch, placed, KEY)
  for path, error in jax.tree_util.tree_leaves_with_path(distance(found, wanted)):
    assert error < 0.02, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize(
  ("config", "settings", "message"),
  [
    (DECODER, {"dtype": "float32"}, "set dtype='bfloat16'"),
    (DECODER, {"head_dim": 260}, "head_dim=260"),
    (DECODER, {"attention_softcap": 3.0}, "no attention_softcap"),
    (T5, {"dropout_rate": 0.1}, "set attention='flash'"),
    (DECODER, {"attention": "flash", "head_dim": 48}, "16, 32, ... 128 numbers"),
    (
      DECODER,
      {"attention": "flash", "sliding_window": 8, "window_pattern": (True, False)},
      "one mask for all layers",
    ),
    (T5, {"attention": "splash"}, "'flash' on GPUs"),
    (T5, {"attention": "cuddn"}, "Did you mean 'cudnn'"),
  ],
)
def test_what_the_kernel_cannot_compute_is_refused(config, settings, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(config, **{"attention": "cudnn", **settings})
