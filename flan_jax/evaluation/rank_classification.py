"""Rank classification: the log-probability of every option of every prompt, in few tokens.

A prompt of P tokens with n options of O tokens costs P + nO tokens, of a decoder one less, and not n(P + O). Decoder:

    tokens     p0 p1 p2   p3 a0 a1   p3 b0     the prompt "p0 p1 p2 p3", options "a0 a1 a2" and "b0 b1"
    positions   0  1  2    3  4  5    3  4     each option goes on where the prompt ended
    option      0  0  0    1  1  1    2  2     0 is the prompt: everyone of the unit sees it
    targets                a0 a1 a2   b0 b1

The prompt's last token is read once per option, in place of the option's own last one, so that every
slot predicts exactly one token. A token sees what stands before it in its unit, of the prompt and of
its own option. What all prompts begin with (the system message of a chat template, say) is read once a
row and seen by every unit.
Encoder-decoder: the encoder reads each prompt once and each option is a decoder segment whose cross
attention sees its prompt only. Several units share a row, and prompts of equal tokens share a unit.
Rows have the few shapes, of some fixed ones, that leave little of them empty and little to be compiled.

A decoder that reads its inputs in both directions shares nothing: each option is a unit of its own, whose
prompt's last token is read once and seen by all of the prompt.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flan_jax.data.encode import common_prefix
from flan_jax.data.packing import lower_bound, pack
from flan_jax.errors import EvaluationError, UnknownName
from flan_jax.models import LanguageModel, Params
from flan_jax.training.cross_entropy import token_scores
from flan_jax.training.partitioning import Layout, batch_shardings

_TOKEN_BLOCK = 128  # option tokens are few; a larger block would be mostly padding
_NEW_SHAPE = 8  # batches that a further shape, which may have to be compiled, has to save
_LEAST_ROOM = 8  # an encoder-decoder's room for options is at least this part of the encoder's row
_EVERYONES = -1  # the unit of tokens that every unit of the row sees

CONVENTIONS = ("t0", "lm_eval", "lm_eval_norm", "per_token", "pmi", "contextual")
"""How an option's token log-probabilities become its score.

