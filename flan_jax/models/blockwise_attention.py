"""Attention between a block of queries and a block of keys; and, for CPUs, the loop over all such pairs.

The loop makes the scores of one pair at a time, which fit in a cache as those of a batch do not, and passes over
pairs that see nothing of each other: of rows that hold many examples, most (arXiv 2205.14135, algorithms 1 and 4).
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

HIDDEN = -1e30
"""A score that is never seen. Finite, so that a row which may see nothing averages values instead of turning into
NaN."""

_LOWEST = float(np.finfo(np.float32).min)
_TILE = 128
_WHOLE = 256  # Tokens that are not cut.

# With G = N / K query heads to a key head.
Rows = Float[Array, "B K T G H"]
Keys = Float[Array, "B K S H"]
Scores = Float[Array, "B K T G S"]
OfRows = Float[Array, "B K T G 1"]
Added = tuple[Float[Array, "#B #K #T #G #S"], ...]


class Rules(NamedTuple):
  """What is no array."""

  softcap: float | None
  dropout_rate: float


class Block(NamedTuple):
  """Queries, already scaled, the keys that they are compared with, and what is added to the scores."""

  query: Rows
  key: Keys
  value: Keys
  added: Added


class Masks(NamedTuple):
  """True where a query sees a key, and where dropout leaves a weight; None: everywhere."""

  seen: Bool[Array, "#B 1 #T 1 S"] | None
  kept: Bool[Array, "B K T G S"] | None


class Softmax(NamedTuple):
  """Of each row the highest score, and the sum of exp(score - highest)."""

  highest: OfRows
  total: OfRows


def attend(rules: Rules, block: Block, masks: Masks) -> tuple[Rows, Softmax]:
  """softmax(q k^T + added) v of a block, in float32."""
  products = _compared(block.query, block.key)
  scores = _scores(rules, masks.seen, products, block.added)
  highest = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - highest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  summed = _summed(_dropped(rules, masks.kept, weights), block.value)
  return summed / total, Softmax(highest, total)


def gradients(
  rules: Rules, block: Block, masks: Masks, softmax: Softmax, gradient: Rows, mean: OfRows
) -> Block:
  """Of what a block has a part in: its weights are made again from each row's softmax.

  Args:
    gradient: of what the rows gave.
    mean: of each row, the gradient of its weights, averaged with them.

  Returns:
    In float32; of what is added for every row alike.
  """
  products, rows = _compared(block.query, block.key), len(block.query)
  added = tuple(jnp.broadcast_to(x.astype(jnp.float32), (rows, *x.shape[1:])) for x in block.added)
  scores, unfinish = jax.vjp(partial(_scores, rules, masks.seen), products, added)
  weights = jnp.exp(scores - softmax.highest) / softmax.total
  drop = partial(_dropped, rules, masks.kept)
  of_weights = drop(_compared(gradient, block.value))
  of_products, of_added = unfinish(weights * (of_weights - mean))
  return Block(
    _summed(of_products, block.key),
    _gathered(of_products, block.query),
    _gathered(drop(weights), gradient),
    of_added,
  )


def tile(tokens: int) -> int:
  """Queries, or keys, of a row that the loops take at a time."""
  return tokens if tokens <= _WHOLE else _TILE


def attend_in_loop(rules: Rules, block: Block, masks: Masks) -> tuple[Rows, Softmax]:
  """As `attend`, of tokens that are whole tiles. A query that sees nothing averages the values of some keys, and the
  zeros that fill a tile."""
  tiles = _Tiles(block, masks)

  def of_queries(n: Int[Array, ""], found: tuple[Rows, Softmax]) -> tuple[Rows, Softmax]:
    row, i = tiles.place(n)
    query = _take(block.query, row, {2: (i, tiles.queries)})

    def of_keys(j: Int[Array, ""], state: tuple[Rows, Softmax]) -> tuple[Rows, Softmax]:
      summed, softmax = state
      pair, seen = tiles.pair(query, row, i, j)
      scores = _scores(rules, seen.seen, _compared(pair.query, pair.key), pair.added)
      highest = jnp.maximum(softmax.highest, jnp.max(scores, axis=-1, keepdims=True))
      weights, shrunk = jnp.exp(scores - highest), jnp.exp(softmax.highest - highest)
      total = softmax.total * shrunk + jnp.sum(weights, axis=-1, keepdims=True)
      summed = summed * shrunk + _summed(_dropped(rules, seen.kept, weights), pair.value)
      return summed, Softmax(highest, total)

    nothing = jnp.zeros((*query.shape[:-1], 1), jnp.float32)
    begin = (jnp.zeros(query.shape, jnp.float32), Softmax(nothing + _LOWEST, nothing))
    summed, softmax = jax.lax.fori_loop(*tiles.keys_of(row, i), of_keys, begin)
    fresh = (summed / softmax.total, softmax)
    return jax.tree.map(lambda x, y: _put(x, y, row, {2: (i, tiles.queries)}), found, fresh)

  stat = jnp.zeros((*block.query.shape[:-1], 1), jnp.float32)
  begin = (jnp.zeros(block.query.shape, jnp.float32), Softmax(stat, stat))
  return jax.lax.fori_loop(0, tiles.count, of_queries, begin)


def gradients_in_loop(
  rules: Rules, block: Block, masks: Masks, softmax: Softmax, gradient: Rows, mean: OfRows
) -> Block:
  """As `gradients`, of tokens that are whole tiles."""
  tiles = _Tiles(block, masks)

  def of_queries(n: Int[Array, ""], found: Block) -> Block:
    row, i = tiles.place(n)
    rows = {2: (i, tiles.queries)}
    query, *given = (_take(x, row, rows) for x in (block.query, *softmax, gradient, mean))

    def of_keys(j: Int[Array, ""], state: tuple[Rows, Keys, Keys, Added]):
      of_query, of_key, of_value, of_added = state
      pair, seen = tiles.pair(query, row, i, j)
      new = gradients(rules, pair, seen, Softmax(*given[:2]), *given[2:])
      keys, pairs = {2: (j, tiles.keys)}, {**rows, 4: (j, tiles.keys)}
      return (
        of_query + new.query,
        _add(of_key, new.key, row, keys),
        _add(of_value, new.value, row, keys),
        tuple(_add(x, y, row, pairs) for x, y in zip(of_added, new.added, strict=True)),
      )

    begin = (jnp.zeros(query.shape, jnp.float32), *found[1:])
    of_query, *others = jax.lax.fori_loop(*tiles.keys_of(row, i), of_keys, begin)
    return Block(_put(found.query, of_query, row, rows), *others)

  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), block)
  return jax.lax.fori_loop(0, tiles.count, of_queries, nothing)


class _Tiles:
  """How a block is cut, and which tiles of keys the queries of a tile may see."""

  def __init__(self, block: Block, masks: Masks):
    self._block, self._masks = block, masks
    rows, length, source = len(block.query), block.query.shape[2], block.key.shape[2]
    self.queries, self.keys = tile(length), tile(source)
    self._cuts, pieces = length // self.queries, source // self.keys
    self.count = rows * self._cuts
    first, last = jnp.int32(0), jnp.int32(pieces)
    if masks.seen is not None:
      seen = masks.seen[:, 0, :, 0]
      seen = seen.reshape(len(seen), -1, min(seen.shape[1], self.queries), pieces, self.keys)
      found = jnp.any(seen, axis=(2, 4))
      some = jnp.any(found, axis=-1)
      first = jnp.where(some, jnp.argmax(found, axis=-1), first)
      last = jnp.where(some, pieces - jnp.argmax(found[..., ::-1], axis=-1), last)
    self._first, self._last = (
      jnp.broadcast_to(x.astype(jnp.int32), (rows, self._cuts)) for x in (first, last)
    )

  def place(self, n: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Row, and tile of queries."""
    return n // self._cuts, n % self._cuts

  def keys_of(self, row: Int[Array, ""], i: Int[Array, ""]) -> tuple[jax.Array, jax.Array]:
    """The first tile of keys, and the one behind the last."""
    return self._first[row, i], self._last[row, i]

  def pair(
    self, query: Rows, row: Int[Array, ""], i: Int[Array, ""], j: Int[Array, ""]
  ) -> tuple[Block, Masks]:
    keys = {2: (j, self.keys)}
    pairs = {2: (i, self.queries), 4: (j, self.keys)}
    key, value = (_take(x, row, keys) for x in (self._block.key, self._block.value))
    added = tuple(_take(x, row, pairs) for x in self._block.added)
    return Block(query, key, value, added), jax.tree.map(
      lambda x: _take(x, row, pairs), self._masks
    )


