"""What a model is trained on, as a launch names it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flan_jax.data.batches import Batches, Normalise
from flan_jax.data.encode import Encoder
from flan_jax.data.home import data_home
from flan_jax.data.store import Store, StoreConfig
from flan_jax.errors import ConfigError, differences
from flan_jax.jobs.models import ModelSource
from flan_jax.jobs.preparation import prepared_store
from flan_jax.jobs.processes import first_alone
from flan_jax.training.partitioning import Layout, rows_of_process
from flan_jax.vocabularies import ChatFormat, Format, PlainFormat


@dataclass(frozen=True)
class DataPlan:
  """A mixture, and how its examples become rows.

  Attributes:
    mixture: the name of a mixture or dataset of ours; else of a SeqIO task or mixture: a user's own, or the
      T5 library's.
    lengths: {"inputs": I, "targets": T}, the tokens of a row; a decoder's rows hold I + T.
    format: "plain", or "chat" for the chat template of the model.
    separator: between input and target in the plain format, where one model reads both.
    eos_on_inputs: the end token follows what an encoder reads.
    normalise: "token", or "example" where each example weighs 1 in all.
    bidirectional_inputs: a decoder reads what stands before the first target in both directions, in training
      and wherever the tuned model is asked (a prefix LM).
    seqio_cache: folder, or folders, in which SeqIO's cache job has left the tasks.
    seed, split, shuffle, renderings, few_shot, few_shot_share, template_choice, templates_per_dataset, options,
      window, loss_on: see `flan_jax.data.store.StoreConfig`.
    workers: processes that prepare; None: one a core.
    strict: a dataset whose records cannot be had stops the launch; else it is left out and told.
    prepared: path or URL of a store that is trained on as it is; None: it is looked for in the data
      home, and prepared as far as it is missing.
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
  few_shot_share: float = 1.0
  template_choice: Literal["seeded", "round_robin"] = "seeded"
  templates_per_dataset: int | None = None
  options: Literal["any", "shown", "hidden"] = "any"
  window: int = 1024
  loss_on: Literal["targets", "everything"] = "targets"
  bidirectional_inputs: bool = False
  split: str = "train"
  shuffle: bool = True
  seqio_cache: str | tuple[str, ...] = ()
  workers: int | None = None
  strict: bool = False
  prepared: str | None = None

  def __post_init__(self) -> None:
    if self.format not in ("plain", "chat"):
      raise ConfigError(f"format={self.format!r} is neither 'plain' nor 'chat'.")
    if self.workers is not None and self.workers < 1:
      raise ConfigError(f"data.workers={self.workers} must be 1 or more, or None: one a core.")
    if self.normalise not in ("token", "example"):
      raise ConfigError(f"normalise={self.normalise!r} is neither 'token' nor 'example'.")
    if self.bidirectional_inputs and self.loss_on == "everything":
      raise ConfigError(
        "data.bidirectional_inputs lets inputs see what follows them, and data.loss_on='everything' would "
        "have the model predict it: leave one of them out."
      )

  def text_format(self, source: ModelSource) -> Format:
    """How this plan's prompts are written for a model."""
    if self.format == "chat":
      return ChatFormat.of(source.vocabulary)
    return PlainFormat(self.separator, eos_on_inputs=self.eos_on_inputs, bos=source.begins)

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
      self.few_shot_share,
      self.template_choice,
      self.templates_per_dataset,
      self.options,
      self.window,
      self.loss_on,
      self.split,
      self.shuffle,
      (self.seqio_cache,) if isinstance(self.seqio_cache, str) else self.seqio_cache,
    )

  def read_by(self, source: ModelSource) -> ModelSource:
    """The model as it will read once it is tuned on this.

    Raises:
      ConfigError: inputs are to be read in both directions by a model that has an encoder for that.
    """
    model = replace(source.model, bidirectional_inputs=self.bidirectional_inputs)
    return replace(source, model=model)

  def encoder(self, source: ModelSource) -> Encoder:
    """What turns renderings into ids for a model."""
    return self.config(source).encoder()

  def store(self, source: ModelSource, rows: int, datasets: Sequence[str] = ()) -> Store:
    """The store, prepared as far as it is missing, and the records of other datasets.

    Raises:
      ConfigError: no row is asked for, or the store at `prepared` was made with other settings, or has too
        few.
    """
    if rows < 1:
      raise ConfigError(
        f"{rows} rows: steps and batch_size must be 1 or more, and validation_batches 0 or more."
      )
    if self.prepared is not None:
      return self._found(self.prepared, source, rows)

    def prepare() -> Store:
      return prepared_store(
        self.config(source),
        rows,
        data_home(),
        datasets=datasets,
        workers=self.workers,
        strict=self.strict,
      )

    return first_alone(prepare, "store")

  def validation_store(self, source: ModelSource, rows: int) -> Store:
    """Rows of the validation split of what is trained on, for the held-out loss.

    It is looked for in the data home also where the store that is trained on is named by its place.
    """
    return replace(self, split="validation", prepared=None).store(source, rows)

  def batches(
    self, store: Store, first: int, stop: int, batch_size: int, layout: Layout
  ) -> Batches:
    """This process's rows of a store, from row `first` to before `stop`."""
    share = rows_of_process(batch_size, layout)
    return Batches(store, batch_size, first, stop, self.normalise, share, self.bidirectional_inputs)

  def _found(self, place: str, source: ModelSource, rows: int) -> Store:
    store, config = Store.open(place), self.config(source)
    wanted = {"mixture": config.mixture_name, **config.settings()}
    theirs = {"mixture": store.mixture, **store.settings}
    if others := differences(wanted, theirs):
      raise ConfigError(
        f"the store {place} was made with other settings than this run's: {'; '.join(others)}."
      )
    if self.strict and store.missing:
      raise ConfigError(
        f"the store {place} was made without {', '.join(store.missing)}, and data.strict=True wants the whole mixture."
      )
    if store.rows < rows:
      raise ConfigError(
        f"the store {place} has {store.rows:,} rows, and this run takes {rows:,}: prepare it for as "
        "many steps, or make fewer."
      )
    return store
