"""The tables of a model made longer, each new row begun as is said, or cut to the rows that have tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flan_jax.errors import VocabularyError
from flan_jax.models.language_model import Params

InitialRow = Literal["mean", "normal"] | Sequence[int]
"""How the row of a new token begins: as the mean of all rows; drawn from a normal distribution with the
mean and standard deviation that they have in each dimension; as the mean of the rows of these ids."""


def grow_embeddings(
  params: Params,
  size: int,
  rows: Mapping[int, InitialRow],
  *,
  known: int | None = None,
  key: jax.Array | None = None,
) -> dict[str, Any]:
  """The parameters with so many rows in the embedding, and in the unembedding where it is its own.

  The mean is where transformers' `resize_token_embeddings` begins, and what Hewitt (2021,
  https://nlp.stanford.edu/~johnhew/vocab-expansion.html) argues for: a new token is then no likelier than an
  average one. To be traced under `jax.jit`, arrays on a mesh included.

  Args:
    params: of a `LanguageModel`: "embed" and, where logits are untied, "unembed"; others stay as they are.
    size: rows afterwards; fewer than now where the last ones belong to no token.
    rows: id of each new token -> how its row begins. Rows beyond the table that it does not name (a table
      may be padded) take the mean.
    known: the first so many rows belong to tokens, and means are over them; None: all that are there.
    key: for "normal" rows.

  Raises:
    VocabularyError: the table would lose rows of tokens, or a row of `rows` is none of it.
  """
  table = params["embed"]["embedding"]
  known = table.shape[0] if known is None else known
  if size < known:
    raise VocabularyError(
      f"a table whose first {known:,} rows belong to tokens cannot be cut to {size:,}."
    )
  if outside := [row for row in rows if not 0 <= row < size]:
    raise VocabularyError(f"the rows {outside} are not in a table of {size:,}.")
  keys = (None, None) if key is None else jax.random.split(key)
  grown = {"embed": {"embedding": _grown(table, size, rows, known, keys[0])}}
  if "unembed" in params:
    unembed = params["unembed"]
    kernel = _grown(unembed["kernel"].T, size, rows, known, keys[1]).T
    grown["unembed"] = {"kernel": kernel}
    if "bias" in unembed:
      grown["unembed"]["bias"] = _grown(unembed["bias"][:, None], size, rows, known, keys[1])[:, 0]
  return {**params, **grown}


def _grown(
  table: Float[Array, "V D"],
  size: int,
  rows: Mapping[int, InitialRow],
  known: int,
  key: jax.Array | None,
) -> Float[Array, "size D"]:
  exact = jnp.asarray(table[:known], jnp.float32)
  mean = exact.mean(axis=0)
  grown = jnp.broadcast_to(mean.astype(table.dtype), (size, table.shape[1]))
  kept = min(size, table.shape[0])
  grown = grown.at[:kept].set(table[:kept])
  if not rows:
    return grown
  begin = _beginnings(exact, mean, key)
  new = jnp.stack([begin(row, initial) for row, initial in rows.items()])
  return grown.at[jnp.array(list(rows))].set(new.astype(table.dtype))


def _beginnings(
  table: Float[Array, "known D"], mean: Float[Array, "D"], key: jax.Array | None
) -> Callable[[int, InitialRow], Float[Array, "D"]]:
  def begin(row: int, initial: InitialRow) -> Float[Array, "D"]:
    if initial == "mean":
      return mean
    if initial == "normal":
      if key is None:
        raise ValueError("normal rows need a key")
      drawn = jax.random.normal(jax.random.fold_in(key, row), mean.shape)
      return mean + table.std(axis=0) * drawn
    return table[jnp.array(initial)].mean(axis=0)

  return begin
