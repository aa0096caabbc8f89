"""Models that begin with some of the parameters of another one."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax

from flan_jax.errors import ConfigError
from flan_jax.jobs.models import ModelSource
from flan_jax.training.parameter_patterns import matching, require_matches
from flan_jax.training.partitioning import Layout, make_layout, param_shardings, path_of

PyTree = Any


def transferred(model: ModelSource, source: ModelSource, patterns: Sequence[str]) -> ModelSource:
  """A model whose parameters that the patterns choose are those of another model.

  Args:
    model: shapes, vocabulary, and all other parameters.
    source: where the chosen ones come from, under the same names: @tuned() or @pretrained().
    patterns: see `flan_jax.training.parameter_patterns`; such as ("encoder/*", "!*norm*").

  Raises:
    ConfigError: a pattern matches nothing, a chosen parameter is not in `source` in that shape, or it
      is a table of words and the vocabularies differ.
  """
  if model.lora is not None or source.lora is not None:
    raise ConfigError("transferred takes models without @lora(): give @lora() the transferred one.")
  ours, theirs = (each.model.shapes() for each in (model, source))
  require_matches(ours, "transferred.patterns", patterns)
  shapes = {path_of(path): leaf.shape for path, leaf in _leaves(theirs)}
  chosen = {
    path_of(path): leaf.shape
    for (path, leaf), (_, wanted) in zip(
      _leaves(ours), _leaves(matching(ours, patterns)), strict=True
    )
    if wanted
  }
  differing = [
    f"  {'/'.join(path)}: {shape} here, {shapes.get(path, 'missing')} there"
    for path, shape in chosen.items()
    if shapes.get(path) != shape
  ]
  if differing:
    raise ConfigError(
      f"transferred.patterns choose {len(differing)} parameters that {source.origin} does not have in this "
      "shape; leave them out with '!':\n" + "\n".join(differing)
    )
  tables = [path for path in chosen if path[0] in ("embed", "unembed")]
  if tables and model.vocabulary.fingerprint != source.vocabulary.fingerprint:
    raise ConfigError(
      f"transferred.patterns choose {'/'.join(tables[0])}, whose rows belong to the words of {source.origin}, and "
      "the vocabularies differ: leave it out with '!embed*|unembed*', or take one vocabulary for both."
    )

  def load(layout: Layout, key: jax.Array) -> PyTree:
    params = model.load(layout, key)
    given = source.load(make_layout(source.model, layout.mesh, layout.rules), key)
    found = {path_of(path): leaf for path, leaf in _leaves(given)}

    def taken(path: tuple[Any, ...], leaf: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
      if path_of(path) not in chosen:
        return leaf
      return jax.device_put(found[path_of(path)].astype(leaf.dtype), sharding)

    with layout.active():
      shardings = param_shardings(model.model, layout)
      return jax.tree_util.tree_map_with_path(taken, params, shardings)

  return dataclasses.replace(
    model,
    origin=f"{model.origin}, with {len(chosen)} parameters of {source.origin}",
    load=load,
    fingerprint=f"{model.fingerprint} with {json.dumps(list(patterns))} of {source.fingerprint}",
    reopened_by=None,
    trained=None,
  )


def _leaves(tree: PyTree) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(tree)
