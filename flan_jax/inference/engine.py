"""Continuous batching: texts are written side by side in a fixed number of slots, and who ends frees a place.

A prompt is read in chunks into its slot's part of the cache, all but a decoder's last token. From then on the
slot takes part in every step: the last token is read, the next one chosen. An encoder-decoder's prompt is encoded
at once, and its text begins with the begin token. Everything has one of a few shapes, so that nothing is compiled
once each has been seen:

  read    [rows, width] tokens of prompts    rows: 1 or 8, width: 32, 64, 128, ...
  write   `block` steps of [rows] slots      rows: 1, 4, 16, ... (on GPUs 2, 8, 32, ...), as many as are being
                                             written; what ends does so within the block, and is told after it
"""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np

from flan_jax.errors import ConfigError
from flan_jax.inference import slots as on_devices
from flan_jax.inference.sampling import GREEDY, Sampling, SamplingRows
from flan_jax.inference.slots import MAX_STOPS, Block, Hook
from flan_jax.models import LanguageModel, Params
from flan_jax.models.layers import platform
from flan_jax.training.partitioning import Layout

T = TypeVar("T")

_SHORTEST = 32
_FULL = 0.75  # of those rows are filled, or prompts are read one by one
_TOGETHER = 8
# Rows on a device: of one, XLA on GPUs makes no product, but writes its terms and sums them slowly.
_FEWEST = {"gpu": 2}

FINISHES = ("stop", "length", "broken")
"""Why a text ends: a stop token, its length, or logits that are not finite."""


@dataclass(frozen=True)
class Written:
  """News of a text.

  Attributes:
    number: of the request.
    tokens: that are new; the stop token is not among them.
    logprobs: of each, by the model alone.
    finish: one of `FINISHES`; None: it goes on.
  """

  number: int
  tokens: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: str | None = None


@dataclass
class _Request:
  """A text, and how far it is.

  Attributes:
    text: a decoder's prompt, an encoder-decoder's begin token; what the answer has to begin with; and once it has
      been kept, what was written.
    source: an encoder-decoder's prompt that is not encoded yet.
    read: tokens of the text that are in the cache.
  """

  number: int
  text: list[int]
  prompt: int
  source: Sequence[int]
  sampling: Sampling
  stops: Sequence[int]
  keep: bool
  slot: int = -1
  read: int = 0
  writes: bool = False


