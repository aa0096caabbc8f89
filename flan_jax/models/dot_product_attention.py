"""Attention that keeps no array of scores for the backward pass, and passes over keys that no query of a block sees."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flan_jax.models.blockwise_attention import (
  Added,
  Block,
  Masks,
  Rows,
  Rules,
  attend,
  attend_in_loop,
  gradients,
  gradients_in_loop,
  tile,
)
from flan_jax.models.layers import mesh_axes, padded, platform

ATTENDED = "attended"
"""The name of what a remat policy keeps so that no attention is computed again."""

_SMALLEST_BLOCK = 64  # Queries.
_MOST_BLOCKS = 8
_LOOP_FROM = 256  # Queries, and keys.


class LowerTriangular(NamedTuple):
  """A mask of which is known, without a look at it, that it hides from a query all keys behind its own place."""

  seen: Bool[Array, "#B T T"]


# True where a query sees a key, or a number added to the score. Batch 1: all rows alike.
Mask = Bool[Array, "#B #T S"] | Float[Array, "#B #T S"]


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
  with the keys before its end alone. On one device that is a CPU long rows go through `attend_in_loop`,
  which has first derivatives only.

  Args:
    mask: [B, T, S], batch 1 for all rows alike; boolean (True: seen) or float (added).
    bias: [B, N, T, S], batch 1 for all rows alike.
    kept: the attention weights that dropout at `dropout_rate` leaves; None: all.
    softcap: scores become cap * tanh(score / cap) before bias and mask.
  """
  length, heads = query.shape[1:3]
  source, kv_heads = key.shape[1:3]
  added: Added = ()
  if bias is not None:
    bias = bias.reshape(bias.shape[0], kv_heads, heads // kv_heads, length, source)
    added = (jnp.swapaxes(bias, 2, 3),)
  seen = None
  if isinstance(mask, LowerTriangular):
    seen = mask.seen[:, None, :, None]
  elif mask.dtype == jnp.bool_:
    seen = mask[:, None, :, None]
  else:
    added = (*added, mask[:, None, :, None])
  looped = min(length, source) >= _LOOP_FROM and _on_one_cpu(query)
  more = {2: -length % tile(length), 4: -source % tile(source)} if looped else {}
  if any(more.values()):
    seen = jnp.ones((1, 1, 1, 1, source), jnp.bool_) if seen is None else seen
    query = padded(query, 1, more[2])
    key, value = (padded(x, 1, more[4]) for x in (key, value))
    added, seen, kept = jax.tree.map(partial(_padded_pairs, more), (added, seen, kept))
  if isinstance(mask, LowerTriangular) and not looped:
    places = _triangle(length)
  else:
    places = (_Place(slice(0, query.shape[1]), slice(0, key.shape[1])),)
  how = _How(Rules(softcap, dropout_rate), scale, places, looped)
  return _attend(how, query, key, value, added, Masks(seen, kept))[:, :length]


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

  def rows_of(self, x: jax.Array) -> jax.Array:
    return x[:, :, self.rows]

  def keys_of(self, x: jax.Array) -> jax.Array:
    return x[:, :, self.keys]

  def pairs_of(self, x: jax.Array) -> jax.Array:
    return x[:, :, self.rows, :, self.keys]


def _triangle(length: int) -> tuple[_Place, ...]:
  if mesh_axes("length", jax.sharding.get_abstract_mesh(), length):
    return (_Place(slice(0, length), slice(0, length)),)  # Devices have a block each.
  size = max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))
  ends = [*range(size, length, size), length]
  starts = [0, *ends[:-1]]
  return tuple(
    _Place(slice(start, end), slice(0, end)) for start, end in zip(starts, ends, strict=True)
  )


def _on_one_cpu(x: jax.Array) -> bool:
  meshes = jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh
  return platform() == "cpu" and all(mesh.size <= 1 for mesh in meshes)


def _padded_pairs(more: dict[int, int], x: jax.Array) -> jax.Array:
  for axis, by in more.items():
    x = padded(x, axis, by) if x.shape[axis] > 1 else x
  return x


class _How(NamedTuple):
  """What is no array.

  Attributes:
    places: of the blocks; of one, where it goes through the loop.
  """

  rules: Rules
  scale: float
  places: tuple[_Place, ...]
  looped: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: _How, query, key, value, added, masks) -> Float[Array, "B T F"]:
  return _forward(how, query, key, value, added, masks)[0]


def _forward(how: _How, query, key, value, added, masks):
  run = attend_in_loop if how.looped else attend
  blocks = _cut(how, query, key, value, added)
  found = [
    run(how.rules, block, jax.tree.map(place.pairs_of, masks))
    for place, block in zip(how.places, blocks, strict=True)
  ]
  out, softmax = jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *found)
  out = jnp.swapaxes(out, 1, 2).reshape(*query.shape[:2], -1).astype(value.dtype)
  out, softmax = jax.tree.map(lambda x: checkpoint_name(x, ATTENDED), (out, softmax))
  return out, (query, key, value, added, masks, out, softmax)


def _backward(how: _How, saved, gradient: Float[Array, "B T F"]):
  query, key, value, added, masks, out, softmax = saved
  run = gradients_in_loop if how.looped else gradients
  blocks, join = jax.vjp(partial(_cut, how), query, key, value, added)
  out, gradient = (_grouped(x.reshape(query.shape), key.shape[2]) for x in (out, gradient))
  # Of a row: the gradient of its weights, averaged with them.
  mean = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1, keepdims=True)
  found = []
  for place, block in zip(how.places, blocks, strict=True):
    given = jax.tree.map(place.rows_of, (softmax, gradient, mean))
    of = run(how.rules, block, jax.tree.map(place.pairs_of, masks), *given)
    added = tuple(map(_summed_like, of.added, block.added))
    found.append(jax.tree.map(lambda x, y: x.astype(y.dtype), of._replace(added=added), block))
  return *join(found), None


_attend.defvjp(_forward, _backward)


def _cut(how: _How, query, key, value, added: Added) -> list[Block]:
  # Heads first, and a group's queries as more rows of one product: on CPU the other orders cost transposes of
  # the scores, the largest array here. A token's queries stand together, so that a mesh that cuts the tokens
  # cuts these rows.
  rows = _grouped(query * how.scale, key.shape[2])
  key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
  return [
    Block(
      place.rows_of(rows),
      place.keys_of(key),
      place.keys_of(value),
      jax.tree.map(place.pairs_of, added),
    )
    for place in how.places
  ]


def _grouped(x: Float[Array, "B T N H"], kv_heads: int) -> Rows:
  return jnp.swapaxes(x.reshape(*x.shape[:2], kv_heads, -1, x.shape[-1]), 1, 2)


def _summed_like(gradient: Float[Array, "B ..."], added: Float[Array, "#B ..."]) -> jax.Array:
  """Over the rows, where all have the same.

  On CPU as a product with ones: XLA takes 40 times as long there for a sum over the first axis.
  """

  def product(x: jax.Array) -> jax.Array:
    return jnp.einsum("ob,b...->o...", jnp.ones((1, len(x))), x)

  if len(added) == len(gradient):
    return gradient
  plain = partial(jnp.sum, axis=0, keepdims=True)
  return jax.lax.platform_dependent(gradient, cpu=product, default=plain)
