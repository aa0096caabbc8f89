"""Models with other rows of embeddings than they came with: for new tokens, for a mesh, or for nobody's rows."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax

from flan_jax.errors import ConfigError
from flan_jax.jobs.models import ModelSource
from flan_jax.models import InitialRow, build_model, grow_embeddings
from flan_jax.training.partitioning import Layout, param_shardings

PyTree = Any

_TABLE_UNIT = 128


def grown(
  model: ModelSource,
  tokens: Mapping[str, str | None],
  initial: Literal["mean", "normal"] = "mean",
) -> ModelSource:
  """A model with new control tokens after the last one of its vocabulary.

  A published table with spare rows keeps its length where they suffice. One that has to grow stays a
  multiple of what it was a multiple of, up to 128, so that it is cut over a mesh as before.

  Args:
    tokens: each new token -> words whose rows its own begins as the mean of, such as
      {"<care>": "care kindness"}; None: as `initial` says.
    initial: "mean" of all rows, or "normal": drawn with their mean and spread.

  Raises:
    VocabularyError: the vocabulary has a token already, or it is none.
  """
  if model.lora is not None:
    raise ConfigError(
      "grown.model has adapters, and new rows would not be trained: train it whole."
    )
  if not tokens:
    raise ConfigError("grown.tokens names no token; write grown.tokens={'<name>': None}.")
  vocabulary, known = model.vocabulary.grown(tuple(tokens)), model.vocabulary.size
  rows: dict[int, InitialRow] = {}
  for row, (token, words) in enumerate(tokens.items(), start=known):
    rows[row] = initial if words is None else model.vocabulary.encode(words)
    if not rows[row]:
      raise ConfigError(f"grown.tokens gives {token!r} no words: write some, or None.")
  before = model.model.config.vocab_size
  unit = math.gcd(before, _TABLE_UNIT)
  size = max(before, -(-vocabulary.size // unit) * unit)
  return dataclasses.replace(
    _with_rows(model, size, rows),
    origin=f"{model.origin}, with {len(tokens)} new tokens",
    vocabulary=vocabulary,
    fingerprint=f"{model.fingerprint} grown {json.dumps([dict(tokens), initial])}",
  )


def resized(model: ModelSource, rows: int) -> ModelSource:
  """A model with so many rows of embeddings: more, for a mesh that cuts them, or without those of no token.

  New rows are the mean of those that belong to tokens.

  Raises:
    ConfigError: the vocabulary has more tokens, or the model adapters.
  """
  if model.lora is not None:
    raise ConfigError("resized.model has adapters: give @lora() the resized model instead.")
  if rows < model.vocabulary.size:
    raise ConfigError(
      f"resized.rows={rows:,} is less than the {model.vocabulary.size:,} tokens of the vocabulary."
    )
  return dataclasses.replace(
    _with_rows(model, rows, {}),
    origin=f"{model.origin}, with {rows:,} rows",
    fingerprint=f"{model.fingerprint} resized {rows}",
  )


def _with_rows(model: ModelSource, size: int, rows: Mapping[int, InitialRow]) -> ModelSource:
  known, before = model.vocabulary.size, model.model.config.vocab_size
  other = dataclasses.replace(
    build_model(dataclasses.replace(model.model.config, vocab_size=size)),
    bidirectional_inputs=model.model.bidirectional_inputs,
  )

  def load(layout: Layout, key: jax.Array) -> PyTree:
    params = model.load(_layout_for(layout, before), key)
    tables = {name: params[name] for name in ("embed", "unembed") if name in params}
    shardings = param_shardings(other, layout)
    resize = jax.jit(
      lambda tables, key: grow_embeddings(tables, size, rows, known=known, key=key),
      out_shardings={name: shardings[name] for name in tables},
    )
    with layout.active():
      return {**params, **resize(tables, jax.random.fold_in(key, known))}

  return dataclasses.replace(model, model=other, load=load, reopened_by=None, trained=None)


def _layout_for(layout: Layout, rows: int) -> Layout:
  """The layout with tables of so many rows whole on every device, where they cannot be cut."""
  if rows % layout.shards("vocab") == 0:
    return layout
  rules = tuple((name, None if name == "vocab" else axes) for name, axes in layout.rules)
  return dataclasses.replace(layout, rules=rules)
