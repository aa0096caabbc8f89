"""The names that gin files can bind: the jobs and the few parts that they are put together from.

Below these, everything is explicit dataclasses and arguments.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from flan_jax.data.home import data_home
from flan_jax.errors import CheckpointError
from flan_jax.inference import Sampling
from flan_jax.jobs.convert import convert
from flan_jax.jobs.data import DataPlan
from flan_jax.jobs.evaluate import evaluate
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.jobs.follow import follow
from flan_jax.jobs.infer import infer
from flan_jax.jobs.launch import configurable
from flan_jax.jobs.mixture_prompts import MixturePrompts
from flan_jax.jobs.models import lora, pretrained, scratch, tuned
from flan_jax.jobs.optimizer import as_optimizer
from flan_jax.jobs.preparation import seqio_vocabulary
from flan_jax.jobs.prepare import prepare
from flan_jax.jobs.resized_models import grown, resized
from flan_jax.jobs.schedule import schedule
from flan_jax.jobs.train import train
from flan_jax.jobs.train_vocabulary import train_vocabulary, trained_vocabulary
from flan_jax.jobs.transferred_models import transferred
from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.training import optimizers, schedules
from flan_jax.training.partitioning import MeshConfig
from flan_jax.training.watchdog import WatchdogConfig
from flan_jax.vocabularies import (
  ByteVocabulary,
  SentencePieceVocabulary,
  Vocabulary,
  load_vocabulary,
)


def pretrained_vocabulary(source: str) -> Vocabulary:
  """The vocabulary of a published model; see `pretrained`."""
  from flan_jax.checkpoints.pretrained import open_pretrained

  vocabulary = open_pretrained(source, cache_dir=data_home()).vocabulary
  if vocabulary is None:
    raise CheckpointError(f"{source} has no tokenizer: put its tokenizer.json into the folder.")
  return vocabulary


def saved_vocabulary(directory: str) -> Vocabulary:
  """The vocabulary in a folder: what `train_vocabulary` made, or what a run or a store was saved with."""
  return load_vocabulary(directory)


def _made(cls: type) -> Callable[..., Any]:
  """A function that makes a `cls`. Gin would subclass the class itself, and such cannot be pickled."""

  def make(**settings: Any) -> Any:
    return cls(**settings)

  make.__signature__ = inspect.signature(cls)  # type: ignore[attr-defined]
  make.__annotations__ = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
  make.__doc__ = cls.__doc__
  return make


for job in (train, evaluate, follow, prepare, infer, convert, schedule, train_vocabulary):
  configurable(
    job, job=True, phased=job in (train, prepare, schedule, evaluate), rehearsed=job is train
  )
for source in (
  scratch,
  pretrained,
  tuned,
  grown,
  resized,
  transferred,
  lora,
  pretrained_vocabulary,
  saved_vocabulary,
  trained_vocabulary,
  seqio_vocabulary,
):
  configurable(source)
for name, cls in {
  "decoder": DecoderConfig,
  "encoder_decoder": EncoderDecoderConfig,
  "sentencepiece": SentencePieceVocabulary,
  "byte_vocabulary": ByteVocabulary,
  "data": DataPlan,
  "evaluation": EvaluationPlan,
  "mixture_prompts": MixturePrompts,
  "mesh": MeshConfig,
  "watchdog": WatchdogConfig,
  "sampling": Sampling,
}.items():
  configurable(_made(cls), name)
for optimizer in (optimizers.adamw, optimizers.adafactor, optimizers.lion, optimizers.muon):
  configurable(as_optimizer(optimizer), optimizer.__name__)
# Gin has a `constant` of its own.
for curve in (
  schedules.constant,
  schedules.linear,
  schedules.cosine,
  schedules.polynomial,
  schedules.exponential,
  schedules.inverse_square_root,
  schedules.warmup_stable_decay,
):
  configurable(curve, f"{curve.__name__}_schedule")
