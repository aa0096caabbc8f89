"""Log-probabilities of given tokens, with no array as large as the logits in either direction.

The logits of B x T tokens over V words are the largest array of a training step, and most of them
are not asked for: in instruction tuning nine tokens of ten are inputs, which carry no loss. So:

  1. each device sorts its own tokens: those that are asked for come first;
  2. a loop goes over blocks of `vocabulary_block` words; within it another over blocks of
     `token_block` tokens, which keeps a running log-sum-exp of each and ends after the last block
     that holds one asked for (its trip count is a value, not a shape: short answers cost less, and
     no batch overflows a budget);
  3. the backward pass runs the same two loops and computes the logits of each block again.

On a mesh no token leaves its device for this, and of each block of words the unembedding is gathered, and
its gradient summed over the devices, once.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from flan_jax.models import LMHead
from flan_jax.models.layers import platform
from flan_jax.training.partitioning import current_shards


class TokenScores(NamedTuple):
  """What a softmax over the vocabulary says about each target token. Zero where it was not asked.

  Args:
    logprob: of the target.
    log_normaliser: log of the sum of exponentiated logits.
    mean_logprob: mean over the vocabulary, for label smoothing.
    best_logprob: of the most probable word, whose gradient is not taken. The target is that word where its own is
      as large.
  """

  logprob: Float[Array, "B T"]
  log_normaliser: Float[Array, "B T"]
  mean_logprob: Float[Array, "B T"]
  best_logprob: Float[Array, "B T"]


def token_scores(
  hidden: Float[Array, "B T D"],
  head: LMHead,
  targets: Int[Array, "B T"],
  asked: Bool[Array, "B T"] | None = None,
  *,
  token_block: int | None = None,
  vocabulary_block: int | None = None,
) -> TokenScores:
  """Scores of `targets` under the softmax of the logits, exact in value and gradient.

  Products are computed in the dtype of `hidden` and accumulated in float32; everything after them
  is float32.

  Args:
    asked: which tokens to score; the others get zeros and give no gradient. None: all.
    token_block, vocabulary_block: tokens and words of one device whose logits exist at a time; None: as
      `logits_at_a_time`.
  """
  tokens_at_a_time, words_at_a_time = logits_at_a_time(platform())
  token_block = token_block or tokens_at_a_time
  vocabulary_block = vocabulary_block or words_at_a_time
  hidden, unembedding = _with_bias(hidden, head)
  grouping = _Grouping.of(targets.shape, token_block)
  hidden, targets = grouping.split(hidden), grouping.split(targets)
  if asked is None:
    asked = jnp.ones((*targets.shape[:2], grouping.tokens), bool)
  else:
    asked = grouping.split(asked)
  hidden, targets, asked = grouping.pad(hidden), grouping.pad(targets), grouping.pad(asked)
  order = jnp.argsort(~asked, axis=-1, stable=True)
  inverse = jnp.argsort(order, axis=-1)
  wanted = jnp.sum(asked, axis=-1, dtype=jnp.int32)
  trips = (jnp.max(wanted) + (grouping.block - 1)) // grouping.block
  scores = _blockwise_scores(
    grouping.blocks(_permute(hidden, order, inverse)),
    unembedding,
    grouping.blocks(jnp.take_along_axis(targets, order, axis=-1)),
    trips,
    _word_blocks(unembedding.shape[1], vocabulary_block),
    head.softcap,
  )
  return TokenScores(
    *(grouping.join(jnp.where(asked, _unsorted(x, order, inverse), 0.0)) for x in scores)
  )


def logits_at_a_time(platform: str) -> tuple[int, int]:
  """Tokens and words of a block: those that a GPU needs to be busy would on a CPU be mostly tokens that nobody asks
  for."""
  return {"cpu": (128, 8192), "gpu": (2048, 16_384)}.get(platform, (512, 8192))


def _with_bias(hidden: jax.Array, head: LMHead) -> tuple[jax.Array, jax.Array]:
  """Hidden states and kernel whose product has the bias in it: as one more row, for a feature of 1."""
  if head.bias is None:
    return hidden, head.kernel
  one = jnp.ones((*hidden.shape[:-1], 1), hidden.dtype)
  row = head.bias.astype(head.kernel.dtype)[None, :]
  return jnp.concatenate([hidden, one], -1), jnp.concatenate([head.kernel, row], 0)


class _Grouping(NamedTuple):
  """How [B, T] tokens become [R, S, N]: R batch shards, S sequence shards, N = blocks * block."""

  batch: int
  length: int
  rows: int
  pieces: int
  block: int

  @classmethod
  def of(cls, shape: tuple[int, ...], token_block: int) -> "_Grouping":
    batch, length = shape
    rows, pieces = current_shards("batch"), current_shards("length")
    rows, pieces = rows if batch % rows == 0 else 1, pieces if length % pieces == 0 else 1
    tokens = batch * length // (rows * pieces)
    # Even blocks: 600 tokens at most 512 at a time are two blocks of 300, not 512 and 88.
    return cls(batch, length, rows, pieces, math.ceil(tokens / math.ceil(tokens / token_block)))

  @property
  def tokens(self) -> int:
    return self.batch * self.length // (self.rows * self.pieces)

  def split(self, x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [R, S, tokens, ...], every device keeping what it has."""
    rest = x.shape[2:]
    x = x.reshape(
      self.rows, self.batch // self.rows, self.pieces, self.length // self.pieces, *rest
    )
    x = x.swapaxes(1, 2).reshape(self.rows, self.pieces, self.tokens, *rest)
    return _constrain(x, "batch", "length")

  def join(self, x: jax.Array) -> jax.Array:
    """[R, S, N] -> [B, T]."""
    x = x[..., : self.tokens].reshape(
      self.rows, self.pieces, self.batch // self.rows, self.length // self.pieces
    )
    return _constrain(x.swapaxes(1, 2).reshape(self.batch, self.length), "batch", "length")

  def pad(self, x: jax.Array) -> jax.Array:
    """[R, S, tokens, ...] -> [R, S, N, ...], with tokens that nobody asks for."""
    missing = -self.tokens % self.block
    return jnp.pad(x, [(0, 0), (0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 3)) if missing else x

  def blocks(self, x: jax.Array) -> jax.Array:
    """[R, S, N, ...] -> [R, S, blocks, block, ...]."""
    return x.reshape(*x.shape[:2], -1, self.block, *x.shape[3:])


class _WordBlocks(NamedTuple):
  """A vocabulary cut into `blocks` of `size` words on each of `shards` devices, which hold `held`."""

  shards: int
  held: int
  size: int
  blocks: int

  def take(self, unembedding: jax.Array, block: jax.Array, dtype: Any) -> jax.Array:
    """[D, shards, held] -> [D, shards, size]."""
    words = jax.lax.dynamic_slice_in_dim(unembedding, self.start(block), self.size, axis=2)
    return _constrain(words.astype(dtype), None, "vocab")

  def start(self, block: jax.Array) -> jax.Array:
    # The last block reaches back over the one before it, where the size does not divide; `fresh`
    # hides that part.
    return jnp.minimum(block * self.size, self.held - self.size)

  def words(
    self, block: jax.Array
  ) -> tuple[Int[Array, "1 1 1 shards size"], Bool[Array, "1 1 1 1 size"]]:
    """The word of each column, and whether no earlier block had it."""
    column = self.start(block) + jnp.arange(self.size, dtype=jnp.int32)[None, None, None, None, :]
    shard = jnp.arange(self.shards, dtype=jnp.int32)[None, None, None, :, None]
    return shard * self.held + column, column >= block * self.size


def _word_blocks(vocabulary: int, at_most: int) -> _WordBlocks:
  shards = current_shards("vocab")
  shards = shards if vocabulary % shards == 0 else 1
  held = vocabulary // shards
  count = math.ceil(held / at_most)
  return _WordBlocks(shards, held, math.ceil(held / count), count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blockwise_scores(
  hidden: Float[Array, "R S N C D"],
  unembedding: Float[Array, "D V"],
  targets: Int[Array, "R S N C"],
  trips: Int[Array, ""],
  words: _WordBlocks,
  softcap: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  return _forward(hidden, unembedding, targets, trips, words, softcap)[0]


def _forward(hidden, unembedding, targets, trips, words, softcap):
  table = unembedding.reshape(-1, words.shards, words.held)

  def score_words(j, running):
    columns, (word, fresh) = words.take(table, j, hidden.dtype), words.words(j)

    def score_tokens(i, running):
      top, total, at_target, everything = (_block(each, i) for each in running)
      logits = _logits(_block(hidden, i), columns, softcap)
      seen = jnp.where(fresh, logits, -jnp.inf)
      new_top = jnp.maximum(top, jnp.max(seen, axis=(-2, -1)))
      total = total * jnp.exp(top - new_top)
      total = total + jnp.sum(jnp.exp(seen - new_top[..., None, None]), axis=(-2, -1))
      hit = (_block(targets, i)[..., None, None] == word) & fresh
      at_target = at_target + jnp.sum(jnp.where(hit, logits, 0.0), axis=(-2, -1))
      everything = everything + jnp.sum(jnp.where(fresh, logits, 0.0), axis=(-2, -1))
      new = (new_top, total, at_target, everything)
      return tuple(_with_block(old, fresh, i) for old, fresh in zip(running, new, strict=True))

    return jax.lax.fori_loop(0, trips, score_tokens, running)

  zero = _constrain(jnp.zeros(targets.shape, jnp.float32), "batch", "length")
  top, total, at_target, everything = _each(
    words.blocks, score_words, (zero - jnp.inf, zero, zero, zero)
  )
  reached = (jnp.arange(targets.shape[2], dtype=jnp.int32) < trips)[None, None, :, None]
  top, total = jnp.where(reached, top, 0.0), jnp.where(reached, total, 1.0)
  log_z = top + jnp.log(total)
  mean = everything / np.float32(words.shards * words.held)
  scores = tuple(
    jnp.where(reached, each, 0.0) for each in (at_target - log_z, log_z, mean - log_z, top - log_z)
  )
  return scores, (hidden, unembedding, targets, trips, scores[1])


def _forward_of_some(hidden, unembedding, targets, trips, words, softcap):
  """As `_forward`, of arguments that know whether their gradient is asked for."""
  values = (hidden.value, unembedding.value, targets.value, trips.value)
  scores, residuals = _forward(*values, words, softcap)
  # Part of the tree's structure, and so known when `_backward` is traced.
  return scores, (*residuals, () if unembedding.perturbed else None)


def _backward(words, softcap, residuals, cotangents):
  """Pulls the scores' cotangents back through the softmax p of each token's logits.

  d logprob = [word is target] - p, d log_normaliser = p, d mean_logprob = 1/V - p; a cap on the logits
  z adds the factor 1 - (z / cap)^2. The gradient of
  a frozen table is not made: no compiler would find out that a loop carries it for nobody.
  """
  hidden, unembedding, targets, trips, log_z, asked = residuals
  cotangents = [
    jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g for g in cotangents
  ]
  table = unembedding.reshape(-1, words.shards, words.held)

  def pull_words(j, carry):
    d_hidden, d_table = carry
    columns, (word, fresh) = words.take(table, j, hidden.dtype), words.words(j)

    def pull_tokens(i, carry):
      d_hidden, d_columns = carry
      x, target = _block(hidden, i), _block(targets, i)[..., None, None]
      to_target, to_z, to_mean = (_block(g, i)[..., None, None] for g in cotangents[:3])
      logits = _logits(x, columns, softcap)
      chance = jnp.exp(logits - _block(log_z, i)[..., None, None])
      pull = chance * (to_z - to_target - to_mean) + to_mean / np.float32(words.shards * words.held)
      pull = pull + jnp.where(target == word, to_target, 0.0)
      if softcap is not None:
        pull = pull * (1 - jnp.square(logits / np.float32(softcap)))
      pull = jnp.where(fresh, pull, 0.0).astype(x.dtype)
      d_x = jnp.einsum("rscvw,dvw->rscd", pull, columns, preferred_element_type=jnp.float32)
      d_hidden = _with_block(d_hidden, _block(d_hidden, i) + d_x, i)
      if d_columns is None:
        return d_hidden, None
      new = jnp.einsum("rscd,rscvw->rsdvw", x, pull, preferred_element_type=jnp.float32)
      return d_hidden, _constrain(d_columns + new, "batch", "length", None, "vocab")

    nothing = None
    if d_table is not None:
      # Each device sums over its own tokens, and all together once a block of words.
      nothing = jnp.zeros((*hidden.shape[:2], *columns.shape), jnp.float32)
      nothing = _constrain(nothing, "batch", "length", None, "vocab")
    d_hidden, d_columns = jax.lax.fori_loop(0, trips, pull_tokens, (d_hidden, nothing))
    if d_columns is None:
      return d_hidden, None
    old = jax.lax.dynamic_slice_in_dim(d_table, words.start(j), words.size, axis=2)
    new = _constrain(old + jnp.sum(d_columns, axis=(0, 1)), "embed", "vocab")
    return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_table, new, words.start(j), axis=2)

  start = (
    _constrain(jnp.zeros(hidden.shape, jnp.float32), "batch", "length"),
    None if asked is None else _constrain(jnp.zeros(table.shape, jnp.float32), "embed", "vocab"),
  )
  d_hidden, d_table = _each(words.blocks, pull_words, start)
  if d_table is not None:
    d_table = d_table.reshape(unembedding.shape).astype(unembedding.dtype)
  return d_hidden.astype(hidden.dtype), d_table, None, None


_blockwise_scores.defvjp(_forward_of_some, _backward, symbolic_zeros=True)


@jax.custom_vjp
def _permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
  """x[..., order, :] along the token axis. Its gradient is a gather too, not a scatter."""
  index = order.reshape(order.shape + (1,) * (x.ndim - order.ndim))
  return jnp.take_along_axis(x, index, axis=order.ndim - 1)


def _permute_forward(x, order, inverse):
  return _permute(x, order, inverse), (order, inverse)


def _permute_backward(residuals, cotangent):
  order, inverse = residuals
  return _permute(cotangent, inverse, order), None, None


_permute.defvjp(_permute_forward, _permute_backward)


def _unsorted(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
  """[R, S, blocks, block] -> [R, S, N] in the tokens' own order."""
  return _permute(x.reshape(*x.shape[:2], -1), inverse, order)


def _logits(x: jax.Array, columns: jax.Array, softcap: float | None) -> Float[Array, "R S C V W"]:
  logits = jnp.einsum("rscd,dvw->rscvw", x, columns, preferred_element_type=jnp.float32)
  if softcap is None:
    return logits
  return jnp.tanh(logits / np.float32(softcap)) * np.float32(softcap)


def _block(x: jax.Array, i: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(x, i, axis=2, keepdims=False)


def _with_block(x: jax.Array, fresh: jax.Array, i: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(x, fresh, i, axis=2)


def _each(count: int, body, start):
  # A single block needs no loop, and the compiler fuses better without one.
  return body(jnp.int32(0), start) if count == 1 else jax.lax.fori_loop(0, count, body, start)


def _constrain(x: jax.Array, *names: str | None) -> jax.Array:
  return nn.with_logical_constraint(x, names + (None,) * (x.ndim - len(names)))