t0: their sum, end of text included (Sanh et al. 2022, and T5X).
lm_eval: their sum without the end of text (the harness's `acc`).
lm_eval_norm: that sum divided by the option's length in UTF-8 bytes (the harness's `acc_norm`).
per_token: their mean, end of text included.
pmi: their sum without the end of text, less the same sum where nothing was asked: how much the prompt
  speaks for the option (Holtzman et al. 2021, arXiv 2104.08315; the harness's `acc_mutual_info`).
contextual: their sum, end of text included, less the logarithm of the option's share where the same
  prompt has no content (contextual calibration, Zhao et al. 2021, arXiv 2102.09690).
"""


@dataclass(frozen=True)
class RankRequest:
  """One prompt and the options to be ranked after it.

  Args:
    prompt_ids: at least one token; with the decoder family it begins with BOS where the model wants
      one.
    option_ids: of each option, the tokens that follow the prompt, end of text included if it has
      one.
    end_tokens: of each option, how many of its last tokens are end of text. Default: none.
    option_bytes: of each option, the length of its text. Default: unknown, `lm_eval_norm` refuses.
    name: what an error calls it.
  """

  prompt_ids: tuple[int, ...]
  option_ids: tuple[tuple[int, ...], ...]
  end_tokens: tuple[int, ...] = ()
  option_bytes: tuple[int, ...] = ()
  name: str = "a request"


@dataclass(frozen=True)
class OptionScores:
  """What each option of one request got, in the order of its options.

  Attributes:
    total: summed log-probability, end of text included.
    without_end: the same, end of text left out.
    tokens: number of tokens, end of text included.
    bytes: length of the text; 0 where unknown.
    unasked: `without_end` after a prompt that asks nothing; () where that was not scored.
    content_free: logarithm of the option's share among all options, averaged over prompts without
      content; () where those were not scored.
    greedy: whether each token, end of text included, is the most probable one; () where nobody looked.
  """

  total: tuple[float, ...]
  without_end: tuple[float, ...]
  tokens: tuple[int, ...]
  bytes: tuple[int, ...]
  unasked: tuple[float, ...] = ()
  content_free: tuple[float, ...] = ()
  greedy: tuple[bool, ...] = ()

  def by(self, convention: str) -> tuple[float, ...]:
    """The scores by one of `CONVENTIONS`.

    Raises:
      UnknownName: no convention has that name.
    """
    if convention == "t0":
      return self.total
    if convention == "lm_eval":
      return self.without_end
    if convention == "lm_eval_norm":
      if not all(self.bytes):
        raise EvaluationError("lm_eval_norm needs the length of every option's text in bytes.")
      return tuple(s / n for s, n in zip(self.without_end, self.bytes, strict=True))
    if convention == "per_token":
      return tuple(s / n for s, n in zip(self.total, self.tokens, strict=True))
    if convention == "pmi":
      if not self.unasked:
        raise EvaluationError("pmi needs the options' scores after a prompt that asks nothing.")
      return tuple(s - u for s, u in zip(self.without_end, self.unasked, strict=True))
    if convention == "contextual":
      if not self.content_free:
        raise EvaluationError("contextual needs the options' scores after prompts without content.")
      return tuple(s - c for s, c in zip(self.total, self.content_free, strict=True))
    raise UnknownName("scoring convention", convention, CONVENTIONS)


def score_options(
  model: LanguageModel,
  params: Params,
  requests: Sequence[RankRequest],
  *,
  row_lengths: Sequence[int] = (512, 1024, 2048),
  batch_tokens: int = 2048,
  start_id: int = 0,
  layout: Layout | None = None,
  progress: Callable[[int], object] | None = None,
) -> list[OptionScores]:
  """The log-probability of every option of every request, the same as of each run alone.

  Args:
    row_lengths: lengths that a row may have: of the decoder's row, or of the encoder's. The few are
      taken that make the least work.
    batch_tokens: tokens of a batch on each shard of the rows.
    start_id: what an encoder-decoder's decoder reads first.
    layout: the mesh that the parameters lie on; rows are spread over its batch axes.
    progress: called after each batch with the number of requests that it completed.

  Raises:
    EvaluationError: no options, an empty option or prompt, a prompt too long for the longest row,
      or a log-probability that is not finite; the message names the request.
  """
  # A part of a row, which an encoder-decoder may take for the options, is to divide over the sequence too.
  pieces = layout.shards("length") if layout else 1
  unit = _LEAST_ROOM * pieces if pieces > 1 else 1
  lengths = sorted({-(-length // unit) * unit for length in row_lengths})
  rows = _FAMILIES[model.layout](requests, start_id, model.bidirectional_inputs)
  for request in requests:
    _check(request, rows, lengths[-1])
  results = _Results(requests, rows)
  shards = layout.shards("batch") if layout else 1
  units, width = _units(requests, rows, lengths[-1]), model.config.emb_dim
  for batch in _plan(units, rows, lengths, batch_tokens, shards, width):
    log_probs = _run(model, params, rows.arrays(batch), layout)
    finished = results.add(batch, log_probs)
    if progress is not None and finished:
      progress(finished)
  return results.scores()


def row_lengths_up_to(longest: int) -> list[int]:
  """From 128 up, four to each doubling, the last of which holds `longest` tokens."""
  lengths = [128]
  while lengths[-1] < longest:
    step = 2 ** (lengths[-1].bit_length() - 3)
    lengths.append(lengths[-1] + step)
  return lengths


class _Unit(NamedTuple):
  """A prompt (less what all begin with) with options, and which request's which option each is."""

  prompt: tuple[int, ...]
  options: list[tuple[int, ...]]
  places: list[list[tuple[int, int]]]


class _Batch(NamedTuple):
  """Rows of units, to be laid out in `row_count` rows of `length` tokens; an encoder-decoder's decoder
  rows have `options` tokens.
  """

  rows: list[list[_Unit]]
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

  def lead(self, unit: _Unit) -> int:
    """Columns of the targets that a unit leaves empty before its first option."""
    return len(unit.prompt) - 1

  def arrays(self, batch: _Batch) -> dict[str, np.ndarray]:
    shape, begin = (batch.row_count, batch.length), len(self.begin)
    tokens, targets, positions, units, options, prefix = (
      np.zeros(shape, np.int32) for _ in range(6)
    )
    for r, row in enumerate(batch.rows):
      tokens[r, :begin] = self.begin
      positions[r, :begin] = np.arange(begin)
      units[r, :begin] = _EVERYONES
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
    return [length // part for part in (_LEAST_ROOM, 4, 2, 1)] + [2 * length, 4 * length]

  def work(self, length: int, room: int, width: int) -> float:
    """What a row costs, in the encoder's tokens: one of the decoder, which reads the encoder too, is about two."""
    return length + 2 * room + (length**2 + room * (length + room)) / width

  def lead(self, unit: _Unit) -> int:
    """Columns of the targets that a unit leaves empty before its first option."""
    del unit
    return 0

  def arrays(self, batch: _Batch) -> dict[str, np.ndarray]:
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


_Rows = _DecoderRows | _EncoderDecoderRows
_FAMILIES: dict[str, type[_Rows]] = {
  "decoder": _DecoderRows,
  "encoder_decoder": _EncoderDecoderRows,
}


def _check(request: RankRequest, rows: _Rows, longest: int) -> None:
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


def _units(requests: Sequence[RankRequest], rows: _Rows, longest: int) -> list[_Unit]:
  """Equal prompts together, equal options once; what is too much for one row is divided."""
  shared: dict[tuple[int, ...], dict[tuple[int, ...], list[tuple[int, int]]]] = {}
  for r, request in enumerate(requests):
    options = shared.setdefault(tuple(request.prompt_ids[len(rows.begin) :]), {})
    for k, ids in enumerate(request.option_ids):
      options.setdefault(tuple(ids), []).append((r, k))
  units = []
  for prompt, options in shared.items():
    unit = _Unit(prompt, [], [])
    for ids, places in options.items():
      lengths = [*map(len, unit.options), len(ids)]
      full = max(rows.size(len(prompt), lengths)) > longest - len(rows.begin)
      if unit.options and (full or not rows.shares_prompts):
        units.append(unit)
        unit = _Unit(prompt, [], [])
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


def _plan(
  units: Sequence[_Unit],
  rows: _Rows,
  lengths: Sequence[int],
  batch_tokens: int,
  shards: int,
  width: int,
) -> Iterator[_Batch]:
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
      yield _Batch(chosen, packing.row_count, packing.length, packing.options)


def _packed(
  members: Int[np.ndarray, " units"],
  sizes: Int[np.ndarray, "units 2"],
  rows: _Rows,
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


class _Results:
  """Gathers the options' log-probabilities, which arrive in the order of the plan."""

  def __init__(self, requests: Sequence[RankRequest], rows: _Rows):
    self._requests, self._rows = requests, rows
    self._total = [np.full(len(r.option_ids), np.nan) for r in requests]
    self._without_end = [np.full(len(r.option_ids), np.nan) for r in requests]
    self._greedy = [np.zeros(len(r.option_ids), bool) for r in requests]
    self._missing = [len(r.option_ids) for r in requests]

  def add(self, batch: _Batch, log_probs: Float[np.ndarray, "2 B T"]) -> int:
    """Take one batch in; how many requests are complete now that were not before."""
    finished = 0
    for r, row in enumerate(batch.rows):
      end = len(self._rows.begin)
      for unit in row:
        end += self._rows.lead(unit)
        for ids, places in zip(unit.options, unit.places, strict=True):
          at, end = end, end + len(ids)
          values, best = log_probs[:, r, at:end].astype(np.float64)
          for place in places:
            finished += self._put(*place, values, bool((values >= best).all()))
    return finished

  def _put(self, index: int, option: int, values: Float[np.ndarray, " O"], greedy: bool) -> bool:
    request = self._requests[index]
    if not np.isfinite(values).all():
      raise EvaluationError(
        f"{request.name}: the model gives option {option + 1} of {len(request.option_ids)} the "
        f"log-probability {values[~np.isfinite(values)][0]}. Its parameters or its input are broken."
      )
    end = request.end_tokens[option] if request.end_tokens else 0
    self._total[index][option] = values.sum()
    self._greedy[index][option] = greedy
    self._without_end[index][option] = values[: len(values) - end].sum()
    self._missing[index] -= 1
    return not self._missing[index]

  def scores(self) -> list[OptionScores]:
    return [
      OptionScores(
        tuple(total.tolist()),
        tuple(without_end.tolist()),
        tuple(map(len, request.option_ids)),
        request.option_bytes or (0,) * len(total),
        greedy=tuple(greedy.tolist()),
      )
      for request, total, without_end, greedy in zip(
        self._requests, self._total, self._without_end, self._greedy, strict=True
      )
    ]


def _run(
  model: LanguageModel, params: Params, arrays: Mapping[str, np.ndarray], layout: Layout | None
) -> Float[np.ndarray, "2 B T"]:
  """What `_target_log_probs` gives, on this host; every process has the whole batch."""
  if layout is None:
    return np.asarray(_target_log_probs(model, params, arrays))
  shardings = batch_shardings(arrays, layout)
  placed = {
    key: jax.make_array_from_callback(array.shape, shardings[key], array.__getitem__)
    for key, array in arrays.items()
  }
  with layout.active():
    return np.asarray(_target_log_probs(model, params, placed))


@partial(jax.jit, static_argnames=("model",))
def _target_log_probs(
  model: LanguageModel, params: Params, batch: Mapping[str, Array]
) -> Float[Array, "2 B T"]:
  """The log-probabilities of a batch's targets, and those of the most probable words in their places."""
  units, options = batch["units"], batch["options"]
  if model.layout == "decoder":
    mask = _own_prompt_and_option(units, options, batch["prefix"])
    hidden = model.hidden(params, batch, attention_mask=mask)
  else:
    own_prompt = units[:, :, None] == batch["encoder_segment_ids"][:, None, :]
    hidden = model.hidden(params, batch, cross_mask=own_prompt)
  scores = token_scores(
    hidden,
    model.lm_head(params),
    batch["targets"],
    options > 0,
    token_block=_TOKEN_BLOCK,
  )
  # Whole on every device, so that every process can read it.
  both = jnp.stack([scores.logprob, scores.best_logprob])
  return nn.with_logical_constraint(both, (None, None, None))


def _own_prompt_and_option(
  units: Int[Array, "B T"], options: Int[Array, "B T"], prefix: Int[Array, "B T"]
) -> Bool[Array, "B T T"]:
  """A token sees what stands before it, in its unit or everyone's, of the prompt and of its option.

  Where prompts are read in both directions, the tokens of one see each other.
  """
  index = jnp.arange(units.shape[1])
  before = index[None, :, None] >= index[None, None, :]
  before |= (prefix[:, :, None] > 0) & (prefix[:, None, :] > 0)
  unit = (units[:, None, :] == _EVERYONES) | (units[:, :, None] == units[:, None, :])
  prompt_or_own = (options[:, None, :] == 0) | (options[:, :, None] == options[:, None, :])
  # In both directions the prompt's last token, which is read for the option, is a part of the prompt.
  return before & unit & (prompt_or_own | (prefix[:, None, :] > 0))
