"""Tiny models and batches for the tests of training."""

import jax
import jax.numpy as jnp
import numpy as np

from flan_jax.models import DecoderConfig, EncoderDecoderConfig, LMHead, build_model

DECODER = build_model(
  DecoderConfig(
    vocab_size=64, emb_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32
  )
)
ENCODER_DECODER = build_model(
  EncoderDecoderConfig(
    vocab_size=64,
    emb_dim=16,
    num_heads=4,
    head_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_dim=32,
    dropout_rate=0.0,
  )
)


class Table:
  """A model of two tables, word to word: what it costs to compile is nearly nothing."""

  def init(self, key):
    table, out = jax.random.split(key)
    return {"table": jax.random.normal(table, (64, 16)), "out": jax.random.normal(out, (16, 64))}

  def shapes(self):
    return jax.eval_shape(self.init, jax.random.key(0))

  def logical_axes(self):
    return {"table": ("vocab", "embed"), "out": ("embed", "vocab")}

  def hidden(self, params, batch, dropout_key=None):
    return params["table"][jnp.asarray(batch["decoder_input_tokens"])]

  def lm_head(self, params):
    return LMHead(params["out"])

  def logits(self, params, batch):
    return self.hidden(params, batch) @ params["out"]


TABLE = Table()
FAMILIES = {"decoder": DECODER, "encoder_decoder": ENCODER_DECODER}


def batch_of(rows=8, length=12, words=64, tasks=3, seed=0):
  """A batch with the keys of both families, whose rows carry very different numbers of targets."""
  draw = np.random.default_rng(seed)
  tokens = draw.integers(3, words, (rows, length + 1)).astype(np.int32)
  weights = (draw.random((rows, length)) < (np.arange(rows)[:, None] % 5 + 1) / 6).astype(
    np.float32
  )
  filled = length - np.arange(rows)[:, None] % 4
  segments = (np.arange(length)[None, :] < filled).astype(np.int32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()
  return {
    "encoder_input_tokens": draw.integers(3, words, (rows, length)).astype(np.int32),
    "encoder_segment_ids": segments,
    "encoder_positions": positions,
    "decoder_input_tokens": tokens[:, :-1] * segments,
    "decoder_target_tokens": tokens[:, 1:] * segments,
    "decoder_loss_weights": weights * segments,
    "decoder_segment_ids": segments,
    "decoder_positions": positions,
    "task_ids": np.broadcast_to(
      np.arange(rows, dtype=np.int32)[:, None] % tasks, (rows, length)
    ).copy(),
    "example_ids": np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], (rows, length)).copy(),
  }


def assert_trees_close(ours, theirs, **tolerance):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
    got = dict(jax.tree_util.tree_leaves_with_path(ours))[path]
    np.testing.assert_allclose(got, leaf, err_msg=jax.tree_util.keystr(path), **tolerance)


def assert_trees_equal(ours, theirs):
  assert_trees_close(ours, theirs, rtol=0, atol=0)
