"""A stack of equal layers: one set of stacked parameters, scanned or unrolled, with remat; or each with its own."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend

from flan_jax.models.dot_product_attention import ATTENDED


def _of_cudnn(primitive: jax.extend.core.Primitive, *_: Any, **__: Any) -> bool:
  """Whether it is the forward pass of cuDNN's attention, whose backward pass reads what it gave."""
  return primitive.name == "dot_product_attention_fwd_wrapper"


_POLICIES = {
  "full": None,
  "dots": functools.reduce(
    jax.checkpoint_policies.save_from_both_policies,
    (
      jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
      jax.checkpoint_policies.save_only_these_names(ATTENDED),
      _of_cudnn,
    ),
  ),
}


def stacked(layer: type[nn.Module], config: Any, length: int, name: str = "layers") -> nn.Module:
  """`length` layers that run one after the other, with parameters stacked on a leading axis.

  `layer(config)` is called as (x, own, context) -> (x, output): x runs through the layers, each
  layer gets its slice of `own` and all get the same context; the outputs come back stacked. Without
  `config.scan_layers` the loop is unrolled over slices of the same parameters.
  """
  if config.remat != "none":
    layer = nn.remat(layer, policy=_POLICIES[config.remat], prevent_cse=not config.scan_layers)
  scanned = nn.scan(
    layer,
    variable_axes={"params": 0, "intermediates": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(0, nn.broadcast),
    length=length,
    unroll=1 if config.scan_layers else length,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )
  return scanned(config, name=name)


class SeparateLayers(nn.Module):
  """The layers of `stacked`, parameters and caches of each in arrays of their own: "0", "1", and so on.

  Decoding reads every parameter for every token. A slice of a stack is copied first, an array is not.

  Args:
    layer: called as in `stacked`.
  """

  layer: type[nn.Module]
  config: Any
  length: int

  @nn.compact
  def __call__(self, x: jax.Array, own: Sequence[Any], context: Any) -> tuple[jax.Array, list]:
    outputs = []
    for i in range(self.length):
      x, output = self.layer(self.config, name=str(i))(x, own[i], context)
      outputs.append(output)
    return x, outputs


def separate(layers: Any) -> dict[str, Any]:
  """The parameters of `SeparateLayers` from those of `stacked`: each layer's slice of every array."""
  length = jax.tree.leaves(layers)[0].shape[0]
  return {str(i): jax.tree.map(lambda x: x[i], layers) for i in range(length)}  # noqa: B023
