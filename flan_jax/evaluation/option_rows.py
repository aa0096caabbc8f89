"""How prompts and options lie in rows, and which few shapes of row make the least work.

`flan_jax.evaluation.rank_classification` says what a row looks like.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from flan_jax.data.encode import common_prefix
from flan_jax.data.packing import lower_bound, pack
from flan_jax.errors import EvaluationError
from flan_jax.evaluation.option_scores import RankRequest

EVERYONES = -1
"""The unit of tokens that every unit of the row sees."""

LEAST_ROOM = 8
"""An encoder-decoder's room for options is at least this part of the encoder's row."""

_NEW_SHAPE = 8  # batches that a further shape, which may have to be compiled, has to save


class Unit(NamedTuple):
  """A prompt (less what all begin with) with options, and which request's which option each is."""

  prompt: tuple[int, ...]
  options: list[tuple[int, ...]]
  places: list[list[tuple[int, int]]]


class Batch(NamedTuple):
  """Rows of units, to be laid out in `row_count` rows of `length` tokens; an encoder-decoder's decoder
  rows have `options` tokens.
  """

  rows: list[list[Unit]]
  row_count: int
  length: int
  options: int


class _DecoderRows:
  """How units lie in the rows of a decoder."""

  def __init__(self, requests: Sequence[RankRequest], start_id: int, bidirectional: bool):
    del start_id
    self.shares_prompts = not bidirectional
    prompts = [request.prompt_ids for request in requests]
    # The least and the greatest in lexical order differ the earliest. Each unit keeps a last token.
    begins = common_prefix(min(prompts), max(prompts)) if prompts and self.shares_prompts else 0
    self.begin = prompts[0][: min(begins, min(map(len, prompts)) - 1)] if begins else ()

  def size(self, prompt: int, options: Sequence[int]) -> tuple[int, int]:
    """Tokens of the row and option tokens that a unit takes."""
    return prompt - 1 + sum(options), sum(options)

  def rooms(self, length: int) -> Sequence[int]:
    """Tokens that a row of this length may have for options, ascending."""
    return (length,)

  def work(self, length: int, room: int, width: int) -> float:
    """What a row costs, in tokens: those that it holds, and attention between each two of them.

    By multiply-adds attention would be a sixth of that. Its masks and softmax take the rest.
    """
    del room
    return length + length**2 / width

  def lead(self, unit: Unit) -> int:
    """Columns of the targets that a unit leaves empty before its first option."""
    return len(unit.prompt) - 1

  def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
    shape, begin = (batch.row_count, batch.length), len(self.begin)
    tokens, targets, positions, units, options, prefix = (
      np.zeros(shape, np.int32) for _ in range(6)
    )
    for r, row in enumerate(batch.rows):
      tokens[r, :begin] = self.begin
      positions[r, :begin] = np.arange(begin)
      units[r, :begin] = EVERYONES
      end, number = begin, 0
      for u, unit in enumerate(row, start=1):
        *shared, last = unit.prompt
        at, end = end, end + len(shared)
        tokens[r, at:end] = shared
        positions[r, at:end] = begin + np.arange(len(shared))
        units[r, at:end] = u
        prefix[r, at : end + 1] = not self.shares_prompts
        for ids in unit.options:
          at, end, number = end, end + len(ids), number + 1
          tokens[r, at:end] = last, *ids[:-1]
          targets[r, at:end] = ids
          positions[r, at:end] = begin + len(shared) + np.arange(len(ids))
          units[r, at:end] = u
          options[r, at:end] = number
    return {
      "decoder_input_tokens": tokens,
      "decoder_positions": positions,
      "units": units,
      "options": options,
      "prefix": prefix,
      "targets": targets,
    }


