"""Useful tokens a second of tuning on a real mixture, against Hugging Face's trainers on the same examples.

  python benchmarks/mixture_tuning.py [decoder] [t5] [--steps 12] [--rows 2]

The examples are those of `mini` as templates put them into words, in the order in which they are drawn. Both models, of
the shapes in training_step.py, are tuned by AdamW in float32 on every core. Ours takes packed rows, each `rows` of them
a step. The peer takes the first 800 of the same examples, 8 a step (`Trainer`'s default), padded to the longest of them
(the decoder in four pieces, each padded to its own longest, for 8 rows do not fit 24 GB): drawn at random, and once
more in groups of like length (`train_sampling_strategy="group_by_length"`). Those are sorted within mega-batches of 25
batches, the longest first, and the clock sees as many steps. Useful is a token that is no padding, of inputs and
targets alike; what is told is how many of them a second pass through whole steps, feeding included, once everything is
compiled.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import torch
import training_step
from figures import Figure, alone, examples_of, mini_store, tell
from transformers import Trainer, TrainerCallback, TrainingArguments

from flan_jax.data import StoredExample
from flan_jax.data.batches import Batches
from flan_jax.data.store import Store
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.optimizers import adamw
from flan_jax.training.step import TrainState, make_train_step

SHAPES = {
  "decoder": dataclasses.replace(training_step.SMOLLM2, remat="dots"),
  "t5": dataclasses.replace(
    training_step.T5_SMALL, vocab_size=training_step.SMOLLM2.vocab_size, remat="dots"
  ),
}
PEERS_BATCH = 8
MEGA_BATCH = 25  # Batches: a quarter of the examples, and at most 50.
PEERS = {
  "random": ("Hugging Face's default batches", {"decoder": 2.5, "t5": 2.5}),
  "group_by_length": ("batches grouped by length", {"decoder": 1.0, "t5": 1.15}),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("families", nargs="*", default=["decoder", "t5"])
  parser.add_argument("--steps", type=int, default=12)
  parser.add_argument("--rows", type=int, default=2)
  args = parser.parse_args()
  layouts = {"decoder": "decoder", "t5": "encoder_decoder"}
  rows = max(args.rows * (args.steps + 1), 200)
  stores = {family: mini_store(layouts[family], rows) for family in args.families}
  for family, store in stores.items():
    pace, waited = alone(ours, SHAPES[family], store.directory, args.rows, args.steps)
    tell(
      Figure(
        f"tuning on `mini`, {family}: waiting for batches",
        f"{waited:.2%} of the time of steps",
        100 * waited,
        1,
        "%",
        at_most=True,
      )
    )
    paces = {"packed": pace}
    for strategy in PEERS:
      steps = MEGA_BATCH if strategy == "group_by_length" else args.steps
      paces[strategy] = alone(theirs, SHAPES[family], store.directory, strategy, steps)
    for strategy, (peer, mark) in PEERS.items():
      tell(
        Figure(
          f"tuning on `mini`, {family}, against {peer}",
          f"{paces['packed']:.0f} useful tokens/s against {paces[strategy]:.0f}",
          paces["packed"] / paces[strategy],
          mark[family],
        )
      )


def ours(
  config: DecoderConfig | EncoderDecoderConfig, store: Path, rows: int, steps: int
) -> tuple[float, float]:
  """Useful tokens a second, and which part of the time the steps waited for their batch."""
  model = build_model(config)
  optimizer = adamw(optax.constant_schedule(training_step.RATE), clip_norm=None)
  step = make_train_step(SupervisedLoss(model), optimizer)
  state = TrainState.create(jax.jit(model.init)(jax.random.key(0)), optimizer)
  useful, begun, waited = 0, 0.0, 0.0
  batches = iter(Batches(Store.open(store), rows))
  for number in range(steps + 1):
    asked = time.perf_counter()
    batch = next(batches)
    waited += time.perf_counter() - asked if number else 0.0
    state, metrics = step(state, batch, jax.random.key(1))
    jax.block_until_ready(metrics)
    if number == 0:
      begun = time.perf_counter()
    else:
      useful += int(metrics["tallies"]["tokens"])
  spent = time.perf_counter() - begun
  return useful / spent, waited / spent


def features_of(store: Store) -> list[dict[str, list[int]]]:
  """What the store's rows hold, as datasets for `Trainer` have it."""

  def as_features(example: StoredExample) -> dict[str, list[int]]:
    labels = np.where(example.weights > 0, example.targets.astype(int), -100).tolist()
    inputs = example.inputs if len(example.inputs) else example.targets
    return {"input_ids": inputs.tolist(), "labels": labels}

  return list(map(as_features, examples_of(store)))


def padded(features: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
  """To the longest of the batch."""
  columns: dict[str, Any] = {}
  for name, filling in (("input_ids", 0), ("labels", -100)):
    longest = max(len(each[name]) for each in features)
    columns[name] = torch.tensor(
      [each[name] + [filling] * (longest - len(each[name])) for each in features]
    )
  lengths = torch.tensor([len(each["input_ids"]) for each in features])
  columns["attention_mask"] = (
    torch.arange(columns["input_ids"].shape[1])[None] < lengths[:, None]
  ).long()
  return columns


class Pace(TrainerCallback):
  """When the first step ended, and the last."""

  def __init__(self) -> None:
    self.ends: list[float] = []

  def on_step_end(self, *args: Any, **kwargs: Any) -> None:
    self.ends.append(time.perf_counter())


def theirs(
  config: DecoderConfig | EncoderDecoderConfig,
  store: Path,
  strategy: str,
  steps: int,
) -> float:
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_flush_denormal(True)  # as XLA does
  decoder = isinstance(config, DecoderConfig)
  model = (
    training_step.llama(config) if decoder else training_step.t5_for_conditional_generation(config)
  )
  pieces = 4 if decoder else 1
  useful: list[int] = []

  def collated(features: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    # A decoder reads all but the last.
    targets = -len(features) if decoder else sum(len(each["labels"]) for each in features)
    useful.append(targets + sum(len(each["input_ids"]) for each in features))
    return padded(features)

  pace = Pace()
  with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
      model,
      TrainingArguments(
        folder,
        per_device_train_batch_size=PEERS_BATCH // pieces,
        gradient_accumulation_steps=pieces,
        max_steps=steps + 1,
        train_sampling_strategy=strategy,
        optim="adamw_torch_fused",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
      ),
      data_collator=collated,
      train_dataset=features_of(Store.open(store))[: 4 * MEGA_BATCH * PEERS_BATCH],
      callbacks=[pace],
    )
    trainer.train()
  return sum(useful[pieces : pieces * (steps + 1)]) / (pace.ends[-1] - pace.ends[0])


if __name__ == "__main__":
  main()
