"""Models published as GGUF: shapes, weights, tokenizer and chat template from one file.

Weights are dequantised one tensor at a time into the stacked parameters, from a memory map, so that
the peak is the parameters and one tensor. Only the `llama` architecture is read, without rotary
scaling or biases; anything else in the file is refused by name.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGUFReader
from gguf.constants import TokenType
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from flan_jax.errors import CheckpointError
from flan_jax.models import DecoderConfig, build_model
from flan_jax.vocabularies import BPEVocabulary

# GGUF tensor -> path in our parameters; `blk.N.` tensors are stacked under `layers`.
_TENSORS = {
  "token_embd.weight": "embed/embedding",
  "output_norm.weight": "norm/scale",
  "output.weight": "unembed/kernel",
}
_LAYER_TENSORS = {
  "attn_norm.weight": "attention_norm/scale",
  "attn_q.weight": "attention/query/kernel",
  "attn_k.weight": "attention/key/kernel",
  "attn_v.weight": "attention/value/kernel",
  "attn_output.weight": "attention/out/kernel",
  "ffn_norm.weight": "mlp_norm/scale",
  "ffn_gate.weight": "mlp/gate/kernel",
  "ffn_up.weight": "mlp/up/kernel",
  "ffn_down.weight": "mlp/down/kernel",
}


class Pretrained(NamedTuple):
  """A model as somebody published it. `params` are NumPy arrays on the host."""

  config: DecoderConfig
  params: dict[str, Any]
  vocabulary: BPEVocabulary


def load_gguf(path: Path | str, dtype: str = "float32") -> Pretrained:
  """The model in a GGUF file.

  Args:
    dtype: of the parameters; the activations compute in it too, until the configuration is
      replaced.

  Raises:
    CheckpointError: the file is missing, torn, or holds what this library does not read.
  """
  path = Path(path)
  reader = _open(path)
  metadata = dict(reader.fields.items())

  def value(key: str, default: Any = ...) -> Any:
    if key in metadata:
      return metadata[key].contents()
    if default is ...:
      raise CheckpointError(f"{path} has no {key!r} in its metadata; it cannot be read as a model.")
    return default

  tensors = {tensor.name: tensor for tensor in reader.tensors}
  config = _config(path, value, "output.weight" not in tensors, dtype)
  params = _params(path, config, tensors)
  return Pretrained(config, params, _vocabulary(path, value))


def _open(path: Path) -> GGUFReader:
  if not path.is_file():
    raise CheckpointError(f"{path}: no such GGUF file.")
  try:
    return GGUFReader(path)
  except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
    raise CheckpointError(
      f"{path} is torn or no GGUF file ({error}); remove it and fetch it again."
    ) from error


def _config(path: Path, value: Callable[..., Any], tied: bool, dtype: str) -> DecoderConfig:
  architecture = value("general.architecture")
  if architecture != "llama":
    raise CheckpointError(
      f"{path} holds a model of architecture {architecture!r}; only 'llama' is read."
    )
  if value("llama.rope.scaling.type", "none") != "none":
    raise CheckpointError(f"{path} scales its rotary positions, which is not supported.")
  heads, emb_dim = value("llama.attention.head_count"), value("llama.embedding_length")
  head_dim = value("llama.attention.key_length", emb_dim // heads)
  if value("llama.rope.dimension_count", head_dim) != head_dim:
    raise CheckpointError(f"{path} turns only a part of each head, which is not supported.")
  return DecoderConfig(
    vocab_size=value("llama.vocab_size", None) or len(value("tokenizer.ggml.tokens")),
    emb_dim=emb_dim,
    num_layers=value("llama.block_count"),
    num_heads=heads,
    num_kv_heads=value("llama.attention.head_count_kv", heads),
    head_dim=head_dim,
    mlp_dim=value("llama.feed_forward_length"),
    rope_theta=float(value("llama.rope.freq_base", 10_000.0)),
    norm_eps=_decimal(value("llama.attention.layer_norm_rms_epsilon")),
    tied_embeddings=tied,
    dtype=dtype,
    param_dtype=dtype,
  )


def _params(path: Path, config: DecoderConfig, tensors: dict[str, Any]) -> dict[str, Any]:
  shapes = jax.eval_shape(build_model(config).init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.empty(leaf.shape, jnp.dtype(leaf.dtype)), shapes)
  for name, target, turned_heads in _targets(config):
    if name not in tensors:
      raise CheckpointError(f"{path} has no tensor {name!r}.")
    array = _dequantized(path, tensors.pop(name))
    if turned_heads:
      array = _half_split(array, turned_heads)
    where, layer = target
    held = _at(params, where)
    held = held if layer is None else held[layer]
    array = array.T if where.endswith("/kernel") else array
    if array.shape != held.shape:
      raise CheckpointError(
        f"{path}: tensor {name!r} has shape {array.shape} and the metadata ask for {held.shape}."
      )
    held[...] = array
  if tensors:
    raise CheckpointError(f"{path} holds tensors that are not understood: {sorted(tensors)[:5]}.")
  return params


def _targets(config: DecoderConfig) -> Iterator[tuple[str, tuple[str, int | None], int]]:
  """Every tensor's name, its place in the parameters, and how many heads' rows are permuted."""
  heads = {"attn_q.weight": config.num_heads, "attn_k.weight": config.num_kv_heads}
  for name, path in _TENSORS.items():
    if name != "output.weight" or not config.tied_embeddings:
      yield name, (path, None), 0
  for layer in range(config.num_layers):
    for name, path in _LAYER_TENSORS.items():
      yield f"blk.{layer}.{name}", (f"layers/{path}", layer), heads.get(name, 0)


def _dequantized(path: Path, tensor: Any) -> np.ndarray:
  try:
    return dequantize(tensor.data, tensor.tensor_type)
  except (NotImplementedError, KeyError, ValueError) as error:
    raise CheckpointError(
      f"{path}: tensor {tensor.name!r} of type {tensor.tensor_type.name} cannot be read ({error})."
    ) from error


def _half_split(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows [heads * H, D] from pairs (2i, 2i + 1), as llama.cpp turns them, to pairs (i, i + H/2)."""
  size = rows.shape[0] // heads
  pairs = rows.reshape(heads, size // 2, 2, rows.shape[1])
  return pairs.swapaxes(1, 2).reshape(rows.shape)


def _at(params: dict[str, Any], path: str) -> np.ndarray:
  node: Any = params
  for key in path.split("/"):
    node = node[key]
  return node


def _decimal(stored: float) -> float:
  """The decimal that was meant by a number stored in 32 bits: 1e-5, not 9.999999747378752e-06."""
  return float(str(np.float32(stored)))


# How each `tokenizer.ggml.pre` cuts text before the byte pairs are merged. "gpt-2" is the cut that
# ByteLevel's own expression makes; SmolLM's cuts out every digit first.
_PRE_TOKENIZERS: dict[str, Callable[[], list[Any]]] = {
  "gpt-2": lambda: [],
  "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True)],
}


def _vocabulary(path: Path, value: Callable[..., Any]) -> BPEVocabulary:
  kind, cut = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre", "gpt-2")
  if kind != "gpt2" or cut not in _PRE_TOKENIZERS:
    raise CheckpointError(
      f"{path} has a tokenizer of kind {kind!r} cut by {cut!r}; byte-level BPE ('gpt2') cut by "
      f"{' or '.join(map(repr, _PRE_TOKENIZERS))} is read."
    )
  tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
  merges = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges")]
  ids = {token: i for i, token in enumerate(tokens)}
  tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
  before = value("tokenizer.ggml.add_space_prefix", False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [*_PRE_TOKENIZERS[cut](), pre_tokenizers.ByteLevel(add_prefix_space=before, use_regex=True)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  special = {int(TokenType.CONTROL): True, int(TokenType.USER_DEFINED): False}
  tokenizer.add_tokens(
    [
      AddedToken(token, special=special[kind], normalized=False)
      for token, kind in zip(tokens, kinds, strict=True)
      if kind in special
    ]
  )

  def named(role: str) -> str | None:
    token_id = value(f"tokenizer.ggml.{role}_token_id", None)
    return None if token_id is None else tokens[token_id]

  eos = named("eos")
  if eos is None:
    raise CheckpointError(f"{path} does not say which token ends a text.")
  return BPEVocabulary(
    tokenizer,
    eos,
    # A model that names a begin token and does not put it before texts was not trained with it.
    bos_token=named("bos") if value("tokenizer.ggml.add_bos_token", False) else None,
    pad_token=named("padding"),
    unk_token=named("unknown"),
    chat_template=value("tokenizer.chat_template", None),
  )
