"""The layers that both families are made of, with the logical axes of their parameters."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

Initializer = Callable[..., Any]

FAN_IN_NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
FAN_IN_TRUNCATED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": partial(jax.nn.gelu, approximate=True),
  "gelu_exact": partial(jax.nn.gelu, approximate=False),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


def partitioned(init: Initializer, axes: tuple[str | None, ...]) -> Initializer:
  """`init`, its result labelled with logical axes."""
  return nn.with_logical_partitioning(init, axes)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Ask the partitioner for the layout that the logical axis rules in force give `axes`."""
  return nn.with_logical_constraint(x, axes)


class Dense(nn.Module):
  """A matrix product with a float kernel [in, out], and a bias [out] where asked, in `dtype`.

  Where adapters were joined with the parameters (`flan_jax.training.lora`), `lora_a` [in, r] and
  `lora_b` [r, out] stand beside the kernel, and their product is added to it on the way; with
  `lora_magnitude` [out] the columns of the sum are then given other norms.
  """

  features: int
  axes: tuple[str, str]
  kernel_init: Initializer
  dtype: str
  param_dtype: str
  bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
    kernel = self.param(
      "kernel",
      partitioned(self.kernel_init, self.axes),
      (x.shape[-1], self.features),
      jnp.dtype(self.param_dtype),
    )
    x = x.astype(self.dtype)
    out = matmul(x, kernel)
    if self.has_variable("params", "lora_a"):
      out = self._adapted(x, out, kernel)
    if self.bias:
      zeros = partitioned(nn.initializers.zeros_init(), self.axes[1:])
      bias = self.param("bias", zeros, (self.features,), jnp.dtype(self.param_dtype))
      # In float32, so that its gradient is summed there.
      wide = out.astype(jnp.float32) + _along_last(bias.astype(jnp.float32), out)
      out = wide.astype(out.dtype)
    return out

  def _adapted(
    self, x: Float[Array, "*B D"], out: Float[Array, "*B F"], kernel: Float[Array, "D F"]
  ) -> Float[Array, "*B F"]:
    held = self.variables["params"]
    narrow = matmul(dropout(self, x, held.get("lora_dropout", 0.0)), held["lora_a"])
    out = out + matmul(narrow, held["lora_b"])
    if "lora_magnitude" in held:
      gains = column_gains(kernel, held["lora_a"], held["lora_b"], held["lora_magnitude"])
      out = out * _along_last(gains.astype(out.dtype), out)
    return out


def column_gains(
  kernel: Float[Array, "*L D F"],
  a: Float[Array, "*L D R"],
  b: Float[Array, "*L R F"],
  magnitude: Float[Array, "*L F"],
) -> Float[Array, "*L F"]:
  """What gives the columns of W + A B the norms |W| + magnitude, in float32 (DoRA, arXiv 2402.09353).

  The norm of the sum is taken as a constant by the gradient, as in section 4.3 of the paper.
  """
  product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  norms = column_norms(kernel + product)
  # A column of zeros stays one.
  return (column_norms(kernel) + magnitude) / jax.lax.stop_gradient(jnp.maximum(norms, 1e-30))


def column_norms(kernel: Float[Array, "*L D F"]) -> Float[Array, "*L F"]:
  """The Euclidean norms of the columns, in float32."""
  return jnp.linalg.norm(kernel.astype(jnp.float32), axis=-2)


@jax.custom_vjp
def matmul(x: Float[Array, "*B D"], kernel: Float[Array, "D F"]) -> Float[Array, "*B F"]:
  """`x @ kernel` in the dtype of `x`, whose gradient for the kernel is x^T g, in the kernel's dtype.

  It is computed as (g^T x)^T where g is the narrower: XLA on CPU turns the first operand round, and
  fuses what made it into a strided loop. JAX's own rule, which always turns g, made the backward
  pass of a feed-forward layer take 1.6 times as long, and turning x alone made a decoder's tuning
  step 5 % longer (`benchmarks/training_step.py`). The gradient of float32 parameters is summed in float32 also
  where activations are narrower; x is then turned, for XLA on CPU has no such product of the other.
  """
  return x @ kernel.astype(x.dtype)


def _matmul_forward(x, kernel):
  # Not a call of `matmul`: remat policies would not see the product in it.
  return x @ kernel.astype(x.dtype), (x, kernel)


def _matmul_backward(saved, g):
  x, kernel = saved
  batch = tuple(range(x.ndim - 1))
  product = partial(jax.lax.dot_general, preferred_element_type=kernel.dtype)
  summed = ((batch, batch), ((), ()))
  if x.shape[-1] <= g.shape[-1] or x.dtype != kernel.dtype:
    kernel_gradient = product(x, g, summed)
  else:
    kernel_gradient = product(g, x, summed).T
  return g @ kernel.astype(g.dtype).T, kernel_gradient


matmul.defvjp(_matmul_forward, _matmul_backward)


