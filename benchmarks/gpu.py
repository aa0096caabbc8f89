"""Model FLOPs utilisation of tuning on one GPU, and tokens a second written beside transformers. Needs no TensorFlow.

  python benchmarks/gpu.py [decoder_1b decoder_3b t5_large t5_xl] [--store FOLDER] [--rows 8] [--steps 20]
  python benchmarks/gpu.py decoder_1b --writing

Each shape has a process, and so the memory, of its own. Packed rows, of 2048 tokens or of 1024 inputs and 256 targets,
AdamW, bfloat16 over float32 parameters. With `--store` the rows are those of a prepared store that was carried here,
else examples of 200 and 16 random tokens, packed. The utilisation is the FLOPs that the mathematics asks for
(`flan_jax.training.flops`: padding, masked scores, embeddings, logits of inputs and what is computed again count
nothing) over the peak that the maker tells; beside it, for comparison with those who count so, 6 for each parameter and
token. The first two steps are not counted.

With `--writing` tokens a second of one prompt and of 32, in bfloat16: the time of 256 tokens more than 64, so that
reading the prompt is left out. The floor is the time in which the parameters can be read, at the bandwidth of a copy.
transformers writes with its default cache and with a static one, and the faster counts.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from figures import alone

from flan_jax.data import StoredExample
from flan_jax.data.batches import Batches, make_features
from flan_jax.data.packing import pack
from flan_jax.data.store import Store
from flan_jax.errors import ConfigError
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
ROWS = {"decoder": 8, "encoder_decoder": 32}
EXAMPLE = (200, 16)
WARM_UP = 2  # Steps.
PROMPT, SHORT, LONG, TURNS = 64, 64, 320, 3


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("shapes", nargs="*", help=", ".join(SHAPES))
  parser.add_argument("--store", help="a prepared store, by path or URL")
  parser.add_argument("--rows", type=int, help="of a step; 8 of a decoder, 32 of T5")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--remat", default="dots")
  parser.add_argument("--writing", action="store_true")
  args = parser.parse_args()
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
  for name in args.shapes or (["decoder_1b"] if args.writing else list(SHAPES)[:4]):
    if args.writing:
      compare_writing(name)
    else:
      alone(tune, name, args)


def tune(name: str, args: argparse.Namespace) -> None:
  config = dataclasses.replace(SHAPES[name], dtype="bfloat16", remat=args.remat, scan_layers=True)
  model = build_model(config)
  optimizer = adamw(optax.constant_schedule(1e-5), clip_norm=1.0)
  step = make_train_step(SupervisedLoss(model), optimizer)
  state = TrainState.create(jax.jit(model.init)(jax.random.key(0)), optimizer)
  shapes = shapes_by_path(state.params)
  seconds, flops, useful, places = [], [], [], []
  begun = time.perf_counter()
  for batch in itertools.islice(batches(config, args), args.steps + WARM_UP):
    flops.append(batch_flops(config, batch, shapes, shapes).total)
    segments = [ids for key, ids in batch.items() if key.endswith("segment_ids")]
    useful.append(sum(map(np.count_nonzero, segments)))
    places.append(sum(ids.size for ids in segments))
    state, metrics = step(state, batch, jax.random.key(1))
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - begun)
    begun = time.perf_counter()
  if len(seconds) <= WARM_UP:
    raise ConfigError(f"{args.store} has rows for {len(seconds)} steps, of which {WARM_UP} warm up")
  seconds, flops, useful, places = (x[WARM_UP:] for x in (seconds, flops, useful, places))
  spent, parameters = sum(seconds), parameter_count(model)
  device = jax.devices()[0]
  peak, memory = device_of(device.device_kind).peak, device.memory_stats() or {}

  def rate(flops: float) -> str:
    return f"{flops / spent / 1e12:.3g} TFLOP/s" + (
      f" ({flops / spent / peak:.1%})" if peak else ""
    )

  print(
    f"{name} on {device.device_kind}, JAX {jax.__version__}: {parameters / 1e9:.2f} billion parameters, "
    f"{spent / len(seconds):.3f} s a step (median {statistics.median(seconds):.3f}) of {places[0]:,} places, "
    f"{sum(useful) / sum(places):.0%} full, {sum(useful) / spent:,.0f} useful tokens/s, {rate(sum(flops))}; "
    f"at 6 a parameter and token {rate(6 * parameters * sum(useful))}; "
    f"{memory.get('peak_bytes_in_use', 0) / 2**30:.1f} GiB at the peak",
    flush=True,
  )


def batches(config: Config, args: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
  layout = "decoder" if isinstance(config, DecoderConfig) else "encoder_decoder"
  rows = args.rows or ROWS[layout]
  if not args.store:
    return drawn(layout, config.vocab_size, rows)
  store = Store.open(args.store)
  if store.layout != layout or store.encoder().vocabulary.size > config.vocab_size:
    raise ConfigError(
      f"{args.store} has rows for the layout {store.layout!r} and {store.encoder().vocabulary.size:,} words; "
      f"this shape reads {layout!r} and knows {config.vocab_size:,}"
    )
  return iter(Batches(store, rows))


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


def compare_writing(name: str) -> None:
  for count in (1, 32):
    ours = alone(ours_writes, name, count)
    theirs = {
      cache: alone(transformers_writes, name, count, cache) for cache in ("default", "static")
    }
    cache = min(theirs, key=lambda cache: theirs[cache]["seconds"])
    pace, peers = (count / each["seconds"] for each in (ours, theirs[cache]))
    print(
      f"{name}, {count} prompts: {pace:,.0f} tokens/s against {peers:,.0f} ({cache} cache), {pace / peers:.2f} times; "
      f"parameters alone, at the {ours['bandwidth'] / 1e9:,.0f} GB/s of a copy, would take "
      f"{ours['bytes'] / ours['bandwidth'] / ours['seconds']:.0%} of that",
      flush=True,
    )


def ours_writes(name: str, count: int) -> dict[str, float]:
  config = dataclasses.replace(SHAPES[name], dtype="bfloat16", param_dtype="bfloat16")
  model = build_model(config)
  params = jax.jit(model.init)(jax.random.key(0))
  prompts = prompts_of(config, count).tolist()
  engine = Engine(model, params, stop_ids=(), slots=count, length=PROMPT + LONG, block=32)
  seconds = a_token(lambda new: engine.run(prompts, [Sampling(new)] * count))
  size = parameter_count(model) * jnp.dtype("bfloat16").itemsize
  return {"seconds": seconds, "bytes": size, "bandwidth": bandwidth()}


def transformers_writes(name: str, count: int, cache: str) -> dict[str, float]:
  import torch
  from training_step import llama

  where = "cuda" if torch.cuda.is_available() else "cpu"
  model = llama(SHAPES[name]).to(where, torch.bfloat16).eval()
  ids = torch.tensor(prompts_of(SHAPES[name], count), device=where)
  settings = {} if cache == "default" else {"cache_implementation": cache}

  def write(new: int) -> None:
    with torch.inference_mode():
      model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        **settings,
      )
    if where == "cuda":
      torch.cuda.synchronize()

  return {"seconds": a_token(write)}


def prompts_of(config: Config, count: int) -> np.ndarray:
  return np.random.default_rng(0).integers(3, config.vocab_size, (count, PROMPT))


def a_token(write: Callable[[int], object]) -> float:
  """Seconds of each token that LONG has more than SHORT; the median of turns."""
  found: list[float] = []
  for turn in range(TURNS + 1):
    times = []
    for new in (SHORT, LONG):
      begun = time.perf_counter()
      write(new)
      times.append(time.perf_counter() - begun)
    found += [(times[1] - times[0]) / (LONG - SHORT)] if turn else []
  return statistics.median(found)


def bandwidth() -> float:
  """Bytes a second that a copy of 1 GiB reads and writes, at its best."""
  x, seconds = jnp.ones(2**29, jnp.bfloat16), []
  copy = jax.jit(lambda x: x + 1)
  for _ in range(10):
    begun = time.perf_counter()
    copy(x).block_until_ready()
    seconds.append(time.perf_counter() - begun)
  return 2 * x.nbytes / min(seconds)


if __name__ == "__main__":
  main()
