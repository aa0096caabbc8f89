"""Models published as GGUF: shapes, weights, tokenizer and chat template from one file.

Weights are dequantised one tensor at a time, from a memory map, into the place where they are needed.
What the file holds and this library does not read is refused by name.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader
from gguf.constants import TokenType
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from flan_jax.checkpoints.families import Family
from flan_jax.checkpoints.published import Published
from flan_jax.checkpoints.streaming import check_tensors, load_params
from flan_jax.checkpoints.tensor_forms import Neighbours
from flan_jax.errors import CheckpointError
from flan_jax.models import DecoderConfig, build_model
from flan_jax.vocabularies import BPEVocabulary

_NAMES = {
  "embed/embedding": "token_embd.weight",
  "norm/scale": "output_norm.weight",
  "unembed/kernel": "output.weight",
  **{
    f"layers/{ours}": f"blk.{{}}.{theirs}.weight"
    for ours, theirs in {
      "attention_norm/scale": "attn_norm",
      "attention/query/kernel": "attn_q",
      "attention/key/kernel": "attn_k",
      "attention/value/kernel": "attn_v",
      "attention/out/kernel": "attn_output",
      "mlp_norm/scale": "ffn_norm",
      "mlp/gate/kernel": "ffn_gate",
      "mlp/up/kernel": "ffn_up",
      "mlp/down/kernel": "ffn_down",
    }.items()
  },
}


def open_gguf(path: Path | str, dtype: str = "float32") -> Published:
  """The model in a GGUF file. Its tensors are read when it is loaded.

  Args:
    dtype: of the parameters and of the activations, until the configuration is replaced.

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

  tensors = {tensor.name: _Quantized(path, tensor) for tensor in reader.tensors}
  config = _config(path, value, "output.weight" not in tensors, dtype)
  model = build_model(config)
  check_tensors(str(path), model, _LLAMA, tensors)
  vocabulary = _vocabulary(path, value)
  load = functools.partial(load_params, str(path), model, _LLAMA, tensors)
  return Published(config, vocabulary, load, (vocabulary.eos_id,))


class _Quantized(NamedTuple):
  """A tensor of a file."""

  path: Path
  tensor: Any

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(self.tensor.shape))

  def read(self) -> np.ndarray:
    try:
      return dequantize(self.tensor.data, self.tensor.tensor_type)
    except (NotImplementedError, KeyError, ValueError) as error:
      raise CheckpointError(
        f"{self.path}: tensor {self.tensor.name!r} of type {self.tensor.tensor_type.name} cannot be read "
        f"({error})."
      ) from error


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


# llama.cpp turns neighbours, and its converter orders the rows of queries and keys for that.
_LLAMA = Family(
  "llama",
  "LlamaForCausalLM",
  lambda _: _NAMES,
  read=lambda settings: DecoderConfig(**settings),
  write=dataclasses.asdict,
  base="",
  forms={
    "layers/attention/query/kernel": Neighbours("num_heads"),
    "layers/attention/key/kernel": Neighbours("num_kv_heads"),
  },
)


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
