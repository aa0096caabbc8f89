"""Floating-point operations of a training step, from shapes alone.

A product of [m, k] with [k, n] counts 2 m n k. So a kernel [in, out] costs 2 in out for each token that
passes it, and attention 4 N H for each pair of a query and a key that it sees:

  forward     2 (sum over kernels of  tokens * in * out) + 4 N H (sum over layers of  pairs)
  backward    for the inputs of each product as much again, and for kernels that are trained once more

A causal query sees itself and what stands before it in its row, or in its example where rows are packed, at
most a window of it: n (n + 1) / 2 pairs of n tokens. Inputs that are read in both directions see each other,
T5's encoder sees all of an example, and cross attention its whole input. The logits are made of the tokens
that carry loss.

`ModelFlops` is this: what the mathematics asks for, whatever is computed twice (the numerator of model
FLOPs utilisation, PaLM, arXiv 2204.02311, appendix B). `batch_flops` counts it of a batch, padding left
out; `step_flops` of a plan. `StepFlops.executed` is what our step computes: attention over whole rows,
masked, of a causal one the blocks before each query's end; scores and the logits' forward pass again; and
what remat computes again. Flash attention compares what sees each other, and makes its scores once
more, and again for the gradient of T5's positions.
Norms, softmax, activations and the optimizer are left out of both: a few for each number.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.models.dot_product_attention import causal_pairs
from flan_jax.training.activations import Workload

Path = tuple[str, ...]
Shapes = Mapping[Path, tuple[int, ...]]


class ModelFlops(NamedTuple):
  """What the mathematics asks for, forward and backward, over all rows."""

  kernels: float
  attention: float
  logits: float

  @property
  def total(self) -> float:
    return sum(self)


class StepFlops(NamedTuple):
  """Of one step, over all devices.

  Args:
    executed: all that the step computes.
  """

  model: ModelFlops
  executed: float


class _Counts(NamedTuple):
  """What a step's FLOPs are proportional to, over all rows.

  Args:
    encoder, decoder: tokens that are read.
    scored: tokens that carry loss.
    pairs: of a query and a key that it sees, summed over layers.
  """

  encoder: float
  decoder: float
  scored: float
  pairs: float


def shapes_by_path(params: Any) -> Shapes:
  """Of a nested dict of arrays or shapes."""
  return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params).items()}


def batch_flops(
  config: DecoderConfig | EncoderDecoderConfig,
  batch: Mapping[str, np.ndarray],
  trained: Shapes,
  model: Shapes,
) -> ModelFlops:
  """FLOPs of a training step on the rows given, of which padding asks for none.

  Args:
    batch: numpy arrays as `flan_jax.data.batches` makes them; of it are read `*_segment_ids`,
      `decoder_loss_weights` and, where inputs are read in both directions, `decoder_causal_attention`.
    trained: the shapes of the parameters that are trained (`shapes_by_path`); adapters have paths of their own.
    model: of all parameters of the model.
  """
  return _model_flops(config, _counted(config, batch), trained, model)


def step_flops(
  config: DecoderConfig | EncoderDecoderConfig,
  work: Workload,
  trained: Shapes,
  model: Shapes,
) -> StepFlops:
  """FLOPs of one step of a plan, whose rows are full.

  Args:
    trained, model: as `batch_flops` takes them.
  """
  counts = _planned(config, work)
  flops = _model_flops(config, counts, trained, model)
  forward = _forward_of_kernels(counts, {**model, **trained})
  flash = config.attention == "flash"
  pairs = counts.pairs if flash else _pairs_compared(config, work)
  # In units of a product of scores and one with values.
  products = (5.5 if isinstance(config, EncoderDecoderConfig) else 4.5) if flash else 3.5
  scores = 4 * config.num_heads * config.head_dim * pairs
  head, _ = _head(config, trained, model)
  executed = (
    flops.kernels
    + products * scores
    + flops.logits
    + 2 * work.rows * work.scored * head
    + (forward + scores if config.remat == "full" else 0)
  )
  return StepFlops(flops, executed)


def _model_flops(
  config: DecoderConfig | EncoderDecoderConfig, counts: _Counts, trained: Shapes, model: Shapes
) -> ModelFlops:
  # Forward, and backward for the inputs; for the kernels themselves only where they learn.
  kernels = 2 * _forward_of_kernels(counts, {**model, **trained})
  kernels += _forward_of_kernels(counts, trained)
  head, head_learns = _head(config, trained, model)
  return ModelFlops(
    kernels,
    3 * 4 * config.num_heads * config.head_dim * counts.pairs,
    (2 + head_learns) * 2 * counts.scored * head,
  )


def _head(
  config: DecoderConfig | EncoderDecoderConfig, trained: Shapes, model: Shapes
) -> tuple[int, bool]:
  """Numbers in what makes logits, and whether it learns."""
  table = ("embed", "embedding") if config.tied_embeddings else ("unembed", "kernel")
  return math.prod(model[table]), table in trained


def _forward_of_kernels(counts: _Counts, shapes: Shapes) -> float:
  """Every layer's kernels and adapters; [layers, in, out], or without layers."""
  return sum(
    2 * _passing(path, counts) * math.prod(shape)
    for path, shape in shapes.items()
    if path[-1] in ("kernel", "lora_a", "lora_b") and path[0] != "unembed"
  )