Tiles = Mapping[int, tuple[Int[Array, ""], int]]
"""By axis: which tile, and its size."""


def _take(x: jax.Array, row: Int[Array, ""], tiles: Tiles) -> jax.Array:
  starts, sizes = _where(x, row, tiles)
  return jax.lax.dynamic_slice(x, starts, sizes)


def _put(x: jax.Array, fresh: jax.Array, row: Int[Array, ""], tiles: Tiles) -> jax.Array:
  return jax.lax.dynamic_update_slice(x, fresh, _where(x, row, tiles)[0])


def _add(x: jax.Array, fresh: jax.Array, row: Int[Array, ""], tiles: Tiles) -> jax.Array:
  return _put(x, _take(x, row, tiles) + fresh, row, tiles)


def _where(
  x: jax.Array, row: Int[Array, ""], tiles: Tiles
) -> tuple[list[jax.Array | int], list[int]]:
  """Begin and size of a tile along each axis; an axis of 1 is shared."""
  starts: list[jax.Array | int] = [0] * x.ndim
  sizes = list(x.shape)
  for axis, (index, size) in {0: (row, 1), **tiles}.items():
    if x.shape[axis] > 1:
      starts[axis], sizes[axis] = index * size, size
  return starts, sizes


def _scores(rules: Rules, seen: Bool[Array, "..."] | None, products: Scores, added: Added):
  if rules.softcap is not None:
    products = jnp.tanh(products / rules.softcap) * rules.softcap
  for each in added:
    products = products + each.astype(jnp.float32)
  return products if seen is None else jnp.where(seen, products, jnp.float32(HIDDEN))


def _dropped(rules: Rules, kept: Bool[Array, "B K T G S"] | None, weights: Scores) -> Scores:
  return weights if kept is None else jnp.where(kept, weights / (1.0 - rules.dropout_rate), 0.0)


def _compared(rows: Rows, keys: Keys) -> Scores:
  flat = rows.reshape(*rows.shape[:2], -1, rows.shape[-1])
  products = jnp.einsum("bkrh,bksh->bkrs", flat, keys, preferred_element_type=jnp.float32)
  return products.reshape(*rows.shape[:-1], -1)


def _summed(weights: Scores, values: Keys) -> Rows:
  flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(values.dtype)
  sums = jnp.einsum("bkrs,bksh->bkrh", flat, values, preferred_element_type=jnp.float32)
  return sums.reshape(*weights.shape[:-1], -1)


def _gathered(weights: Scores, rows: Rows) -> Keys:
  """The transpose of `_summed`: of every key, the sum over all rows that it has weight in."""
  flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(rows.dtype)
  rows = rows.reshape(*rows.shape[:2], -1, rows.shape[-1])
  return jnp.einsum("bkrs,bkrh->bksh", flat, rows, preferred_element_type=jnp.float32)
