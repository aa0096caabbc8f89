"""From the rows of a store to batches, under the names that SeqIO's feature converters use.

An encoder-decoder row of two examples (inputs 10 wide, targets 7 wide):

    encoder_input_tokens    7 8 5 1 8 4 9 3 1 0
    encoder_segment_ids     1 1 1 1 2 2 2 2 2 0
    encoder_positions       0 1 2 3 0 1 2 3 4 0
    decoder_target_tokens   3 9 1 4 1 0 0
    decoder_input_tokens    0 3 9 0 4 0 0
    decoder_loss_weights    1 1 1 1 1 0 0
    decoder_segment_ids     1 1 1 2 2 0 0
    decoder_positions       0 1 2 0 1 0 0

A decoder reads tokens[:-1] of each example and is to write tokens[1:]; its loss weights are those of
the tokens to write. Padding is told by segment id 0, never by a token's id. Where a decoder may read its
inputs in both directions, `decoder_causal_attention` is 1 on them:

    tokens                    0 7 8 5 3 9 1     0 begins the text, 7 8 5 are inputs, 3 9 1 targets
    decoder_input_tokens      0 7 8 5 3 9
    decoder_target_tokens     7 8 5 3 9 1
    decoder_loss_weights      0 0 0 1 1 1
    decoder_causal_attention  1 1 1 1 0 0
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from flan_jax.data.encode import check_layout, row_capacities
from flan_jax.data.windows import StoredExample
from flan_jax.errors import ConfigError, StorageError

Batch = dict[str, np.ndarray]
Normalise = Literal["token", "example"]

START_ID = 0
"""What the decoder of an encoder-decoder reads first, as in T5 and in SeqIO's converters."""
_NONE = -1


class Rows(Protocol):
  """What batches are made from; a `Store` is one."""

  @property
  def layout(self) -> str:
    """The model family: "encoder_decoder" or "decoder"."""

  @property
  def lengths(self) -> Mapping[str, int]:
    """Tokens of a row."""

  @property
  def rows(self) -> int:
    """How many there are."""

  def row(self, index: int) -> list[StoredExample]:
    """The examples of one."""


class Batches:
  """The batches from a row on, made ahead in a thread.

  Step k of a run takes rows [k B, (k + 1) B). Every process of a run makes the same plan, and the
  features of the rows that its own devices hold.

  Args:
    rows: a `Store`.
    batch_size: B, rows of a global batch.
    start_row: the first row; seeking there costs nothing.
    stop_row: the row to stop before; all whole batches when None.
    normalise: see `make_features`.
    share: places of this process's rows in the global batch; all of them when None.
    bidirectional_inputs: see `make_features`.
    ahead: batches to keep ready.

  Raises:
    StorageError: the store ends before `stop_row`.
    ConfigError: a number is out of range, or rows up to `stop_row` do not make whole batches.
  """

  def __init__(
    self,
    rows: Rows,
    batch_size: int,
    start_row: int = 0,
    stop_row: int | None = None,
    normalise: Normalise = "token",
    share: Sequence[int] | None = None,
    bidirectional_inputs: bool = False,
    ahead: int = 2,
  ):
    if batch_size < 1 or start_row < 0:
      raise ConfigError(f"cannot make batches of {batch_size} rows from row {start_row} on.")
    if stop_row is not None and stop_row > rows.rows:
      raise StorageError(
        f"the store has {rows.rows} rows and {stop_row} are needed: prepare it for more steps."
      )
    if stop_row is not None and (stop_row - start_row) % batch_size:
      raise ConfigError(
        f"rows {start_row} to {stop_row} are no whole batches of {batch_size}: "
        f"{(stop_row - start_row) % batch_size} would be left over."
      )
    self._rows, self._normalise, self._ahead = rows, normalise, ahead
    self._bidirectional = bidirectional_inputs
    self._batch_size, self._start = batch_size, start_row
    self._count = max((rows.rows if stop_row is None else stop_row) - start_row, 0) // batch_size
    self._share = range(batch_size) if share is None else share

  def __len__(self) -> int:
    """How many batches there are."""
    return self._count

  def batch(self, index: int) -> Batch:
    """This process's share of the index-th batch from `start_row` on."""
    first = self._start + index * self._batch_size
    rows = [self._rows.row(first + i) for i in self._share]
    return make_features(
      rows, self._rows.layout, self._rows.lengths, self._normalise, self._bidirectional
    )

  def __iter__(self) -> Iterator[Batch]:
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(max(self._ahead, 1))
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
      while not stopped.is_set():
        try:
          return ready.put(item, timeout=0.2)
        except queue.Full:
          continue

    def fill() -> None:
      try:
        for i in range(self._count):
          if stopped.is_set():
            return
          put(self.batch(i))
        put(None)
      except BaseException as error:  # raised where the batches are taken
        put(error)

    thread = threading.Thread(target=fill, name="batches", daemon=True)
    thread.start()
    try:
      while (item := ready.get()) is not None:
        if isinstance(item, BaseException):
          raise item
        yield item
    finally:
      stopped.set()
      thread.join()


