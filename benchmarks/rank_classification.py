"""Speed of rank classification against scoring each option as a sequence of its own.

  python benchmarks/rank_classification.py [--family decoder t5] [--tokens 12000] [--turns 3] [--cells P,n,O ...]

A prompt of P tokens with n options of O: shared they are P + nO tokens, apart n(P + O), so that the speed-up has the
bound n(P + O) / (P + nO) where all tokens cost the same. They do not: logits are only made of options, and of an
encoder-decoder each token of an option passes the decoder, shared or apart. `work` is the bound in multiply-adds with
weights. Both ways are asked of the same `score_options` with the settings of `flan-jax evaluate`: apart means one
option a request, each behind a prompt of its own, drawn anew, so that nothing can be shared. Fresh parameters of the
shapes of SmolLM2-135M and of T5 small, float32. There are as many prompts as make about `--tokens` tokens apart, in
dozens: two at least, or one where n(P + O) is above 2,000. Turns alternate, and medians are told; CPU seconds are of
all threads, and bear better what else the machine does. `empty` is what of the slots that went into the model held no
token: shared, and apart. `ratio` is the speed-up as a part of the bound of tokens.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from flan_jax.evaluation import rank_classification
from flan_jax.evaluation.option_scores import RankRequest
from flan_jax.evaluation.rank_classification import row_lengths_up_to, score_options
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, LanguageModel, build_model

LENGTHS = row_lengths_up_to(512)
SHAPES = {
  "decoder": DecoderConfig(49_152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5),
  "t5": EncoderDecoderConfig(
    vocab_size=32_128,
    emb_dim=512,
    num_heads=8,
    head_dim=64,
    num_encoder_layers=6,
    num_decoder_layers=6,
    mlp_dim=2048,
    mlp_activations=("relu",),
    tied_embeddings=True,
  ),
}


class Slots:
  """Counts what goes into the jitted function: slots, and those of them that hold a token."""

  def __init__(self) -> None:
    self.all = self.used = 0
    self.compiling = False
    self._seen: set[tuple[int, ...]] = set()
    self._run = rank_classification._run
    rank_classification._run = self.run

  def run(self, model: LanguageModel, params: dict, arrays: Mapping[str, np.ndarray], layout: None):
    marks = ["units"] + ["encoder_segment_ids"] * (model.layout != "decoder")
    self.all += sum(arrays[mark].size for mark in marks)
    self.used += sum(int((arrays[mark] != 0).sum()) for mark in marks)
    shape = tuple(size for mark in marks for size in arrays[mark].shape)
    if self.compiling and shape in self._seen:  # nothing is to be learnt by running it again
      return np.zeros((2, *arrays["targets"].shape))
    self._seen.add(shape)
    return self._run(model, params, arrays, layout)

  def compile(self, model: LanguageModel, params: dict, requests: Sequence[RankRequest]) -> float:
    """Runs each shape of the requests once; the share of slots that are empty."""
    self.all = self.used = 0
    self.compiling = True
    score_options(model, params, requests, row_lengths=LENGTHS)
    self.compiling = False
    return 1 - self.used / self.all


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--family", nargs="+", default=list(SHAPES), choices=SHAPES)
  parser.add_argument("--tokens", type=int, default=12_000, help="of all sequences apart")
  parser.add_argument("--turns", type=int, default=3)
  parser.add_argument("--cells", nargs="+", help="P,n,O", default=[])
  args = parser.parse_args()
  grid = [tuple(map(int, cell.split(","))) for cell in args.cells]
  slots = Slots()
  print(
    "                                                             bound of     by the clock  by CPU seconds"
  )
  print(
    "family    P   n   O prompts  shared s  apart s   empty     tokens   work  speed-up ratio   speed-up ratio"
  )
  for family in args.family:
    model = build_model(SHAPES[family])
    params = jax.jit(model.init)(jax.random.key(0))
    for cell in grid or itertools.product((64, 256), (2, 4, 16), (4, 16)):
      compare(model, params, slots, cell, args)


def work_bound(model: LanguageModel, length: int, options: int, of: int) -> float:
  """The bound where a token costs its multiply-adds with weights."""
  c = model.config
  heads, mlp = c.num_heads * c.head_dim, c.emb_dim * c.mlp_dim * (1 + len(c.mlp_activations))
  head = c.emb_dim * c.vocab_size
  if model.layout == "decoder":
    kv = c.num_kv_heads * c.head_dim
    prompt = c.num_layers * (2 * c.emb_dim * (heads + kv) + mlp)
    option = prompt + head
  else:
    square = c.emb_dim * heads
    prompt = c.num_encoder_layers * (4 * square + mlp) + c.num_decoder_layers * 2 * square
    option = c.num_decoder_layers * (6 * square + mlp) + head
  return options * (length * prompt + of * option) / (length * prompt + options * of * option)


def compare(
  model: LanguageModel,
  params: dict,
  slots: Slots,
  cell: Sequence[int],
  args: argparse.Namespace,
) -> None:
  """Times one size of prompts and options, and prints its line."""
  length, options, of = cell
  apart_each = options * (length + of)
  prompts = 12 * max(2 if apart_each < 2_000 else 1, round(args.tokens / 12 / apart_each))
  draw = np.random.default_rng(0)

  def ids(size: int) -> tuple[int, ...]:
    return tuple(draw.integers(10, 30_000, size).tolist())

  asked = {
    "shared": [
      RankRequest(ids(length), tuple(ids(of) for _ in range(options))) for _ in range(prompts)
    ],
    "apart": [RankRequest(ids(length), (ids(of),)) for _ in range(prompts * options)],
  }
  empty = [slots.compile(model, params, requests) for requests in asked.values()]
  clock: dict[str, list[float]] = {way: [] for way in asked}
  busy: dict[str, list[float]] = {way: [] for way in asked}
  for _ in range(args.turns):
    for way, requests in asked.items():
      begun = time.perf_counter(), time.process_time()
      score_options(model, params, requests, row_lengths=LENGTHS)
      clock[way].append(time.perf_counter() - begun[0])
      busy[way].append(time.process_time() - begun[1])
  shared, apart = (statistics.median(times) for times in clock.values())
  shared_busy, apart_busy = (statistics.median(times) for times in busy.values())
  gain, bound = apart / shared, apart_each / (length + options * of)
  gain_busy = apart_busy / shared_busy
  print(
    f"{model.layout[:7]:7s} {length:3d} {options:3d} {of:3d} {prompts:7d} {shared:9.2f} {apart:8.2f}"
    f"  {empty[0]:4.0%} {empty[1]:4.0%} {bound:7.2f} {work_bound(model, *cell):6.2f}"
    f" {gain:9.2f} {gain / bound:6.2f} {gain_busy:7.2f} {gain_busy / bound:6.2f}",
    flush=True,
  )


if __name__ == "__main__":
  main()