class RMSNorm(nn.Module):
  """Division by the root mean square over the last axis, in float32 (arXiv:1910.07467).

  Args:
    plus_one: the factor is 1 + scale, as in Gemma.
  """

  eps: float
  dtype: str
  param_dtype: str
  axis: str | None = "embed"
  plus_one: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    init = nn.initializers.zeros_init() if self.plus_one else nn.initializers.ones_init()
    scale = self.param(
      "scale", partitioned(init, (self.axis,)), (x.shape[-1],), jnp.dtype(self.param_dtype)
    )
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
    factor = scale.astype(jnp.float32) + (1.0 if self.plus_one else 0.0)
    return (x * _along_last(factor, x)).astype(self.dtype)


class LayerNorm(nn.Module):
  """Mean 0 and variance 1 over the last axis, in float32, then scale and bias (arXiv:1607.06450)."""

  eps: float
  dtype: str
  param_dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    scale, bias = (
      self.param(name, partitioned(init(), ("embed",)), (x.shape[-1],), jnp.dtype(self.param_dtype))
      for name, init in (("scale", nn.initializers.ones_init), ("bias", nn.initializers.zeros_init))
    )
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
    scale, bias = (_along_last(each.astype(jnp.float32), x) for each in (scale, bias))
    return (x * scale + bias).astype(self.dtype)


def _along_last(vector: Float[Array, " D"], x: Float[Array, "*B D"]) -> Float[Array, "..."]:
  """[D] against [B, T, D], spelt out where rank promotion is an error."""
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))


class MLP(nn.Module):
  """A feed-forward layer: one activation, or an activation that gates a linear branch."""

  mlp_dim: int
  activations: tuple[str, ...]
  kernel_init: Initializer
  dtype: str
  param_dtype: str
  dropout_rate: float = 0.0
  bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    widen = partial(
      Dense,
      features=self.mlp_dim,
      axes=("embed", "mlp"),
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      bias=self.bias,
    )
    activation = _ACTIVATIONS[self.activations[0]]
    if len(self.activations) == 2:
      hidden = activation(widen(name="gate")(x)) * widen(name="up")(x)
    else:
      hidden = activation(widen(name="up")(x))
    hidden = dropout(self, constrain(hidden, "batch", "length", "mlp"), self.dropout_rate)
    narrow = Dense(
      x.shape[-1],
      ("mlp", "embed"),
      self.kernel_init,
      self.dtype,
      self.param_dtype,
      self.bias,
      name="down",
    )
    return narrow(hidden)


class Embedding(nn.Module):
  """A table of token embeddings [V, D], or of positions."""

  vocab_size: int
  emb_dim: int
  kernel_init: Initializer
  dtype: str
  param_dtype: str
  rows: str | None = "vocab"

  def setup(self) -> None:
    self.embedding = self.param(
      "embedding",
      partitioned(self.kernel_init, (self.rows, "embed")),
      (self.vocab_size, self.emb_dim),
      jnp.dtype(self.param_dtype),
    )

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return embed_tokens(self.embedding, tokens, self.dtype, self.rows)


class Unembedding(nn.Module):
  """Kernel [D, V] and bias [V] of untied logits. Who multiplies with it decides how much at a time."""

  vocab_size: int
  emb_dim: int
  kernel_init: Initializer
  param_dtype: str
  bias: bool = False

  @nn.compact
  def __call__(self) -> Float[Array, "D V"]:
    if self.bias:
      zeros = partitioned(nn.initializers.zeros_init(), ("vocab",))
      self.param("bias", zeros, (self.vocab_size,), jnp.dtype(self.param_dtype))
    return self.param(
      "kernel",
      partitioned(self.kernel_init, ("embed", "vocab")),
      (self.emb_dim, self.vocab_size),
      jnp.dtype(self.param_dtype),
    )


def dropout(module: nn.Module, x: jax.Array, rate: float | Float[Array, ""]) -> jax.Array:
  """Dropout in `module`, active where the caller gave a key named "dropout"."""
  kept = dropout_mask(module, rate, x.shape)
  if kept is None:
    return x
  return jnp.where(kept, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def dropout_mask(
  module: nn.Module, rate: float | Float[Array, ""], shape: tuple[int, ...]
) -> Bool[Array, "..."] | None:
  """What dropout in `module` leaves of numbers of this shape; None: all."""
  if not module.has_rng("dropout") or (isinstance(rate, float) and rate == 0.0):
    return None
  return jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, shape)


def embed_tokens(
  table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str, rows: str | None = "vocab"
) -> Float[Array, "B T D"]:
  """The rows of `table` at `tokens`, in `dtype`. Their gradients are summed in float32.

  On a mesh, where the logical axis rules shard the table, each device looks up the tokens whose
  rows it holds and the results are summed over the vocabulary's mesh axes. The partitioner's own
  gather would rebuild the whole table on every device, and a one-hot product is as large as the
  logits. Where columns are cut, devices look up theirs for each other's tokens and exchange them,
  which are fewer than the words; on TPUs, whose lanes narrow rows would leave empty, columns are
  gathered first.
  """
  mesh = jax.sharding.get_abstract_mesh()
  vocab, embed = mesh_axes(rows, mesh), mesh_axes("embed", mesh)
  batch = mesh_axes("batch", mesh, tokens.shape[0])
  length = mesh_axes("length", mesh, tokens.shape[1])
  if not vocab + embed + batch + length:
    return constrain(_lookup(table, tokens, dtype), "batch", "length", None)
  gathered, exchanged = (embed, ()) if platform() == "tpu" else ((), embed)
  cuts = {axis: dim for dim, axes in enumerate((batch, length)) for axis in axes}
  dims = {axis: cuts.get(axis) for axis in exchanged}
  lookup = jax.shard_map(
    partial(_masked_gather, dtype=dtype, vocab=vocab, gathered=gathered, exchanged=dims),
    in_specs=(
      PartitionSpec(vocab or None, embed or None),
      PartitionSpec(batch or None, length or None),
    ),
    out_specs=PartitionSpec(batch or None, length or None, None),
    check_vma=False,
  )
  return lookup(table, tokens)


