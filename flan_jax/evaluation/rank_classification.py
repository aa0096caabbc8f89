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

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flan_jax.errors import EvaluationError
from flan_jax.evaluation.option_rows import (
  EVERYONES,
  FAMILIES,
  LEAST_ROOM,
  Batch,
  Rows,
  check,
  planned,
  units_of,
)
from flan_jax.evaluation.option_scores import OptionScores, RankRequest
from flan_jax.models import LanguageModel, Params
from flan_jax.training.cross_entropy import token_scores
from flan_jax.training.partitioning import Layout, batch_shardings

_TOKEN_BLOCK = 128  # option tokens are few; a larger block would be mostly padding


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
  unit = LEAST_ROOM * pieces if pieces > 1 else 1
  lengths = sorted({-(-length // unit) * unit for length in row_lengths})
  rows = FAMILIES[model.layout](requests, start_id, model.bidirectional_inputs)
  for request in requests:
    check(request, rows, lengths[-1])
  results = _Results(requests, rows)
  shards = layout.shards("batch") if layout else 1
  units, width = units_of(requests, rows, lengths[-1]), model.config.emb_dim
  for batch in planned(units, rows, lengths, batch_tokens, shards, width):
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


class _Results:
  """Gathers the options' log-probabilities, which arrive in the order of the plan."""

  def __init__(self, requests: Sequence[RankRequest], rows: Rows):
    self._requests, self._rows = requests, rows
    self._total = [np.full(len(r.option_ids), np.nan) for r in requests]
    self._without_end = [np.full(len(r.option_ids), np.nan) for r in requests]
    self._greedy = [np.zeros(len(r.option_ids), bool) for r in requests]
    self._missing = [len(r.option_ids) for r in requests]

  def add(self, batch: Batch, log_probs: Float[np.ndarray, "2 B T"]) -> int:
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
  unit = (units[:, None, :] == EVERYONES) | (units[:, :, None] == units[:, None, :])
  prompt_or_own = (options[:, None, :] == 0) | (options[:, :, None] == options[:, None, :])
  # In both directions the prompt's last token, which is read for the option, is a part of the prompt.
  return before & unit & (prompt_or_own | (prefix[:, None, :] > 0))
