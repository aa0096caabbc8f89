"""What a model is trained on, as a launch names it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flan_jax.data.batches import Normalise
from flan_jax.data.encode import Encoder
from flan_jax.data.home import data_home
from flan_jax.data.store import Store, StoreConfig
from flan_jax.errors import ConfigError
from flan_jax.jobs.models import ModelSource
from flan_jax.jobs.preparation import prepared_store
from flan_jax.vocabularies import ChatFormat, Format, PlainFormat


@dataclass(frozen=True)
class DataPlan:
  """A mixture, and how its examples become rows.

  Attributes:
    mixture: a mixture's name, or a dataset's.
    lengths: {"inputs": I, "targets": T}, the tokens of a row; a decoder's rows hold I + T.
    format: "plain", or "chat" for the chat template of the model.
    separator: between input and target in the plain format, where one model reads both.
    eos_on_inputs: the end token follows what an encoder reads.
    normalise: "token", or "example" where each example weighs 1 in all.
    seed, renderings, few_shot, window, loss_on: see `flan_jax.data.store.StoreConfig`.
    workers: processes that prepare; None: one a core.
  """

  mixture: str
  lengths: Mapping[str, int] = field(default_factory=lambda: {"inputs": 1024, "targets": 256})
  format: str = "plain"
  separator: str = "\n"
  eos_on_inputs: bool = False
  normalise: Normalise = "token"
  seed: int = 0
  renderings: int = 4
  few_shot: int = 0
  window: int = 1024
  loss_on: Literal["targets", "everything"] = "targets"
  workers: int | None = None

  def __post_init__(self) -> None:
    if self.format not in ("plain", "chat"):
      raise ConfigError(f"format={self.format!r} is neither 'plain' nor 'chat'.")
    if self.normalise not in ("token", "example"):
      raise ConfigError(f"normalise={self.normalise!r} is neither 'token' nor 'example'.")

  def text_format(self, source: ModelSource) -> Format:
    """How this plan's prompts are written for a model."""
    if self.format == "chat":
      return ChatFormat.of(source.vocabulary)
    return PlainFormat(separator=self.separator, eos_on_inputs=self.eos_on_inputs)

  def config(self, source: ModelSource) -> StoreConfig:
    """What decides the content of the store for a model."""
    return StoreConfig(
      self.mixture,
      source.vocabulary,
      self.text_format(source),
      source.model.layout,
      dict(self.lengths),
      self.seed,
      self.renderings,
      self.few_shot,
      self.window,
      self.loss_on,
    )

  def encoder(self, source: ModelSource) -> Encoder:
    """What turns renderings into ids for a model."""
    return self.config(source).encoder()

  def store(self, source: ModelSource, rows: int, datasets: Sequence[str] = ()) -> Store:
    """The store, prepared as far as it is missing, and the records of other datasets."""
    return prepared_store(
      self.config(source), rows, data_home(), datasets=datasets, workers=self.workers
    )