class _EncoderDecoderRows:
  """How prompts lie in the encoder's rows and their options in the decoder's.

  An encoder's token sees what follows it, so that prompts which begin alike share nothing.
  """

  begin: tuple[int, ...] = ()
  shares_prompts = True

  def __init__(self, requests: Sequence[RankRequest], start_id: int, bidirectional: bool):
    del requests, bidirectional
    self._start_id = start_id

  def size(self, prompt: int, options: Sequence[int]) -> tuple[int, int]:
    """Tokens of the encoder's row and of the decoder's that a unit takes."""
    return prompt, sum(options)

  def rooms(self, length: int) -> Sequence[int]:
    """Tokens that a decoder's row may have beside an encoder's of this length, ascending."""
    return [length // part for part in (LEAST_ROOM, 4, 2, 1)] + [2 * length, 4 * length]

  def work(self, length: int, room: int, width: int) -> float:
    """What a row costs, in the encoder's tokens: one of the decoder, which reads the encoder too, is about two."""
    return length + 2 * room + (length**2 + room * (length + room)) / width

  def lead(self, unit: Unit) -> int:
    """Columns of the targets that a unit leaves empty before its first option."""
    del unit
    return 0

  def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
    source_shape, shape = (batch.row_count, batch.length), (batch.row_count, batch.options)
    source, source_positions, source_units = (np.zeros(source_shape, np.int32) for _ in range(3))
    tokens, targets, positions, units, options = (np.zeros(shape, np.int32) for _ in range(5))
    for r, row in enumerate(batch.rows):
      read = end = number = 0
      for u, unit in enumerate(row, start=1):
        at, read = read, read + len(unit.prompt)
        source[r, at:read] = unit.prompt
        source_positions[r, at:read] = np.arange(len(unit.prompt))
        source_units[r, at:read] = u
        for ids in unit.options:
          at, end, number = end, end + len(ids), number + 1
          tokens[r, at:end] = self._start_id, *ids[:-1]
          targets[r, at:end] = ids
          positions[r, at:end] = np.arange(len(ids))
          units[r, at:end] = u
          options[r, at:end] = number
    return {
      "encoder_input_tokens": source,
      "encoder_positions": source_positions,
      "encoder_segment_ids": source_units,
      "decoder_input_tokens": tokens,
      "decoder_positions": positions,
      "decoder_segment_ids": options,
      "units": units,
      "options": options,
      "targets": targets,
    }


Rows = _DecoderRows | _EncoderDecoderRows
FAMILIES: dict[str, type[Rows]] = {
  "decoder": _DecoderRows,
  "encoder_decoder": _EncoderDecoderRows,
}


def check(request: RankRequest, rows: Rows, longest: int) -> None:
  """Refuse what cannot be scored, by name."""
  options = request.option_ids
  if not options:
    raise EvaluationError(f"{request.name}: there are no options to rank.")
  if not request.prompt_ids:
    raise EvaluationError(f"{request.name}: the prompt has no tokens.")
  for per_option in (request.end_tokens, request.option_bytes):
    if per_option and len(per_option) != len(options):
      raise ValueError(f"{request.name}: {len(per_option)} values for {len(options)} options")
  for k, ids in enumerate(options):
    if len(ids) <= (request.end_tokens[k] if request.end_tokens else 0):
      raise EvaluationError(f"{request.name}: option {k + 1} of {len(options)} is empty.")
    if max(rows.size(len(request.prompt_ids), [len(ids)])) > longest:
      raise EvaluationError(
        f"{request.name}: the prompt of {len(request.prompt_ids)} tokens with option {k + 1} of "
        f"{len(ids)} does not fit a row of {longest}. Shorten it, or allow longer rows."
      )


def units_of(requests: Sequence[RankRequest], rows: Rows, longest: int) -> list[Unit]:
  """Equal prompts together, equal options once; what is too much for one row is divided."""
  shared: dict[tuple[int, ...], dict[tuple[int, ...], list[tuple[int, int]]]] = {}
  for r, request in enumerate(requests):
    options = shared.setdefault(tuple(request.prompt_ids[len(rows.begin) :]), {})
    for k, ids in enumerate(request.option_ids):
      options.setdefault(tuple(ids), []).append((r, k))
  units = []
  for prompt, options in shared.items():
    unit = Unit(prompt, [], [])
    for ids, places in options.items():
      lengths = [*map(len, unit.options), len(ids)]
      full = max(rows.size(len(prompt), lengths)) > longest - len(rows.begin)
      if unit.options and (full or not rows.shares_prompts):
        units.append(unit)
        unit = Unit(prompt, [], [])
      unit.options.append(ids)
      unit.places.append(places)
    units.append(unit)
  return units


class _Packing(NamedTuple):
  """Units, by number, in rows of one shape, and how much work those are: in tokens, empty places included."""

  work: float
  length: int
  options: int
  row_count: int
  rows: list[list[int]]


def planned(
  units: Sequence[Unit],
  rows: Rows,
  lengths: Sequence[int],
  batch_tokens: int,
  shards: int,
  width: int,
) -> Iterator[Batch]:
  """Batches of packed rows, in the few shapes that make the least work of all units together.

  Units may share longer rows than they need: where each takes more than half of a row, the rest of it is padding. No
  row is longer than a batch for that.
  """
  sizes = np.array([rows.size(len(unit.prompt), [*map(len, unit.options)]) for unit in units])
  sizes = sizes.reshape(-1, 2)
  rooms = [rows.rooms(length)[-1] for length in lengths]
  shortest = np.maximum(
    np.searchsorted(lengths, len(rows.begin) + sizes[:, 0]), np.searchsorted(rooms, sizes[:, 1])
  )
  compiling = _NEW_SHAPE * shards * batch_tokens
  # best[k]: of the units that fit the first k lengths, the work and how they are packed.
  best: list[tuple[float, tuple[_Packing, ...]]] = [(0.0, ())]
  for k, length in enumerate(lengths):
    found = (math.inf, ()) if (shortest == k).any() else best[k]
    for i in range(k, -1 if length <= batch_tokens else k - 1, -1):
      members = np.flatnonzero((shortest >= i) & (shortest <= k))
      if members.size:
        work, before = best[i][0] + compiling, best[i][1]
        shape = (length, batch_tokens, shards, width)
        packing = _packed(members, sizes[members], rows, *shape, found[0] - work)
        found = (work + packing.work, (*before, packing)) if packing else found
    best.append(found)
  for packing in best[-1][1]:
    for start in range(0, len(packing.rows), packing.row_count):
      chosen = [[units[i] for i in row] for row in packing.rows[start : start + packing.row_count]]
      yield Batch(chosen, packing.row_count, packing.length, packing.options)


def _packed(
  members: Int[np.ndarray, " units"],
  sizes: Int[np.ndarray, "units 2"],
  rows: Rows,
  length: int,
  batch_tokens: int,
  shards: int,
  width: int,
  below: float,
) -> _Packing | None:
  """Units in rows of a length, with as much room for options as makes the least work; None: not below so much."""
  best = None
  for room in rows.rooms(length):
    if room < sizes[:, 1].max():
      continue
    capacities = (length - len(rows.begin), room)
    count = shards * max(1, batch_tokens // max(length, room))
    batch = count * rows.work(length, room, width)
    if math.ceil(lower_bound(sizes, capacities) / count) * batch >= below:
      continue
    packed = pack(sizes, capacities)
    work = math.ceil(len(packed) / count) * batch
    if work < below:
      chosen = [members[row].tolist() for row in packed]
      below, best = work, _Packing(work, length, room, count, chosen)
  return best
