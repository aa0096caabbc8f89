"""A model that people talk to: opened by its place, asked in messages or plain text, answering as it writes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from flan_jax.checkpoints.hugging_face import stop_ids
from flan_jax.data.encode import Encoder
from flan_jax.inference import Engine, Texts
from flan_jax.jobs.models import ModelSource, pretrained, tuned
from flan_jax.models import build_model
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh
from flan_jax.vocabularies import ChatFormat, Format
from flan_jax.vocabularies.formats import Message


@dataclass(frozen=True)
class Assistant:
  """Attributes:
  name: what it is asked for by.
  format: how messages are written for it.
  texts: what writes.
  """

  name: str
  source: ModelSource
  format: Format
  texts: Texts

  def read(self, text: str) -> list[int]:
    """Ids of a text to be gone on with, or to be answered by an encoder-decoder."""
    vocabulary = self.source.vocabulary
    ids = vocabulary.encode(text)
    if self.source.model.layout == "encoder_decoder":
      return [*ids, vocabulary.eos_id] if self.format.eos_on_inputs else ids
    begins = vocabulary.bos_id if self.format.bos else None
    return ids if begins is None else [begins, *ids]

  def hear(self, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation whose last message is to be answered.

    Raises:
      ConfigError: it is no conversation.
    """
    return self.read(self.format.conversation(messages))

  def room(self, new: int) -> int:
    """Tokens of the longest prompt behind which so many new ones fit."""
    engine = self.texts.engine
    return engine.length - new if self.source.model.layout == "decoder" else engine.source_length

  def shortened(self, messages: Sequence[Message], new: int) -> list[Message]:
    """The messages, without the oldest turns as far as all is too long to be answered in `new` tokens."""
    system = messages[0]["role"] == "system"
    kept = list(messages)
    while len(self.hear(kept)) > self.room(new) and len(kept) > system + 2:
      del kept[system : system + 2]
    return kept


def open_source(place: str, dtype: str | None = None) -> ModelSource:
  """What a training run saved in a folder, or a published model: see `tuned` and `pretrained`.

  Args:
    dtype: of the activations, and of a published model's parameters; None: as the run had it, else float32.
  """
  if not (Path(place) / "checkpoints").is_dir():
    return pretrained(place, dtype or "float32", dtype or "float32")
  source = tuned(place)
  if dtype is None:
    return source
  model = dataclasses.replace(
    build_model(dataclasses.replace(source.model.config, dtype=dtype)),
    bidirectional_inputs=source.model.bidirectional_inputs,
  )
  return dataclasses.replace(source, model=model)


def talking_format(source: ModelSource) -> Format:
  """How messages are written for a model: as it was tuned, else by its chat template, else plainly."""
  if source.format is None and source.vocabulary.chat_template:
    return ChatFormat.of(source.vocabulary)
  return source.written_in(None)


def stop_tokens(source: ModelSource, format: Format) -> tuple[int, ...]:
  """The tokens that end what a model writes, by its format and by its publisher."""
  lengths = {"inputs": 1, "targets": 1}
  ends = Encoder(source.vocabulary, format, source.model.layout, lengths).stop_ids
  published = stop_ids(source.generation, source.vocabulary)
  return tuple(dict.fromkeys([*ends, *published]))


def open_assistant(
  place: str,
  *,
  name: str | None = None,
  slots: int = 1,
  length: int = 2048,
  block: int = 4,
  mesh: MeshConfig = MeshConfig(),
) -> Assistant:
  """Opens a model for `slots` talks at once, of `length` tokens at most.

  Raises:
    CheckpointError: there is no such model.
  """
  source = open_source(place)
  format = talking_format(source)
  layout = make_layout(source.model, make_mesh(mesh))
  longest = getattr(source.model.config, "context_length", None) or length
  engine = Engine(
    source.model,
    source.load(layout, jax.random.key(0)),
    stop_ids=stop_tokens(source, format),
    start_id=source.start_id,
    slots=slots,
    length=min(length, longest),
    source_length=min(length, longest),
    block=block,
    layout=layout,
  )
  return Assistant(name or Path(place).name, source, format, Texts(engine, source.vocabulary))