def make_features(
  rows: Sequence[Sequence[StoredExample]],
  layout: str,
  lengths: Mapping[str, int],
  normalise: Normalise = "token",
  bidirectional_inputs: bool = False,
) -> Batch:
  """Lays packed rows out as arrays.

  Args:
    rows: the examples of each row, in order.
    layout: "encoder_decoder" or "decoder".
    lengths: {"inputs": S, "targets": T}; a decoder's rows are S + T wide.
    normalise: "token" leaves the weights as they are; with "example" the weights of each example
      sum to 1, so that a long target does not count more than a short one.
    bidirectional_inputs: a decoder reads what stands before the first target in both directions.

  Returns:
    encoder_{input_tokens,segment_ids,positions} [B, S] (encoder-decoder only),
    decoder_{input_tokens,target_tokens,segment_ids,positions} [B, T] as int32,
    decoder_loss_weights [B, T] as float32, and task_ids and example_ids [B, T], -1 on padding;
    decoder_causal_attention [B, T] as int32 with bidirectional inputs.

  Raises:
    ConfigError: unknown layout or normalisation, bidirectional inputs that an encoder reads, or a row holds
      more than its length.
  """
  check_layout(layout, lengths)
  if bidirectional_inputs and layout != "decoder":
    raise ConfigError("bidirectional_inputs is for decoders: an encoder reads both ways anyway.")
  if normalise not in ("token", "example"):
    raise ConfigError(f"normalise is {normalise!r}; it is 'token' or 'example'.")
  examples = [example for row in rows for example in row]
  segments = [number for row in rows for number in range(1, len(row) + 1)]
  counts = [len(row) for row in rows]
  features: Batch = {}
  weights = [example.weights for example in examples]
  if layout == "decoder":
    target_tokens = [example.targets[1:] for example in examples]
    weights = [weight[1:] for weight in weights]
  else:
    target_tokens = [example.targets for example in examples]
    read = [example.inputs for example in examples]
    encoder = _Places(counts, read, lengths["inputs"])
    features["encoder_input_tokens"] = encoder.laid_out(read, np.int32)
    features["encoder_segment_ids"] = encoder.each(segments)
    features["encoder_positions"] = encoder.positions()
  decoder = _Places(counts, target_tokens, row_capacities(layout, lengths)[-1])
  if normalise == "example":
    weights = [weight / max(float(weight.sum()), 1e-9) for weight in weights]
  targets, positions = decoder.laid_out(target_tokens, np.int32), decoder.positions()
  if layout == "decoder":
    input_tokens = decoder.laid_out([example.targets[:-1] for example in examples], np.int32)
  else:
    input_tokens = _shifted(targets, positions)
  features["decoder_input_tokens"] = input_tokens
  features["decoder_target_tokens"] = targets
  features["decoder_loss_weights"] = decoder.laid_out(weights, np.float32)
  features["decoder_segment_ids"] = decoder.each(segments)
  features["decoder_positions"] = positions
  if bidirectional_inputs:
    inside = [np.arange(len(e.targets) - 1) < e.prefix for e in examples]
    features["decoder_causal_attention"] = decoder.laid_out(inside, np.int32)
  features["task_ids"] = decoder.each([example.task for example in examples], _NONE)
  features["example_ids"] = decoder.each([example.example for example in examples], _NONE)
  return features


class _Places:
  """Where the tokens of each example go in a [B, width] array."""

  def __init__(self, counts: Sequence[int], tokens: Sequence[np.ndarray], width: int):
    self._shape = (len(counts), width)
    self._lengths = np.array([len(part) for part in tokens], np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(self._lengths) - self._lengths
    in_row = np.bincount(row, self._lengths, minlength=len(counts)).astype(np.int64)
    if (in_row > width).any():
      worst = int(in_row.argmax())
      raise ConfigError(f"row {worst} of a batch holds {in_row[worst]} tokens, and {width} fit.")
    row_start = row * width - (np.cumsum(in_row) - in_row)[row]
    self._within = np.arange(int(self._lengths.sum())) - np.repeat(before, self._lengths)
    self._index = np.repeat(row_start + before, self._lengths) + self._within

  def laid_out(self, parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return self._filled(np.concatenate(parts) if parts else np.empty(0), dtype, 0)

  def each(self, values: Sequence[int], padding: int = 0) -> np.ndarray:
    return self._filled(np.repeat(np.array(values, np.int32), self._lengths), np.int32, padding)

  def positions(self) -> np.ndarray:
    return self._filled(self._within, np.int32, 0)

  def _filled(self, values: np.ndarray, dtype: type[np.generic], padding: int) -> np.ndarray:
    array = np.full(self._shape, padding, dtype)
    array.reshape(-1)[self._index] = values
    return array


def _shifted(targets: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """What is read before each target: the one before it, and START_ID where an example begins."""
  before = np.full_like(targets, START_ID)
  before[:, 1:] = np.where(positions[:, 1:] > 0, targets[:, :-1], START_ID)
  return before
