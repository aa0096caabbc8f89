"""Floating-point operations of a training step, from shapes alone.

A product of [m, k] with [k, n] counts 2 m n k. So a kernel [in, out] costs 2 in out for each token that
passes it, and attention 4 N H for each pair of a query and a key that it sees:

  forward     2 (sum over kernels of  tokens * in * out) + 4 N H (sum over layers of  queries * keys seen)
  backward    for the inputs of each product as much again, and for kernels that are trained once more

A causal query sees half of its row, or of its example where rows are packed, at most a window of it; T5's
encoder sees all, and cross attention a whole input. The logits are made of the tokens that carry loss.

`StepFlops.model` is this: what the mathematics asks for, whatever is computed twice (the numerator of model
FLOPs utilisation, PaLM, arXiv 2204.02311, appendix B). `StepFlops.executed` is what our step computes:
attention over whole rows, masked; the logits' forward pass again; and what remat computes again.
Norms, softmax, activations and the optimizer are left out of both: a few for each number.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.training.activations import Workload

Path = tuple[str, ...]
Shapes = Mapping[Path, tuple[int, ...]]


class StepFlops(NamedTuple):
  """Of one step, over all devices.

  Args:
    kernels, attention, logits: of the model, forward and backward.
    executed: all that the step computes.
  """

  kernels: float
  attention: float
  logits: float
  executed: float

  @property
  def model(self) -> float:
    return self.kernels + self.attention + self.logits


def step_flops(
  config: DecoderConfig | EncoderDecoderConfig,
  work: Workload,
  trained: Shapes,
  model: Shapes,
) -> StepFlops:
  """FLOPs of one step.

  Args:
    trained: the shapes of the parameters that are trained, by path; adapters have paths of their own.
    model: of all parameters of the model.
  """
  learnt = _forward_of_kernels(work, trained)
  forward = _forward_of_kernels(work, {**model, **trained})
  # Forward, and backward for the inputs; for the kernels themselves only where they learn.
  kernels = 2 * forward + learnt
  table = ("embed", "embedding") if config.tied_embeddings else ("unembed", "kernel")
  head, head_learns = math.prod(model[table]), table in trained
  logits = 2 * work.rows * work.scored * head
  pairs = _pairs(config, work, seen=True)
  width = 4 * config.num_heads * config.head_dim
  executed = (
    kernels
    + 3 * width * _pairs(config, work, seen=False)
    + logits * (3 + head_learns)
    + (forward if config.remat == "full" else 0)
    + (width * _pairs(config, work, seen=False) if config.remat != "none" else 0)
  )
  return StepFlops(kernels, 3 * width * pairs, logits * (2 + head_learns), executed)


def _forward_of_kernels(work: Workload, shapes: Shapes) -> float:
  """Every layer's kernels and adapters; [layers, in, out], or without layers."""
  return sum(
    2 * work.rows * _tokens(path, work) * math.prod(shape)
    for path, shape in shapes.items()
    if path[-1] in ("kernel", "lora_a", "lora_b") and path[0] != "unembed"
  )


def _tokens(path: Path, work: Workload) -> int:
  """How many of a row pass the kernel."""
  of_encoder = path[0] == "encoder" or ("cross_attention" in path and path[-2] in ("key", "value"))
  return work.inputs if of_encoder else work.length


def _pairs(config: DecoderConfig | EncoderDecoderConfig, work: Workload, *, seen: bool) -> float:
  """Pairs of query and key, over layers and rows: those that see each other, or all."""
  length, inputs = work.length, work.inputs
  if isinstance(config, DecoderConfig):
    if not seen:
      return config.num_layers * work.rows * length * length
    example = min(work.example or length, length)
    return (
      work.rows
      * length
      * sum(
        _seen_before(example, config.sliding_window if windowed else None)
        for windowed in config.windowed
      )
    )
  if not seen:
    of_encoder: float = inputs * inputs
    of_decoder: float = length * length + length * inputs
  else:
    # A packed example has the same part of the encoder's row as of the decoder's.
    part = min((work.example or length + inputs) / (length + inputs), 1.0)
    of_encoder = part * inputs * inputs
    of_decoder = part * (length * length / 2 + length * inputs)
  return work.rows * (
    config.num_encoder_layers * of_encoder + config.num_decoder_layers * of_decoder
  )


def _seen_before(example: float, window: int | None) -> float:
  """Keys that a token of an example sees on average: half of it, or the window once that is full."""
  if window is None or window >= example:
    return example / 2
  return window - window * window / (2 * example)