def _masked_gather(
  table: Float[Array, "V D"],
  tokens: Int[Array, "B T"],
  dtype: str,
  vocab: tuple[str, ...],
  gathered: tuple[str, ...],
  exchanged: dict[str, int | None],
) -> Float[Array, "B T D"]:
  """On a device, which has some rows and some columns of the table.

  Args:
    gathered: axes that cut columns, which are gathered before the lookup.
    exchanged: those over which they are exchanged after it, and the dimension of the tokens that each cuts; None: it
      cuts neither, and the devices have the same tokens.
  """
  for axis, dim in exchanged.items():
    if dim is not None:
      tokens = jax.lax.all_gather(tokens, axis, axis=dim, tiled=True)
  if not vocab:
    rows = _lookup(table, tokens, dtype, gathered)
  else:
    local = tokens - jax.lax.axis_index(vocab) * table.shape[0]
    held: Bool[Array, "B T"] = (local >= 0) & (local < table.shape[0])
    rows = _lookup(table, jnp.where(held, local, 0), dtype, gathered)
    rows = jax.lax.psum(jnp.where(held[..., None], rows, jnp.zeros((), rows.dtype)), vocab)
  for axis, dim in reversed(exchanged.items()):
    if dim is None:
      rows = jax.lax.all_gather(rows, axis, axis=2, tiled=True)
    else:
      rows = jax.lax.all_to_all(rows, axis, split_axis=dim, concat_axis=2, tiled=True)
  return rows


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(
  table: Float[Array, "V C"], index: Int[Array, "B T"], dtype: str, embed: tuple[str, ...] = ()
) -> Float[Array, "B T D"]:
  """Rows of a table of whose columns every device of `embed` has C; they are gathered in `dtype`.

  A frequent word has thousands of tokens in a batch. Their sum would stand still in bfloat16, of which GPUs besides
  have no sums in memory: they compare and swap until no other came between.
  """
  if not embed:
    return table[index].astype(dtype)
  return jax.lax.all_gather(table.astype(dtype), embed, axis=1, tiled=True)[index]


def _lookup_forward(table, index, dtype, embed):
  return _lookup(table, index, dtype, embed), (table, index)


def _lookup_backward(dtype, embed, saved, gradient):
  table, index = saved
  total = jnp.zeros((len(table), gradient.shape[-1]), jnp.float32)
  total = total.at[index].add(gradient.astype(jnp.float32))
  if embed:
    total = jax.lax.psum_scatter(total, embed, scatter_dimension=1, tiled=True)
  return total.astype(table.dtype), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def attention_cuts(
  query: Float[Array, "B T N H"], key: Float[Array, "B S K H"], value: Float[Array, "B S K H"]
) -> tuple[tuple[tuple[str, ...], ...], jax.Array, jax.Array]:
  """How the mesh in force cuts what a kernel for attention is given.

  Returns:
    The mesh axes that cut rows, queries and heads; and keys and values, repeated for each query head where a device's
    query heads would not find theirs among the key heads.
  """
  mesh = jax.sharding.get_abstract_mesh()
  batch, length, heads = (
    mesh_axes(name, mesh, size)
    for name, size in zip(("batch", "length", "heads"), query.shape[:3], strict=True)
  )
  if heads != mesh_axes("kv", mesh, key.shape[2]):
    groups = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
  return (batch, length, heads), key, value


def padded(x: jax.Array, axis: int, by: int) -> jax.Array:
  """With so many zeros behind."""
  return jnp.pad(x, [(0, by if axis == i else 0) for i in range(x.ndim)]) if by else x


def platform() -> str:
  """Of the mesh in force, be its devices there or not; without one, of what there is: "cpu", "gpu" or "tpu"."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def mesh_axes(name: str | None, mesh: Any, size: int | None = None) -> tuple[str, ...]:
  """The mesh axes of more than one device that shard a logical axis (of `size`, if they must
  divide it)."""
  if mesh.empty:
    return ()
  rules: Sequence[Any] = nn.get_logical_axis_rules()
  spec = nn.logical_to_mesh_axes((name,), rules)
  assigned = spec[0] if spec else None
  axes = (assigned,) if isinstance(assigned, str) else tuple(assigned or ())
  axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
  total = 1
  for axis in axes:
    total *= mesh.shape[axis]
  return axes if size is None or size % total == 0 else ()