class Engine:
  """Writes texts for many requests at once.

  Args:
    params: on the devices, sharded as `layout` says.
    stop_ids: tokens that end a text.
    start_id: an encoder-decoder's begin token.
    slots: texts that are written side by side.
    length: tokens of the longest text: a decoder's prompt and answer, an encoder-decoder's begin token and answer.
    source_length: tokens of an encoder-decoder's longest prompt.
    chunk: tokens of a prompt that are read between two blocks.
    block: steps that are made at once.
    layout: the mesh that the parameters lie on; None: they are on one device.
    hook: changes logits; the same function again is not compiled again.

  Raises:
    ConfigError: a number below 1, or several processes.
  """

  def __init__(
    self,
    model: LanguageModel,
    params: Params,
    *,
    stop_ids: Sequence[int],
    start_id: int = 0,
    slots: int = 16,
    length: int = 1024,
    source_length: int = 1024,
    chunk: int = 512,
    block: int = 8,
    layout: Layout | None = None,
    hook: Hook | None = None,
  ):
    sizes = {"slots": slots, "length": length, "source_length": source_length}
    for name, value in {**sizes, "chunk": chunk, "block": block}.items():
      if value < 1:
        raise ConfigError(f"{name}={value} must be 1 or more.")
    if jax.process_count() > 1:
      raise ConfigError("text is written by one process: run this launch in one, on its devices.")
    self._model, self._params = model.separated(params)
    if layout is None:
      self._params = _alone(self._params, params)
    self.length, self.source_length = length, source_length
    self._stop_ids, self._start_id = tuple(stop_ids), start_id
    self._block, self._hook = block, hook
    # One token of a row is not cut into pieces.
    self._layout = layout and layout.without("length")
    self._shards = layout.shards("batch") if layout else 1
    self._encodes = model.layout == "encoder_decoder"
    # A prompt that is seen in both directions is read in one piece, its last token with it.
    self._both_ways = model.bidirectional_inputs
    self._widths = _sizes(_SHORTEST, length if self._both_ways else min(chunk, length), 2)
    self._source_widths = _sizes(_SHORTEST, source_length, 2)
    with self._active():
      fewest = _FEWEST.get(platform(), 1)
    self._rows = max(-(-slots // self._shards), fewest) * self._shards
    # Where a mesh holds rows apart, all of them are written always.
    self._counts = _sizes(fewest, self._rows, 4) if self._shards == 1 else [self._rows]
    self._numbers = itertools.count()
    self.reset()

  def reset(self) -> None:
    """Forgets all requests, and begins with new slots, as after a fault on the devices."""
    sizes = (self._rows, self.length, self._source_widths[-1])
    with self._active():
      self._slots = on_devices.empty(self._model, self._params, *sizes)
    if self._layout is None:
      self._slots = _alone(self._slots, self._params)
    self._free = list(range(self._rows))
    self._waiting = collections.deque[_Request]()
    self._placed: dict[int, _Request] = {}
    self._kept: dict[int, _Request] = {}

  def add(
    self,
    prompt: Sequence[int],
    sampling: Sampling = GREEDY,
    *,
    stop_ids: Sequence[int] | None = None,
    keep: bool = False,
  ) -> int:
    """Takes a request, and gives its number.

    Args:
      prompt: at least one token.
      stop_ids: of this text; None: the engine's.
      keep: where a stop token ends the text its place is kept, for `go_on`.

    Raises:
      ConfigError: it is empty or too long, or has ids that the model does not know.
    """
    stops = self._stop_ids if stop_ids is None else tuple(stop_ids)
    if len(stops) > MAX_STOPS:
      raise ConfigError(f"{len(stops)} stop tokens: a text may have {MAX_STOPS}.")
    if not len(prompt):
      raise ConfigError("the prompt is empty; a model needs at least one token to go on from.")
    self._check_ids([*prompt, *sampling.prefix])
    if self._encodes and len(prompt) > self.source_length:
      raise ConfigError(
        f"the prompt has {len(prompt):,} tokens, and there is room for {self.source_length:,}."
      )
    begin = [self._start_id] if self._encodes else [*map(int, prompt)]
    text, source = [*begin, *sampling.prefix], prompt if self._encodes else ()
    self._check_length(text, sampling)
    request = _Request(next(self._numbers), text, len(begin), source, sampling, stops, keep)
    self._waiting.append(request)
    return request.number

  def go_on(self, number: int, tokens: Sequence[int], sampling: Sampling | None = None) -> None:
    """Lets a text that was kept go on behind tokens from elsewhere, such as what a tool said.

    Args:
      sampling: from here on, `max_new_tokens` counted from here; None: as before.

    Raises:
      ConfigError: no such text is kept, or it would be too long.
    """
    if number not in self._kept:
      raise ConfigError(f"request {number} is none that was kept and has stopped.")
    request = self._kept[number]
    self._check_ids(tokens)
    sampling = sampling or dataclasses.replace(request.sampling, prefix=())
    text = [*request.text, *map(int, tokens), *sampling.prefix]
    self._check_length(text, sampling)
    request.text, request.sampling = text, sampling
    self._placed[request.slot] = self._kept.pop(number)

  def cancel(self, number: int) -> None:
    """Forgets a request, wherever it is; of one that has ended there is nothing to forget."""
    for request in list(self._waiting):
      if request.number == number:
        self._waiting.remove(request)
    for request in (*self._placed.values(), *self._kept.values()):
      if request.number == number:
        self._leave(request)
        with self._active():
          self._slots = on_devices.stop(self._slots, np.int32(request.slot))

  @property
  def busy(self) -> bool:
    """Whether anything is waiting, being read or written."""
    return bool(self._waiting or self._placed)

  def step(self) -> list[Written]:
    """Reads on in prompts, and makes one block of steps. News come in the order of the slots."""
    while self._waiting and self._free:
      request = self._waiting.popleft()
      request.slot = min(self._free)
      self._free.remove(request.slot)
      self._placed[request.slot] = request
    with self._active():
      self._read()
      writing = [request for _, request in sorted(self._placed.items()) if request.writes]
      if not writing:
        return []
      rows = self._rows_of(writing)
      self._slots, block = on_devices.write(
        self._model,
        self._params,
        self._slots,
        rows,
        np.bool_(len(self._waiting) > 0),
        steps=self._block,
        hook=self._hook,
      )
      block = jax.device_get(block)
    places = [r.slot for r in writing] if rows is None else range(len(writing))
    return [self._news(request, block, at) for request, at in zip(writing, places, strict=True)]

  def run(
    self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling] = GREEDY
  ) -> list[Written]:
    """All of each text, in the order of the prompts.

    Raises:
      ConfigError: a prompt that `add` refuses, named by its place.
    """
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    numbers: list[int] = []
    for i, (prompt, each) in enumerate(zip(prompts, settings, strict=True)):
      try:
        numbers.append(self.add(prompt, each))
      except ConfigError as error:
        for number in numbers:
          self.cancel(number)
        raise ConfigError(f"prompt {i}: {error}") from None
    texts = {number: Written(number, (), ()) for number in numbers}
    while any(text.finish is None for text in texts.values()):
      for news in self.step():
        if news.number in texts:
          so_far = texts[news.number]
          tokens, logprobs = so_far.tokens + news.tokens, so_far.logprobs + news.logprobs
          texts[news.number] = Written(news.number, tokens, logprobs, news.finish)
    return [texts[number] for number in numbers]

  def warm_up(self) -> None:
    """Compiles whatever requests may need."""
    last = not self._both_ways  # token of a text, which is not read beforehand
    texts = [min(width + last, self.length - 1) for width in self._widths]
    lengths = [(1, text) for text in texts] if self._encodes else [(text, 0) for text in texts]
    lengths += [(source, 1) for source in self._source_widths[1:] if self._encodes]
    for prompt, prefix in lengths:
      for rows in (1, min(_TOGETHER * self._shards, len(self._free))):
        sampling = Sampling(1, prefix=(1,) * max(prefix - 1, 0))
        self.run([[1] * prompt] * rows, sampling)
    for count in self._counts:
      self.run([[1]] * count, Sampling(1))
    with self._active():
      self._slots = on_devices.stop(self._slots, np.int32(0))

  def _active(self) -> contextlib.AbstractContextManager[None]:
    return self._layout.active() if self._layout is not None else contextlib.nullcontext()

  def _check_ids(self, ids: Sequence[int]) -> None:
    found, size = np.asarray(ids), self._model.config.vocab_size
    if found.size and not 0 <= found.min() <= found.max() < size:
      wrong = found.min() if found.min() < 0 else found.max()
      raise ConfigError(f"the id {wrong} is unknown: the model knows 0 to {size - 1:,}.")

  def _check_length(self, text: Sequence[int], sampling: Sampling) -> None:
    learned = getattr(self._model.config, "learned_positions", None)
    room = min(self.length, learned or self.length)
    if len(text) + sampling.max_new_tokens > room:
      raise ConfigError(
        f"{len(text):,} tokens and {sampling.max_new_tokens:,} new ones are more than {room:,}, the longest text: "
        "give less text, or ask for fewer tokens."
      )

  def _rows_of(self, writing: Sequence[_Request]) -> np.ndarray | None:
    """Of the texts that are being written, to write no others; None: of all slots."""
    count = next(count for count in self._counts if len(writing) <= count)
    if count == self._rows:
      return None
    rows = self._rows + np.arange(count, dtype=np.int32)
    rows[: len(writing)] = [request.slot for request in writing]
    return rows

  def _to_read(self, request: _Request) -> int:
    """Tokens of a text that have to be read before it is written on."""
    return len(request.text) - request.read - (not self._both_ways)

  def _read(self) -> None:
    """The next chunk of the prompts that are not read yet; only of the first few, where others are being written."""
    waiting = [request for request in self._placed.values() if not request.writes]
    if len(waiting) < len(self._placed):
      waiting = waiting[:_TOGETHER]
    new = [request for request in waiting if request.source]
    for rows, width, group in self._groups(new, lambda r: len(r.source), self._source_widths):
      arrays = self._arrays(rows, width, [(r, r.source) for r in group])
      self._slots = on_devices.encode(self._model, self._params, self._slots, *arrays)
      for request in group:
        request.source = ()

    def chunk(request: _Request) -> int:
      return min(self._to_read(request), self._widths[-1])

    unread = [request for request in waiting if self._to_read(request) > 0]
    for rows, width, group in self._groups(unread, chunk, self._widths):
      parts = [(r, r.text[r.read : r.read + chunk(r)]) for r in group]
      starts, prefixes = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
      starts[: len(group)] = [request.read for request in group]
      prefixes[: len(group)] = [request.prompt for request in group]
      self._slots = on_devices.read(
        self._model,
        self._params,
        self._slots,
        *self._arrays(rows, width, parts),
        starts,
        prefixes if self._both_ways else None,
      )
      for request, (_, part) in zip(group, parts, strict=True):
        request.read += len(part)
    for request in waiting:
      if self._to_read(request) <= 0:
        self._begin(request)

  def _groups(
    self, requests: Sequence[_Request], size: Callable[[_Request], int], widths: Sequence[int]
  ) -> Iterator[tuple[int, int, list[_Request]]]:
    """Rows, width and members of what is read together."""
    few, many = self._shards, self._shards * _TOGETHER
    by_width: dict[int, list[_Request]] = {}
    for request in requests:
      width = next(width for width in widths if size(request) <= width)
      by_width.setdefault(width, []).append(request)
    for width, left in by_width.items():
      while left:
        rows = many if len(left) >= _FULL * many else few
        yield rows, width, left[:rows]
        left = left[rows:]

  def _arrays(
    self, rows: int, width: int, parts: Sequence[tuple[_Request, Sequence[int]]]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slots, tokens and their number, of rows that may be more than there are parts."""
    places = self._rows + np.arange(rows, dtype=np.int32)
    tokens, counts = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
    for row, (request, part) in enumerate(parts):
      places[row], counts[row] = request.slot, len(part)
      tokens[row, : len(part)] = part
    return places, tokens, counts

  def _begin(self, request: _Request) -> None:
    text, sampling = request.text, request.sampling
    tokens, stops = np.zeros(self.length, np.int32), np.full(MAX_STOPS, -1, np.int32)
    tokens[: len(text)] = text
    stops[: len(request.stops)] = request.stops
    request.writes, request.read = True, len(text) - 1
    end, limit = len(text), len(text) + sampling.max_new_tokens
    self._slots = on_devices.begin(
      self._slots,
      np.int32(request.slot),
      tokens,
      np.int32(end),
      np.int32(limit),
      stops,
      jax.tree.map(lambda x: x[0], SamplingRows.of([sampling])),
    )

  def _news(self, request: _Request, block: Block, at: int) -> Written:
    count = int(block.counts[at])
    tokens = tuple(block.tokens[at, :count].tolist())
    request.text += tokens
    finish = None
    if not block.running[at]:
      finish = "stop" if block.stopped[at] else "broken" if block.broken[at] else "length"
      request.writes = False
      request.read = len(request.text) - 1
      if finish == "stop" and request.keep:
        self._kept[request.number] = self._placed.pop(request.slot)
      else:
        self._leave(request)
    return Written(request.number, tokens, tuple(block.logprobs[at, :count].tolist()), finish)

  def _leave(self, request: _Request) -> None:
    self._placed.pop(request.slot, None)
    self._kept.pop(request.number, None)
    self._free.append(request.slot)


def _alone(arrays: T, params: Params) -> T:
  """Of no mesh, where one device holds all parameters: what comes back from it would be, and compiled for once more."""
  first = jax.tree.leaves(params)[0]
  devices = first.devices() if isinstance(first, jax.Array) else ()
  return jax.device_put(arrays, *devices) if len(devices) == 1 else arrays


def _sizes(smallest: int, largest: int, factor: int) -> list[int]:
  """The smallest, `factor` times it, and so on up to the first that holds the largest, which takes its place."""
  sizes = [smallest]
  while sizes[-1] < largest:
    sizes.append(factor * sizes[-1])
  return [*sizes[:-1], largest]
