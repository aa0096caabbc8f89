"""Answers to many prompts: batches of like lengths, so that few shapes are compiled."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from flan_jax.errors import ConfigError
from flan_jax.inference.decoding import Choose, greedy, run
from flan_jax.models import LanguageModel, Params

_SHORTEST = 32


def generate(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Sequence[int]],
  max_new_tokens: int,
  eos_ids: Sequence[int],
  *,
  batch_size: int = 16,
  start_id: int = 0,
  choose: Choose | None = None,
) -> list[list[int]]:
  """Greedy continuations (decoder) or answers (encoder-decoder), in the order of the prompts.

  Prompts are sorted by length and padded at the right to one of a few widths (32, 48, 64, 96,
  128, ...); every row has positions of its own. A row stops before any of `eos_ids`.

  Args:
    prompts: token ids, none of them empty.
    batch_size: rows decoded together. The last batch of a width may be smaller, by halves.
    start_id: an encoder-decoder's first decoder token; T5's is its pad id.
    choose: instead of greedy: sees each token's logits, may force tokens and stop rows. Pass the
      same function again, since every new one is compiled.

  Returns:
    The new ids of each prompt, without the one that stopped it.

  Raises:
    ConfigError: an empty prompt, or nothing to generate.
  """
  if max_new_tokens < 1 or batch_size < 1:
    raise ConfigError(
      f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be 1 or more."
    )
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise ConfigError(f"prompt {i} is empty; a model needs at least one token to go on from.")
  if choose is None:
    choose = greedy(tuple(eos_ids))
  answers: list[list[int]] = [[] for _ in prompts]
  for members, width, rows in _batches([len(prompt) for prompt in prompts], batch_size):
    ids = np.zeros((rows, width), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, member in enumerate(members):
      lengths[row] = len(prompts[member])
      ids[row, : lengths[row]] = prompts[member]
    state = run(
      model, params, jnp.asarray(ids), jnp.asarray(lengths), max_new_tokens, choose, start_id
    )
    tokens, counts = np.asarray(state.tokens), np.asarray(state.lengths)
    for row, member in enumerate(members):
      answers[member] = tokens[row, : counts[row]].tolist()
  return answers


def _batches(lengths: list[int], batch_size: int) -> Iterator[tuple[list[int], int, int]]:
  """Members, width and number of rows of each batch; prompts of one width share batches."""
  by_width: dict[int, list[int]] = {}
  for member in sorted(range(len(lengths)), key=lengths.__getitem__):
    by_width.setdefault(_width(lengths[member]), []).append(member)
  for width, members in by_width.items():
    for start in range(0, len(members), batch_size):
      chunk = members[start : start + batch_size]
      rows = batch_size
      while rows % 2 == 0 and rows // 2 >= len(chunk):
        rows //= 2
      yield chunk, width, rows


def _width(length: int) -> int:
  """The least of 32, 48, 64, 96, 128, 192, ... that holds `length`."""
  width = _SHORTEST
  while width < length:
    width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
  return width
