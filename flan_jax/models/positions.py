"""Where a token stands: T5's relative positions as a bias of the scores, rotary positions as turned pairs."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flan_jax.models.config import RopeScaling
from flan_jax.models.layers import partitioned

Angles = tuple[Float[Array, "B T 1 H2"], Float[Array, "B T 1 H2"]]


class RelativeBias(nn.Module):
  """T5's learnt attention bias by bucketed distance, one table a stack (arXiv:1910.10683, 2.1)."""

  num_heads: int
  buckets: int
  max_distance: int
  bidirectional: bool
  param_dtype: str

  @nn.compact
  def __call__(
    self, query_positions: Int[Array, "#B T"], key_positions: Int[Array, "#B S"]
  ) -> Float[Array, "#B N T S"]:
    table = self.param(
      "embedding",
      partitioned(
        nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), ("relpos_buckets", None)
      ),
      (self.buckets, self.num_heads),
      jnp.dtype(self.param_dtype),
    )
    distance = key_positions[:, None, :] - query_positions[:, :, None]
    bucket = relative_bucket(distance, self.buckets, self.max_distance, self.bidirectional)
    return jax.lax.platform_dependent(
      table.astype(jnp.float32), bucket, tpu=_looked_up_by_product, default=_looked_up
    )


def _looked_up(table: Float[Array, "K N"], rows: Int[Array, "B T S"]) -> Float[Array, "B N T S"]:
  return jnp.moveaxis(table[rows], -1, 1)


def _looked_up_by_product(
  table: Float[Array, "K N"], rows: Int[Array, "B T S"]
) -> Float[Array, "B N T S"]:
  """The same, exactly: for a TPU, which would pad the heads of [B, T, S, N] to 128, and is quick at products."""
  chosen = rows[:, None] == jnp.arange(len(table), dtype=rows.dtype)[None, :, None, None]
  return jnp.einsum(
    "kn,bkts->bnts", table, chosen.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
  )


def relative_bucket(
  distance: Int[Array, "*B"], buckets: int, max_distance: int, bidirectional: bool
) -> Int[Array, "*B"]:
  """The bucket of a distance (key position minus query position).

  Half of the buckets are exact distances, the other half widen logarithmically up to
  `max_distance`. With `bidirectional` keys to the right take buckets of their own; without, they
  share bucket 0 (a causal mask hides them).
  """
  behind = -distance
  first = jnp.zeros_like(distance)
  if bidirectional:
    buckets //= 2
    first = jnp.where(behind < 0, buckets, 0).astype(distance.dtype)
    behind = jnp.abs(behind)
  behind = jnp.maximum(behind, 0)
  exact = buckets // 2
  ratio = jnp.log(jnp.maximum(behind, 1).astype(jnp.float32) / exact) / jnp.log(
    jnp.float32(max_distance / exact)
  )
  far = exact + (ratio * (buckets - exact)).astype(distance.dtype)
  return first + jnp.where(behind < exact, behind, jnp.minimum(far, buckets - 1))


def rotary_angles(
  positions: Int[Array, "B T"], dims: int, theta: float, scaling: RopeScaling | None = None
) -> Angles:
  """Cosine and sine of each position's angles (arXiv:2104.09864), for `rotate`."""
  frequency = theta ** (-jnp.arange(0, dims, 2, dtype=jnp.float32) / dims)
  if scaling is not None:
    frequency = _slowed(frequency, scaling)
  angles = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
  return jnp.cos(angles), jnp.sin(angles)


def _slowed(frequency: Float[Array, " H2"], scaling: RopeScaling) -> Float[Array, " H2"]:
  if scaling.kind == "linear":
    return frequency / scaling.factor
  # How many turns a frequency makes over a text of pretraining: few are slowed, many are kept.
  turns = scaling.original_length * frequency / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return (1 - kept) * frequency / scaling.factor + kept * frequency


def rotate(x: Float[Array, "B T N H"], angles: Angles) -> Float[Array, "B T N H"]:
  """Turn the pairs (i, i + R/2) of the first R dimensions of each head, in float32.

  R is twice the number of angles; what stands behind is left as it is.
  """
  cos, sin = angles
  half = cos.shape[-1]
  first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin, rest]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