def _passing(path: Path, counts: _Counts) -> float:
  """How many tokens pass the kernel."""
  of_encoder = path[0] == "encoder" or ("cross_attention" in path and path[-2] in ("key", "value"))
  return counts.encoder if of_encoder else counts.decoder


def _counted(
  config: DecoderConfig | EncoderDecoderConfig, batch: Mapping[str, np.ndarray]
) -> _Counts:
  most = max(int(ids.max(initial=0)) for name, ids in batch.items() if name.endswith("segment_ids"))
  read = _lengths(batch["decoder_segment_ids"], most)
  scored = float(np.count_nonzero(batch["decoder_loss_weights"]))
  if isinstance(config, DecoderConfig):
    inside = batch.get("decoder_causal_attention")
    both_ways = None
    if inside is not None:
      both_ways = _lengths(np.where(inside != 0, batch["decoder_segment_ids"], 0), most)
    pairs = sum(_causal_pairs(read, window, both_ways) for window in _windows(config))
    return _Counts(0, read.sum(), scored, pairs)
  inputs = _lengths(batch["encoder_segment_ids"], most)
  of_decoder = _causal_pairs(read) + (read * inputs).sum()
  pairs = config.num_encoder_layers * (inputs**2).sum() + config.num_decoder_layers * of_decoder
  return _Counts(inputs.sum(), read.sum(), scored, pairs)


def _planned(config: DecoderConfig | EncoderDecoderConfig, work: Workload) -> _Counts:
  rows, length, inputs = work.rows, work.length, work.inputs
  whole = length + inputs
  # Of a packed example the encoder's row holds the same part as the decoder's.
  part = min((work.example or whole) / whole, 1.0)
  read = np.array([part * length])
  if isinstance(config, DecoderConfig):
    pairs = sum(_causal_pairs(read, window) for window in _windows(config))
  else:
    of_decoder = _causal_pairs(read) + part**2 * length * inputs
    pairs = (
      config.num_encoder_layers * (part * inputs) ** 2 + config.num_decoder_layers * of_decoder
    )
  return _Counts(rows * inputs, rows * length, rows * work.scored, rows / part * pairs)


def _pairs_compared(config: DecoderConfig | EncoderDecoderConfig, work: Workload) -> float:
  """Pairs of query and key, over layers and rows, that are multiplied, whether they see each other or not."""
  rows, inputs, causal = work.rows, work.inputs, causal_pairs(work.length)
  if isinstance(config, DecoderConfig):
    return config.num_layers * rows * causal
  of_decoder = causal + work.length * inputs
  return rows * (
    config.num_encoder_layers * inputs * inputs + config.num_decoder_layers * of_decoder
  )


def _windows(config: DecoderConfig) -> list[int | None]:
  """Of each layer."""
  return [config.sliding_window if windowed else None for windowed in config.windowed]


def _causal_pairs(
  lengths: np.ndarray, window: int | None = None, both_ways: np.ndarray | None = None
) -> float:
  """Of examples of these lengths, whose first `both_ways` tokens also see those after them."""
  near = lengths if window is None else np.minimum(lengths, window)
  pairs = near * (near + 1) / 2 + (lengths - near) * near
  if both_ways is not None:
    # Forwards as many as backwards, and itself only once.
    return float(pairs.sum()) + _causal_pairs(both_ways, window) - float(both_ways.sum())
  return float(pairs.sum())


def _lengths(segment_ids: np.ndarray, most: int) -> np.ndarray:
  """Tokens of each segment 1 to `most` of each row, as float64 [rows * most]."""
  rows = segment_ids.shape[0]
  places = segment_ids + (most + 1) * np.arange(rows)[:, None]
  counts = np.bincount(places.ravel(), minlength=rows * (most + 1)).reshape(rows, most + 1)
  return counts[:, 1:].astype(np.float64).ravel()
