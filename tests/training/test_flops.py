"""FLOPs of a batch, against closed forms and against the pairs that the models' own masks let see each other."""

import dataclasses

import jax
import numpy as np
import pytest

from flan_jax.models import DecoderConfig, EncoderDecoderConfig, LoraConfig, build_model
from flan_jax.models.attention import causal_mask, same_segment, within_window
from flan_jax.training.flops import batch_flops, shapes_by_path
from flan_jax.training.lora import Lora

D, N, H, K, F, V, L = 32, 4, 16, 2, 96, 128, 3
DECODER = DecoderConfig(V, D, L, N, K, H, F)
T5 = EncoderDecoderConfig(V, D, N, H, 2, L, F)
# Two rows: examples of 5 and 3 tokens, and one of 7; the rest is padding.
READ = np.array([[1] * 5 + [2] * 3 + [0] * 2, [1] * 7 + [0] * 3])
WRITTEN = np.array([[1] * 2 + [2] * 4, [1] * 1 + [0] * 5])


def shapes(model):
  return shapes_by_path(jax.eval_shape(model.init, jax.random.key(0)))


def decoder_batch(scored=6, **more):
  weights = np.zeros(READ.shape, np.float32)
  weights.ravel()[np.flatnonzero(READ)[:scored]] = 0.5
  return {"decoder_segment_ids": READ, "decoder_loss_weights": weights, **more}


def flops_of(config, batch):
  model = shapes(build_model(config))
  return batch_flops(config, batch, model, model)


def test_a_decoders_kernels_pairs_and_logits_have_closed_forms():
  flops = flops_of(DECODER, decoder_batch())
  kernels = L * (D * N * H + 2 * D * K * H + N * H * D + 3 * D * F)
  pairs = 5 * 6 // 2 + 3 * 4 // 2 + 7 * 8 // 2
  assert flops.kernels == 6 * 15 * kernels
  assert flops.attention == 3 * 4 * N * H * L * pairs
  assert flops.logits == 6 * 6 * D * V
  assert flops.total == flops.kernels + flops.attention + flops.logits


def test_an_encoder_decoder_counts_each_kernel_for_the_tokens_that_pass_it():
  batch = {
    "encoder_segment_ids": READ,
    "decoder_segment_ids": WRITTEN,
    "decoder_loss_weights": (WRITTEN > 0).astype(np.float32),
  }
  flops = flops_of(T5, batch)
  square, mlp = D * N * H, 3 * D * F
  encoder = 15 * 2 * (4 * square + mlp)
  decoder = L * (7 * (4 * square + 2 * square + mlp) + 15 * 2 * square)
  assert flops.kernels == 6 * (encoder + decoder)
  of_encoder = 5**2 + 3**2 + 7**2
  of_decoder = 2 * 3 // 2 + 4 * 5 // 2 + 1
  cross = 2 * 5 + 4 * 3 + 1 * 7
  assert flops.attention == 12 * N * H * (2 * of_encoder + L * (of_decoder + cross))
  assert flops.logits == 6 * 7 * D * V


@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("both_ways", [False, True])
def test_pairs_are_those_that_the_masks_of_the_model_let_see_each_other(window, both_ways):
  random = np.random.default_rng(0)
  ids = np.sort(random.integers(0, 4, (3, 24)), axis=1)[:, ::-1] % 4
  prefix = (random.random(ids.shape) < 0.5) * 1
  # What is read in both directions stands at the beginning of an example.
  for row, segment in np.ndindex(3, 4):
    inside = ids[row] == segment
    prefix[row, inside] = np.sort(prefix[row, inside])[::-1]
  batch = {"decoder_segment_ids": ids, "decoder_loss_weights": np.ones(ids.shape)}
  if both_ways:
    batch["decoder_causal_attention"] = prefix
  config = dataclasses.replace(DECODER, sliding_window=window, window_pattern=(True, False))
  places = np.arange(24)[None]
  whole = causal_mask(3, 24, ids, prefix if both_ways else None)
  near = whole if window is None else within_window(whole, places, places, window)
  real = (ids > 0)[:, :, None]
  pairs = sum(int(np.sum(mask & real)) for mask in (near, whole, near))
  assert flops_of(config, batch).attention == 12 * N * H * pairs


def test_cross_attention_pairs_are_those_of_the_same_segment():
  random = np.random.default_rng(1)
  read, written = (np.sort(random.integers(0, 5, (4, n)), axis=1)[:, ::-1] for n in (17, 9))
  config = dataclasses.replace(T5, num_encoder_layers=1, num_decoder_layers=1)
  batch = {
    "encoder_segment_ids": read,
    "decoder_segment_ids": written,
    "decoder_loss_weights": np.zeros(written.shape),
  }
  pairs = sum(
    int(np.sum(np.asarray(mask) & (queries > 0)[:, :, None]))
    for mask, queries in (
      (same_segment(read, read), read),
      (same_segment(written, read), written),
      (causal_mask(4, 9, written), written),
    )
  )
  assert flops_of(config, batch).attention == 12 * N * H * pairs


def test_padding_asks_for_nothing():
  batch = decoder_batch()
  wider = {name: np.pad(array, ((0, 4), (0, 50))) for name, array in batch.items()}
  assert flops_of(DECODER, wider) == flops_of(DECODER, batch)


def test_of_frozen_kernels_no_gradient_is_counted():
  model = build_model(DECODER)
  lora = Lora(model, LoraConfig(4, 8.0, 0.0, False, ("*attention/query/kernel",)))
  flops = batch_flops(DECODER, decoder_batch(), shapes(lora), shapes(model))
  kernels = L * (D * N * H + 2 * D * K * H + N * H * D + 3 * D * F)
  adapters = L * 4 * (D + N * H)
  assert flops.kernels == 15 * (4 * kernels + 6 * adapters)
  assert flops.logits == 4 * 6 * D * V
