"""Attention that keeps no array of scores for the backward pass, and passes over keys that no query of a block sees."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flan_jax.models.layers import mesh_axes

ATTENDED = "attended"
"""The name of what a remat policy keeps so that no attention is computed again."""

HIDDEN = -1e30
"""A score that is never seen. Finite, so that a row which may see nothing averages its values instead of turning
into NaN."""

_SMALLEST_BLOCK = 64  # Queries.
_MOST_BLOCKS = 8


class LowerTriangular(NamedTuple):
  """A mask of which is known, without a look at it, that it hides from a query all keys behind its own place."""

  seen: Bool[Array, "#B T T"]


# True where a query sees a key, or a number added to the score. Batch 1: all rows alike.
Mask = Bool[Array, "#B #T S"] | Float[Array, "#B #T S"]

# With G = N / K query heads to a key head.
Rows = Float[Array, "B K T G H"]
Keys = Float[Array, "B K S H"]
Scores = Float[Array, "B K T G S"]
Added = tuple[Float[Array, "#B #K #T #G S"], ...]


def dot_product_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K H"],
  mask: Mask | LowerTriangular,
  bias: Float[Array, "#B N T S"] | None = None,
  scale: float = 1.0,
  kept: Bool[Array, "B K T G S"] | None = None,
  dropout_rate: float = 0.0,
  softcap: float | None = None,
) -> Float[Array, "B T N*H"]:
  """softmax(scale * q k^T + bias) v with float32 scores, heads joined; G = N / K query heads share a key head.

  The backward pass makes the scores again, and the weights of them with each row's maximum and sum, which are
  all that is kept (arXiv 2205.14135, appendix B.2). Under a `LowerTriangular` mask queries go in blocks, each
  with the keys before its end alone.

  Args:
    mask: [B, T, S], batch 1 for all rows alike; boolean (True: seen) or float (added).
    bias: [B, N, T, S], batch 1 for all rows alike.
    kept: the attention weights that dropout at `dropout_rate` leaves; None: all.
    softcap: scores become cap * tanh(score / cap) before bias and mask.
  """
  length, heads = query.shape[1:3]
  source, kv_heads = key.shape[1:3]
  blocks: tuple[_Place, ...] = (_Place(slice(0, length), slice(0, source)),)
  added: Added = ()
  if bias is not None:
    bias = bias.reshape(bias.shape[0], kv_heads, heads // kv_heads, length, source)
    added = (jnp.swapaxes(bias, 2, 3),)
  seen = None
  if isinstance(mask, LowerTriangular):
    blocks, seen = _triangle(length), mask.seen[:, None, :, None]
  elif mask.dtype == jnp.bool_:
    seen = mask[:, None, :, None]
  else:
    added = (*added, mask[:, None, :, None])
  return _attend(_Rules(blocks, scale, softcap, dropout_rate), query, key, value, added, seen, kept)


def causal_blocks(length: int) -> int:
  """Of queries, under a `LowerTriangular` mask over so many tokens of one device."""
  return len(_triangle(length))


def causal_pairs(length: int) -> int:
  """Pairs of query and key that are compared under a `LowerTriangular` mask over so many tokens."""
  return sum((place.rows.stop - place.rows.start) * place.keys.stop for place in _triangle(length))


class _Place(NamedTuple):
  """Of a block: its queries, and the keys that they are compared with."""

  rows: slice
  keys: slice

  def of(self, x: jax.Array) -> jax.Array:
    return x[:, :, self.rows, :, self.keys]


class _Rules(NamedTuple):
  """What is no array."""

  blocks: tuple[_Place, ...]
  scale: float
  softcap: float | None
  dropout_rate: float


class _Block(NamedTuple):
  query: Rows
  key: Keys
  value: Keys
  added: Added


def _triangle(length: int) -> tuple[_Place, ...]:
  if mesh_axes("length", jax.sharding.get_abstract_mesh(), length):
    return (_Place(slice(0, length), slice(0, length)),)  # Devices have a block each.
  size = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
  ends = [*range(size, length, size), length]
  starts = [0, *ends[:-1]]
  return tuple(
    _Place(slice(start, end), slice(0, end)) for start, end in zip(starts, ends, strict=True)
  )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rules: _Rules, query, key, value, added, seen, kept) -> Float[Array, "B T F"]:
  return _forward(rules, query, key, value, added, seen, kept)[0]


def _forward(rules: _Rules, query, key, value, added, seen, kept):
  found = []
  for place, block in zip(rules.blocks, _cut(rules, query, key, value, added), strict=True):
    products = _compared(block.query, block.key)
    scores = _scores(rules, None if seen is None else place.of(seen), products, block.added)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = _dropped(rules, None if kept is None else place.of(kept), weights)
    found.append((_summed(weights, block.value) / total, highest, total))
  out, highest, total = (jnp.concatenate(each, axis=2) for each in zip(*found, strict=True))
  out = jnp.swapaxes(out, 1, 2).reshape(*query.shape[:2], -1).astype(value.dtype)
  out, highest, total = (checkpoint_name(x, ATTENDED) for x in (out, highest, total))
  return out, (query, key, value, added, seen, kept, out, highest, total)


def _backward(rules: _Rules, saved, gradient: Float[Array, "B T F"]):
  query, key, value, added, seen, kept, out, highest, total = saved
  blocks, join = jax.vjp(partial(_cut, rules), query, key, value, added)
  out, gradient = (_grouped(x.reshape(query.shape), key.shape[2]) for x in (out, gradient))
  # Of a row: the gradient of its weights, averaged with them.
  mean = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1, keepdims=True)
  found = []
  for place, block in zip(rules.blocks, blocks, strict=True):
    products = _compared(block.query, block.key)
    finish = partial(_scores, rules, None if seen is None else place.of(seen))
    scores, unfinish = jax.vjp(finish, products, _of_every_row(block.added, len(query)))
    rows = (slice(None), slice(None), place.rows)
    weights = jnp.exp(scores - highest[rows]) / total[rows]
    drop = partial(_dropped, rules, None if kept is None else place.of(kept))
    of_weights = drop(_compared(gradient[rows], block.value))
    of_products, of_added = unfinish(weights * (of_weights - mean[rows]))
    found.append(
      _Block(
        _summed(of_products, block.key).astype(query.dtype),
        _gathered(of_products, block.query).astype(key.dtype),
        _gathered(drop(weights), gradient[rows]).astype(value.dtype),
        tuple(map(_summed_like, of_added, block.added)),
      )
    )
  return *join(found), None, None


_attend.defvjp(_forward, _backward)


def _cut(rules: _Rules, query, key, value, added: Added) -> list[_Block]:
  # Heads first, and a group's queries as more rows of one product: on CPU the other orders cost transposes of
  # the scores, the largest array here. A token's queries stand together, so that a mesh that cuts the tokens
  # cuts these rows.
  rows = _grouped(query * rules.scale, key.shape[2])
  key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
  return [
    _Block(
      rows[:, :, place.rows],
      key[:, :, place.keys],
      value[:, :, place.keys],
      tuple(place.of(each) for each in added),
    )
    for place in rules.blocks
  ]


def _grouped(x: Float[Array, "B T N H"], kv_heads: int) -> Rows:
  return jnp.swapaxes(x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]), 1, 2)


def _scores(rules: _Rules, seen: Bool[Array, "..."] | None, products: Scores, added: Added):
  if rules.softcap is not None:
    products = jnp.tanh(products / rules.softcap) * rules.softcap
  for each in added:
    products = products + each.astype(jnp.float32)
  return products if seen is None else jnp.where(seen, products, jnp.float32(HIDDEN))


def _dropped(rules: _Rules, kept: Bool[Array, "B K T G S"] | None, weights: Scores) -> Scores:
  return weights if kept is None else jnp.where(kept, weights / (1.0 - rules.dropout_rate), 0.0)


def _of_every_row(added: Added, rows: int) -> Added:
  return tuple(jnp.broadcast_to(x.astype(jnp.float32), (rows, *x.shape[1:])) for x in added)


def _summed_like(gradient: Float[Array, "B ..."], added: Float[Array, "#B ..."]) -> jax.Array:
  """Over the rows, where all have the same.

  On CPU as a product with ones: XLA takes 40 times as long there for a sum over the first axis.
  """

  def product(x: jax.Array) -> jax.Array:
    return jnp.einsum("ob,b...->o...", jnp.ones((1, len(x))), x)

  if len(added) < len(gradient):
    plain = partial(jnp.sum, axis=0, keepdims=True)
    gradient = jax.lax.platform_dependent(gradient, cpu=product, default=plain)
  return gradient.astype(added.dtype)


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
