"""How cost grows: seconds against rows, length, vocabulary, datasets and devices, with the exponent of each.

  python benchmarks/growth.py [rows] [length] [vocabulary] [datasets] [devices]

The exponent is the slope between the two largest sizes, on a log-log scale: 1 is as much more work as there is more of
it. `rows`, `length` and `vocabulary` are of a tuning step of a small decoder (8 layers of 256, 4,096 words), at 512
tokens a row and at 4 rows; beside the length stand the FLOPs of the step, of which attention's grow with its square,
beside the vocabulary those and the parameters. `datasets` have 40 records and a template each: the time to build the
records of all from nothing and to pack one window of their mixture, and to open the store that is there and take its
first batch, each in a process of its own. `devices` are not there: seconds that the compiler takes for a step of T5
1.1 small over so many of them with fsdp, a row each, and the bytes that each receives, calculated.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flan_jax.jobs.configurables  # noqa: F401  what gin files name
from flan_jax.data import Mixture, register_dataset
from flan_jax.data.batches import Batches
from flan_jax.data.prepare import prepare
from flan_jax.data.store import StoreConfig
from flan_jax.jobs.compiled_plan import compiled_plans
from flan_jax.jobs.plan import make_plans
from flan_jax.models import DecoderConfig, build_model, parameter_count
from flan_jax.training.activations import Workload
from flan_jax.training.devices import DEVICES
from flan_jax.training.flops import shapes_by_path, step_flops
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.optimizers import adamw
from flan_jax.training.step import TrainState, make_train_step
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

SMALL = DecoderConfig(4096, 256, 8, 8, 4, 32, 768, remat="dots")
QUEUES = ("billing", "technical")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("over", nargs="*", default=list(TABLES))
  args = parser.parse_args()
  for name in args.over:
    TABLES[name]()


def show(what: str, sizes: Sequence[int], columns: dict[str, list[float]]) -> None:
  print(f"\n| {what} | " + " | ".join(columns) + " |")
  print("|---|" + "---|" * len(columns))
  for size, values in zip(sizes, zip(*columns.values(), strict=True), strict=True):
    print(f"| {size:,} | " + " | ".join(f"{value:.3g}" for value in values) + " |")
  slopes = [
    math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])
    for values in columns.values()
  ]
  print("| exponent | " + " | ".join(f"{slope:.2f}" for slope in slopes) + " |", flush=True)


def over_rows() -> None:
  sizes = [1, 2, 4, 8, 16]
  show("rows", sizes, {"a step, s": [step_seconds(rows, 512) for rows in sizes]})


def over_length() -> None:
  sizes = [128, 256, 512, 1024, 2048]
  seconds = [step_seconds(4, length) for length in sizes]
  executed = [flops(SMALL, 4, length) / 1e9 for length in sizes]
  show("tokens a row", sizes, {"a step, s": seconds, "of FLOPs, G": executed})


def over_vocabulary() -> None:
  sizes = [4096, 16_384, 65_536, 262_144]
  configs = [dataclasses.replace(SMALL, vocab_size=words) for words in sizes]
  seconds = [step_seconds(4, 512, config) for config in configs]
  executed = [flops(config, 4, 512) / 1e9 for config in configs]
  parameters = [parameter_count(build_model(config)) / 1e6 for config in configs]
  show("words", sizes, {"a step, s": seconds, "of FLOPs, G": executed, "parameters, M": parameters})


def flops(config: DecoderConfig, rows: int, length: int) -> float:
  shapes = shapes_by_path(build_model(config).shapes())
  return step_flops(config, Workload(rows, 1, 0, length, length / 8), shapes, shapes).executed


def step_seconds(rows: int, length: int, config: DecoderConfig = SMALL) -> float:
  """An eighth of the tokens carry loss."""
  draw = np.random.default_rng(0)
  tokens = draw.integers(1, config.vocab_size, (rows, length + 1), np.int32)
  batch = {
    "decoder_input_tokens": tokens[:, :-1],
    "decoder_target_tokens": tokens[:, 1:],
    "decoder_loss_weights": (np.arange(length) >= length * 7 // 8) * np.ones((rows, 1), np.float32),
    "decoder_segment_ids": np.ones((rows, length), np.int32),
  }
  model = build_model(config)
  optimizer = adamw(optax.constant_schedule(1e-4), clip_norm=None)
  step = make_train_step(SupervisedLoss(model), optimizer)
  state = TrainState.create(jax.jit(model.init)(jax.random.key(0)), optimizer)
  batch, seconds = jax.tree.map(jnp.asarray, batch), []
  for _ in range(4):
    begun = time.perf_counter()
    state, metrics = step(state, batch, jax.random.key(1))
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - begun)
  return statistics.median(seconds[1:])


def over_datasets() -> None:
  sizes = [1, 10, 100, 1000]
  columns: dict[str, list[float]] = {"from nothing, s": [], "first batch of what is there, s": []}
  for count in sizes:
    with tempfile.TemporaryDirectory() as home:
      for times in columns.values():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
          times.append(pool.submit(first_batch, home, count).result())
  show("datasets", sizes, columns)


def first_batch(home: str, count: int) -> float:
  """Seconds, once everything is imported."""
  begun = time.perf_counter()
  for number in range(count):
    register_dataset(f"set_{number}", content(number, Path(home)))
  mixture = Mixture("many", {f"set_{number}": None for number in range(count)})
  config = StoreConfig(mixture, ByteVocabulary(), PlainFormat(), "encoder_decoder")
  store = prepare(config, 32, home, workers=1, progress=False)
  next(iter(Batches(store, 32)))
  return time.perf_counter() - begun


def content(number: int, home: Path) -> dict[str, Any]:
  """What the file of a dataset would say; its records are written where they are not."""
  records = [
    {
      "text": f"Message {i} to team {number}: the {'bill' if i % 2 else 'server'} is wrong.",
      "queue": QUEUES[i % 2],
    }
    for i in range(40)
  ]
  path = home / f"{number}.jsonl"
  if not path.exists():
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return {
    "cluster": "support",
    "description": "Which team should get a message?",
    "source": {"files": str(path)},
    "splits": {"train": 1.0},
    "fields": {"text": "long", "queue": "text"},
    "answer": {"field": "queue", "choices": {queue: queue for queue in QUEUES}},
    "metrics": ("accuracy",),
    "record": records[0],
    "templates": [{"name": "which", "input": "{text}\n{options}", "target": "{answer}"}],
  }


def over_devices() -> None:
  sizes = [1, 8, 64, 512]
  columns: dict[str, list[float]] = {"compiling, s": [], "received by a device, GiB": []}
  for devices in sizes:
    files = ["recipes/flan2021.gin", "models/t5_1_1_small.gin", "meshes/fsdp.gin"]
    lengths = "LENGTHS={'inputs': 256, 'targets': 64}"
    bindings = ("VOCABULARY_PATH=none.model", f"BATCH_SIZE={devices}", lengths)
    [plan] = make_plans(files, bindings, DEVICES["cpu"], devices)
    [compiled] = compiled_plans(files, bindings, DEVICES["cpu"], devices)
    columns["compiling, s"].append(compiled.seconds)
    columns["received by a device, GiB"].append(sum(plan.traffic) / 2**30)
  show("devices", sizes, columns)


TABLES: dict[str, Callable[[], None]] = {
  "rows": over_rows,
  "length": over_length,
  "vocabulary": over_vocabulary,
  "datasets": over_datasets,
  "devices": over_devices,
}


if __name__ == "__main__":
  main()
