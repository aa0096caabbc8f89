"""Model FLOPs utilisation of tuning on one GPU, and how near writing comes to its bandwidth. Needs JAX, no TensorFlow.

  python benchmarks/gpu.py [decoder_1b decoder_3b t5_large t5_xl] [--store FOLDER] [--rows 8] [--steps 10]
  python benchmarks/gpu.py --writing

Packed rows, of 2048 tokens or of 1024 inputs and 256 targets, AdamW, bfloat16 over float32 parameters. With `--store`
the rows are those of a prepared store that was carried here, else examples of 200 and 16 random tokens, packed. The
utilisation is the FLOPs that the mathematics asks for (`flan_jax.training.flops`: padding, masked scores and what is
computed again count nothing) over the peak that the maker tells. The first step compiles and is not counted.
`--writing` tells tokens a second of one prompt and of 32, of the shape of decoder_1b in bfloat16, and the bytes of
parameters that are read a second for it.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flan_jax.data import StoredExample
from flan_jax.data.batches import Batches, make_features
from flan_jax.data.packing import pack
from flan_jax.data.store import Store
from flan_jax.inference import Engine, Sampling
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model, parameter_count
from flan_jax.training.devices import device_of
from flan_jax.training.flops import batch_flops, shapes_by_path
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.optimizers import adamw
from flan_jax.training.step import TrainState, make_train_step

Config = DecoderConfig | EncoderDecoderConfig

SHAPES: dict[str, Config] = {
  "decoder_1b": DecoderConfig(128_256, 2048, 16, 32, 8, 64, 8192, rope_theta=5e5),
  "decoder_3b": DecoderConfig(128_256, 3072, 28, 24, 8, 128, 8192, rope_theta=5e5),
  "t5_large": EncoderDecoderConfig(32_128, 1024, 16, 64, 24, 24, 2816),
  "t5_xl": EncoderDecoderConfig(32_128, 2048, 32, 64, 24, 24, 5120),
  "tiny": DecoderConfig(512, 64, 2, 4, 2, 16, 128),
}
LENGTHS = {
  "decoder": {"inputs": 1792, "targets": 256},
  "encoder_decoder": {"inputs": 1024, "targets": 256},
}
EXAMPLE = (200, 16)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("shapes", nargs="*", default=[], help=", ".join(SHAPES))
  parser.add_argument("--store", help="a prepared store, by path or URL")
  parser.add_argument("--rows", type=int, default=8)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--remat", default="dots")
  parser.add_argument("--writing", action="store_true")
  args = parser.parse_args()
  print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}", flush=True)
  for name in args.shapes or ([] if args.writing else list(SHAPES)[:4]):
    tune(name, args)
  if args.writing:
    write(SHAPES[args.shapes[0] if args.shapes else "decoder_1b"])


def tune(name: str, args: argparse.Namespace) -> None:
  config = dataclasses.replace(SHAPES[name], dtype="bfloat16", remat=args.remat, scan_layers=True)
  model = build_model(config)
  optimizer = adamw(optax.constant_schedule(1e-5), clip_norm=1.0)
  step = make_train_step(SupervisedLoss(model), optimizer)
  state = TrainState.create(jax.jit(model.init)(jax.random.key(0)), optimizer)
  shapes = shapes_by_path(state.params)
  seconds, flops, useful = [], [], []
  for batch in itertools.islice(batches(config, args), args.steps + 1):
    flops.append(batch_flops(config, batch, shapes, shapes).total)
    useful.append(
      sum(np.count_nonzero(ids) for key, ids in batch.items() if key.endswith("segment_ids"))
    )
    begun = time.perf_counter()
    state, metrics = step(state, batch, jax.random.key(1))
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - begun)
  pace = sum(flops[1:]) / sum(seconds[1:])
  peak = device_of(jax.devices()[0].device_kind).peak
  memory = jax.devices()[0].memory_stats() or {}
  print(
    f"{name}: {statistics.median(seconds[1:]):.3f} s a step of {args.rows} rows, "
    f"{sum(useful[1:]) / sum(seconds[1:]):,.0f} useful tokens/s, {pace / 1e12:.3g} TFLOP/s"
    + (f", {pace / peak:.1%} of {peak / 1e12:.0f}" if peak else "")
    + f"; {memory.get('peak_bytes_in_use', 0) / 2**30:.1f} GiB at the peak; {seconds[0]:.0f} s to compile",
    flush=True,
  )


def batches(config: Config, args: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
  layout = "decoder" if isinstance(config, DecoderConfig) else "encoder_decoder"
  if args.store:
    return iter(Batches(Store.open(args.store), args.rows))
  return drawn(layout, config.vocab_size, args.rows)


def drawn(layout: str, words: int, rows: int) -> Iterator[dict[str, np.ndarray]]:
  """Packed rows of examples of random tokens."""
  lengths, draw = LENGTHS[layout], np.random.default_rng(0)
  inputs, targets = EXAMPLE
  weights = np.ones(targets, np.float32)
  if layout == "decoder":
    sizes, capacities = (inputs + targets - 1,), (sum(lengths.values()),)
    weights = np.concatenate([np.zeros(inputs, np.float32), weights])
  else:
    sizes, capacities = EXAMPLE, tuple(lengths.values())
  in_row = len(pack([sizes] * 100, capacities)[0])

  def example() -> StoredExample:
    tokens = draw.integers(3, words, inputs + targets)
    read = 0 if layout == "decoder" else inputs
    return StoredExample(tokens[:read], tokens[read:], weights)

  while True:
    examples = [[example() for _ in range(in_row)] for _ in range(rows)]
    yield make_features(examples, layout, lengths)


def write(config: Config) -> None:
  model = build_model(dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16"))
  params = jax.jit(model.init)(jax.random.key(0))
  draw = np.random.default_rng(0)
  for count in (1, 32):
    prompts = [draw.integers(3, config.vocab_size, 64).tolist() for _ in range(count)]
    engine = Engine(model, params, stop_ids=(), slots=count, length=320)
    settings = [Sampling(256)] * count
    engine.run(prompts, settings)
    begun = time.perf_counter()
    engine.run(prompts, settings)
    pace = 256 * count / (time.perf_counter() - begun)
    read = parameter_count(model) * jnp.dtype("bfloat16").itemsize * pace / count
    print(
      f"{count} prompts: {pace:,.0f} tokens/s, parameters read at {read / 1e9:,.0f} GB/s",
      flush=True,
    )


if __name__ == "__main__":
  main()
