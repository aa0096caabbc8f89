"""Raw text as a member of mixtures: the running text of datasets, under an objective.

```python
from flan_jax.data import register_mixture, register_text
from flan_jax.data.objectives import SpanCorruption

register_text("news_spans", ["bbc_news", "xsum"], SpanCorruption(), passes=4)
register_mixture("tuning", {"mini": None, "news_spans": "10%"})
```

A text is tokenised once for each vocabulary. An example of it is a stretch as long as the row takes; each
pass over the text cuts it elsewhere and draws other noise.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from flan_jax.data.atomic import build_once
from flan_jax.data.encode import Encoded, Encoder
from flan_jax.data.library import dataset_spec, import_library
from flan_jax.data.objectives import Objective
from flan_jax.data.records import load_records
from flan_jax.errors import ConfigError, StorageError
from flan_jax.prompting import DatasetSpec, Draw
from flan_jax.vocabularies import Vocabulary

CLUSTER = "raw_text"
"""What stands for the cluster of a text in logs and tables."""

_AT_ONCE = 1024


@dataclass(frozen=True)
class TextTask:
  """Raw text under an objective.

  Attributes:
    name: how mixtures call it.
    datasets: whose running text it is; each document counts once.
    objective: what is made of it.
    passes: how often a run may go through the text; one that would need more is refused.
  """

  name: str
  datasets: tuple[str, ...]
  objective: Objective
  passes: int


_texts: dict[str, TextTask] = {}


def register_text(
  name: str, datasets: Iterable[str], objective: Objective, *, passes: int = 1
) -> TextTask:
  """Defines a text; see `TextTask` for the arguments. The datasets are looked up when it is used.

  Raises:
    ConfigError: another text has this name, or a setting is out of range.
  """
  if isinstance(datasets, str):
    raise ConfigError(f"the text {name!r}: datasets is {datasets!r}; it must be a list of names.")
  task = TextTask(name, tuple(datasets), objective, passes)
  if not task.datasets or passes < 1:
    raise ConfigError(f"the text {name!r} needs at least one dataset and one pass, not {task}.")
  if _texts.setdefault(name, task) != task:
    raise ConfigError(f"a text named {name!r} is registered already, with other settings.")
  return task


def registered_texts() -> Mapping[str, TextTask]:
  """Every text that is registered, by name."""
  import_library()
  return _texts


def datasets_of(name: str) -> Sequence[str]:
  """What the text of this name is made of; a dataset is made of itself."""
  text = registered_texts().get(name)
  return text.datasets if text else (name,)


def documents(task: TextTask, split: str, data_dir: Path | str) -> Iterator[str]:
  """The running text of every record of a split, equal ones once. Builds the records that are missing.

  Raises:
    ConfigError: a dataset's file does not say what its text is, or no dataset has the split.
  """
  found = False
  seen: set[bytes] = set()
  for spec in _specs(task):
    assert spec.text is not None
    records = load_records(spec, data_dir)
    if split not in records:
      continue
    found = True
    for record in records[split]:
      document = spec.text.fill(record)
      digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
      if document and digest not in seen:
        seen.add(digest)
        yield document
  if not found:
    raise ConfigError(f"none of {', '.join(task.datasets)} has a split {split!r}.")


class TokenisedText:
  """Documents as ids, one after the other, mapped from the disk.

  Args:
    directory: holds tokens.npy, ends.npy (where each document ends).
  """

  def __init__(self, directory: Path):
    self.directory = directory
    try:
      self.tokens = np.load(directory / "tokens.npy", mmap_mode="r")
      self.ends: Int[np.ndarray, documents] = np.load(directory / "ends.npy")
      if len(self.tokens) != self.ends[-1]:
        raise ValueError(f"{len(self.tokens)} tokens, not {self.ends[-1]}")
    except (OSError, ValueError, IndexError) as error:
      raise StorageError(
        f"the text in {directory} is damaged ({error}): delete that folder, and it is made again."
      ) from error

  def __reduce__(self) -> tuple[Any, ...]:
    return TokenisedText, (self.directory,)


def tokenised(
  task: TextTask, split: str, vocabulary: Vocabulary, data_dir: Path | str
) -> TokenisedText:
  """A split of a text as ids, made on the first call.

  Raises:
    ConfigError: see `documents`.
  """
  directory = (
    Path(data_dir) / "texts" / f"{task.name}-{_text_key(task, split, vocabulary, data_dir)}"
  )

  def build(folder: Path) -> None:
    parts: list[np.ndarray] = []
    width = np.uint16 if vocabulary.size <= 1 << 16 else np.uint32
    end = [vocabulary.eos_id] if task.objective.ends_documents else []
    texts = documents(task, split, data_dir)
    bar = tqdm(texts, desc=f"tokenising {task.name}", unit="document", file=sys.stderr, delay=2)
    for batch in _batched(bar, _AT_ONCE):
      parts += [np.array([*ids, *end], width) for ids in vocabulary.encode_batch(batch)]
    np.save(folder / "tokens.npy", np.concatenate([np.empty(0, width), *parts]))
    np.save(folder / "ends.npy", np.cumsum([len(part) for part in parts], dtype=np.int64))

  return TokenisedText(build_once(directory, build))


class TextDraws:
  """The examples of a text: stretches under the objective, cut and corrupted anew in each pass.

  Args:
    task: the text.
    encoder: tells lengths, end tokens and vocabulary.
    seed: of the run.
    data_dir: where records and ids are kept; those that are missing are made.
    split: of the datasets.

  Raises:
    ConfigError: the objective does not suit the model family or the lengths, or there is too little
      text for a single example.
  """

  def __init__(
    self,
    task: TextTask,
    encoder: Encoder,
    seed: int,
    data_dir: Path | str,
    split: str = "train",
  ):
    text = tokenised(task, split, encoder.vocabulary, data_dir)
    self.task, self._text, self._encoder, self._seed = task, text, encoder, seed
    inputs, targets = self._room()
    if inputs < 1 or targets < 2:
      raise ConfigError(f"the lengths {dict(encoder.lengths)} are too small for raw text.")
    try:
      self.length = task.objective.text_length(inputs, targets)
    except ConfigError as error:
      raise ConfigError(f"the text {task.name!r}: {error}") from None
    if not self.size:
      raise ConfigError(
        f"the text {task.name!r} has {len(text.tokens)} tokens, and one example takes {self.length}: "
        "add text, or give shorter lengths."
      )

  @cached_property
  def size(self) -> int:
    """How many stretches a pass has."""
    if self.task.objective.joins:
      return len(self._text.tokens) // self.length
    return len(self._cuts)

  def description(self) -> dict[str, Any]:
    """What a store says about it."""
    specs = _specs(self.task)
    return {
      "examples": self.size,
      "passes": self.task.passes,
      "licence": "; ".join(dict.fromkeys(spec.licence for spec in specs)),
      "citation": " ".join(dict.fromkeys(spec.citation for spec in specs)),
      "templates": [self.task.objective.name],
      "templates_fingerprint": f"{self.task.objective}",
      "records_fingerprint": self._text.directory.name,
    }

  def encode(self, encoder: Encoder, example: int, epoch: int) -> Encoded:
    """The ids of one stretch in one pass."""
    draw = Draw(self._seed, self.task.name, "pass", epoch)
    tokens = self._stretch(example, draw.fork("cut"))
    bits = draw.fork("noise", example).bits()
    seed = (bits & 0x7FFFFFFF, bits >> 33)
    inputs, targets = self.task.objective.apply(tokens, seed, encoder.vocabulary)
    return self._ended(inputs, targets)

  def _stretch(self, example: int, cut: Draw) -> Int[np.ndarray, "tokens"]:
    tokens = self._text.tokens
    if not self.task.objective.joins:
      start, end = self._cuts[example]
      return np.asarray(tokens[start:end], np.int32)
    start = example * self.length + cut.below(len(tokens))
    places = np.arange(start, start + self.length) % len(tokens)
    return np.asarray(tokens[places], np.int32)

  @cached_property
  def _cuts(self) -> Int[np.ndarray, "stretches 2"]:
    """Where the stretches begin and end that lie within documents."""
    ends = self._text.ends
    begins = np.concatenate([[0], ends[:-1]])
    counts = -(-(ends - begins) // self.length)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + within * self.length
    cuts = np.stack([starts, np.minimum(starts + self.length, np.repeat(ends, counts))], axis=1)
    # A single token cannot be cut in two.
    return cuts[cuts[:, 1] - cuts[:, 0] > 1]

  def _room(self) -> tuple[int, int]:
    """The tokens of text that inputs and targets have room for."""
    encoder, lengths = self._encoder, self._encoder.lengths
    if encoder.layout == "decoder":
      return lengths["inputs"] - encoder.format.bos, lengths["targets"] - encoder.format.eos
    if self.task.objective.name == "lm":
      raise ConfigError(
        f"the text {self.task.name!r} is for language models, which read nothing; an encoder-decoder "
        "needs PrefixLM or SpanCorruption."
      )
    reads_end = encoder.format.eos_on_inputs
    return lengths["inputs"] - reads_end, lengths["targets"] - encoder.format.eos

  def _ended(
    self, inputs: Int[np.ndarray, "inputs"], targets: Int[np.ndarray, "targets"]
  ) -> Encoded:
    """With the begin and end tokens of the format, as the model family takes them."""
    encoder, vocabulary = self._encoder, self._encoder.vocabulary
    # Running text has its end tokens between documents.
    ends = encoder.format.eos and not self.task.objective.ends_documents
    written = np.append(targets, vocabulary.eos_id) if ends else targets
    if encoder.layout == "encoder_decoder":
      if encoder.format.eos_on_inputs:
        inputs = np.append(inputs, vocabulary.eos_id)
      return Encoded(inputs.astype(np.int32), written.astype(np.int32), ((0, len(written)),))
    begin = [vocabulary.bos_id] if encoder.format.bos else []
    read = np.concatenate([begin, inputs]).astype(np.int32)
    ids = np.concatenate([read, written]).astype(np.int32)
    first = 0 if encoder.loss_on == "everything" else len(read)
    return Encoded(np.empty(0, np.int32), ids, ((first, len(ids)),), prefix=len(read))


def _specs(task: TextTask) -> list[DatasetSpec]:
  specs = [dataset_spec(name) for name in task.datasets]
  for spec in specs:
    if spec.text is None:
      raise ConfigError(
        f"{spec.path}: the text {task.name!r} is made of {spec.name}, whose file has no `text`; add "
        f'one, such as text: "{{{spec.long or next(iter(spec.fields))}}}".'
      )
  return specs


def _text_key(task: TextTask, split: str, vocabulary: Vocabulary, data_dir: Path | str) -> str:
  """What decides the ids of a text."""
  sources = [
    (spec.name, load_records(spec, data_dir).fingerprint, spec.text and spec.text.words)
    for spec in _specs(task)
  ]
  content = [sources, split, vocabulary.fingerprint, task.objective.ends_documents]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
  batch: list[str] = []
  for item in items:
    batch.append(item)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch
