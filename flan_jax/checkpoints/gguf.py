"""Models published as GGUF: shapes, weights, tokenizer and chat template from one file.

Weights are dequantised one tensor at a time, from a memory map, into the place where they are needed.
What the file holds and this library does not read is refused by name.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader
from gguf.constants import TokenType
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from flan_jax.checkpoints.families import Family
from flan_jax.checkpoints.published import Published
from flan_jax.checkpoints.streaming import check_tensors, load_params
from flan_jax.checkpoints.tensor_forms import Neighbours, OneMore, TensorForm
from flan_jax.errors import CheckpointError, nearest
from flan_jax.models import DecoderConfig, RopeScaling, build_model
from flan_jax.vocabularies import BPEVocabulary, SentencePieceVocabulary, Vocabulary
from flan_jax.vocabularies.sentencepiece import SPECIAL_ROLES, sentencepiece_model

_PRODUCTS = {
  "attention/query": "attn_q",
  "attention/key": "attn_k",
  "attention/value": "attn_v",
  "attention/out": "attn_output",
  "mlp/gate": "ffn_gate",
  "mlp/up": "ffn_up",
  "mlp/down": "ffn_down",
}
_NORMS = {
  "attention_norm": "attn_norm",
  "attention_post_norm": "post_attention_norm",
  "attention/query_norm": "attn_q_norm",
  "attention/key_norm": "attn_k_norm",
  "mlp_norm": "ffn_norm",
  "mlp_post_norm": "post_ffw_norm",
}
_NAMES = {
  "embed/embedding": "token_embd.weight",
  "norm/scale": "output_norm.weight",
  "unembed/kernel": "output.weight",
  **{f"layers/{ours}/kernel": f"blk.{{}}.{name}.weight" for ours, name in _PRODUCTS.items()},
  **{f"layers/{ours}/bias": f"blk.{{}}.{name}.bias" for ours, name in _PRODUCTS.items()},
  **{f"layers/{ours}/scale": f"blk.{{}}.{name}.weight" for ours, name in _NORMS.items()},
}
# llama.cpp turns neighbours in models of LLaMA's kind, and its converter orders the rows for that.
_NEIGHBOURS = {
  f"layers/attention/{part}/{leaf}": Neighbours(heads)
  for part, heads in {"query": "num_heads", "key": "num_kv_heads"}.items()
  for leaf in ("kernel", "bias")
}
_ONE_MORE = dict.fromkeys([path for path in _NAMES if path.endswith("/scale")], OneMore())
# Of each architecture that is read, how its tensors hold ours.
_FORMS: dict[str, Mapping[str, TensorForm]] = {
  "llama": _NEIGHBOURS,
  "qwen2": {},
  "qwen3": {},
  "gemma": _ONE_MORE,
  "gemma2": _ONE_MORE,
  "gemma3": _ONE_MORE,
}
# Factors of the rotary frequencies, which tell Llama 3's scaling.
_ROPE_FACTORS = "rope_freqs.weight"


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
      try:
        return metadata[key].contents()
      except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is torn: {key!r} is no text ({error}).") from error
    if default is ...:
      raise CheckpointError(f"{path} has no {key!r} in its metadata; it cannot be read as a model.")
    return default

  tensors = {tensor.name: _Quantized(path, tensor) for tensor in reader.tensors}
  factors = tensors.pop(_ROPE_FACTORS, None)
  config = _config(path, value, tensors, factors, dtype)
  family = _family(value("general.architecture"))
  model = build_model(config)
  check_tensors(str(path), model, family, tensors)
  vocabulary = _vocabulary(path, value)
  load = functools.partial(load_params, str(path), model, family, tensors)
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


class _Reader(GGUFReader):
  """The package's, on a plain array: it takes half a million slices, each of which is slower of a memory map."""

  @property
  def data(self) -> Any:
    return self._plain

  @data.setter
  def data(self, mapped: Any) -> None:
    self._plain = mapped.view(np.ndarray)


def _open(path: Path) -> GGUFReader:
  if not path.is_file():
    raise CheckpointError(f"{path}: no such GGUF file.")
  try:
    return _Reader(path)
  except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
    raise CheckpointError(
      f"{path} is torn or no GGUF file ({error}); remove it and fetch it again."
    ) from error


def _family(architecture: str) -> Family:
  return Family(
    architecture,
    architecture,
    lambda _: _NAMES,
    read=lambda settings: DecoderConfig(**settings),
    write=dataclasses.asdict,
    base="",
    forms=_FORMS[architecture],
  )


def _config(
  path: Path,
  value: Callable[..., Any],
  tensors: Mapping[str, "_Quantized"],
  factors: "_Quantized | None",
  dtype: str,
) -> DecoderConfig:
  architecture = value("general.architecture")
  if architecture not in _FORMS:
    close = nearest(architecture, _FORMS, count=1) or sorted(_FORMS)
    raise CheckpointError(
      f"{path} holds a model of architecture {architecture!r}, which is not read; known: "
      f"{', '.join(close)}."
    )

  def said(key: str, *default: Any) -> Any:
    return value(f"{architecture}.{key}", *default)

  heads, emb_dim = said("attention.head_count"), said("embedding_length")
  head_dim = said("attention.key_length", emb_dim // heads)
  if said("rope.dimension_count", head_dim) != head_dim:
    raise CheckpointError(f"{path} turns only a part of each head, which is not supported.")
  biased = {"query_key_value": "attn_q", "attention_out": "attn_output", "mlp": "ffn_up"}
  settings: dict[str, Any] = {
    "vocab_size": said("vocab_size", None) or len(value("tokenizer.ggml.tokens")),
    "emb_dim": emb_dim,
    "num_layers": said("block_count"),
    "num_heads": heads,
    "num_kv_heads": said("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "mlp_dim": said("feed_forward_length"),
    "rope_theta": float(said("rope.freq_base", 10_000.0)),
    "rope_scaling": _scaling(path, said, factors, head_dim),
    "norm_eps": _decimal(said("attention.layer_norm_rms_epsilon")),
    "tied_embeddings": "output.weight" not in tensors,
    "context_length": said("context_length", None),
    "biases": tuple(b for b, name in biased.items() if f"blk.0.{name}.bias" in tensors),
    "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
    "dtype": dtype,
    "param_dtype": dtype,
  }
  if architecture.startswith("gemma"):
    settings |= {
      "norm": "rms_plus_one",
      "mlp_activations": ("gelu", "linear"),
      "embedding_scale": math.sqrt(emb_dim),
    }
  if architecture in ("gemma2", "gemma3"):
    # The largest of each generation divides by the width of a head's share, not by its size.
    largest = settings["num_layers"] == {"gemma2": 46, "gemma3": 62}[architecture]
    second = architecture == "gemma2"
    settings |= {
      "post_norms": True,
      "attention_scale": (emb_dim / heads if largest else head_dim) ** -0.5,
      "attention_softcap": said("attn_logit_softcapping", 50.0) if second else None,
      "logit_softcap": said("final_logit_softcapping", 30.0) if second else None,
      "sliding_window": said("attention.sliding_window"),
      "window_pattern": (True, False) if second else (*[True] * 5, False),
      "local_rope_theta": None if second else float(said("rope.freq_base_swa", 10_000.0)),
    }
  return DecoderConfig(**settings)


def _scaling(
  path: Path, said: Callable[..., Any], factors: "_Quantized | None", head_dim: int
) -> RopeScaling | None:
  kind = said("rope.scaling.type", "none")
  if kind == "linear":
    return RopeScaling("linear", _decimal(said("rope.scaling.factor")))
  if kind != "none":
    raise CheckpointError(
      f"{path} scales its rotary positions by {kind!r}, which is not supported."
    )
  if factors is None:
    return None
  # The file keeps what the scaling comes to: each frequency is divided by its factor.
  slower = factors.read().astype(np.float64)
  found = RopeScaling("llama3", float(slower.max()))
  theta = float(said("rope.freq_base", 10_000.0))
  frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
  turns = found.original_length * frequency / (2 * math.pi)
  low, high = found.low_frequency_factor, found.high_frequency_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  if not np.allclose(slower, 1 / ((1 - kept) / found.factor + kept), rtol=1e-3):
    raise CheckpointError(f"{path}: {_ROPE_FACTORS} is not the scaling of Llama 3, which is read.")
  return found


def _decimal(stored: float) -> float:
  """The decimal that was meant by a number stored in 32 bits: 1e-5, not 9.999999747378752e-06."""
  return float(str(np.float32(stored)))


# How each `tokenizer.ggml.pre` cuts text before the byte pairs are merged. "gpt-2" is the cut that
# ByteLevel's own expression makes; SmolLM's cuts out every digit first; the others differ in how many digits stay
# together.
_PIECES = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[str, Callable[[], list[Any]]] = {
  "gpt-2": lambda: [],
  "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True)],
  "llama-bpe": lambda: [pre_tokenizers.Split(Regex(_PIECES % "{1,3}"), "isolated")],
  "qwen2": lambda: [pre_tokenizers.Split(Regex(_PIECES % ""), "isolated")],
}


def _sentencepiece(value: Callable[..., Any]) -> SentencePieceVocabulary:
  tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
  ids = {role: value(f"tokenizer.ggml.{role}_token_id", -1) for role in SPECIAL_ROLES}
  model = sentencepiece_model(
    zip(tokens, value("tokenizer.ggml.scores"), kinds, strict=True),
    ids,
    add_dummy_prefix=value("tokenizer.ggml.add_space_prefix", True),
  )
  template = value("tokenizer.chat_template", None)
  control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
  spelt = [token for token in control if template and token in template]
  return SentencePieceVocabulary(model, control_tokens=spelt, chat_template=template)


def _vocabulary(path: Path, value: Callable[..., Any]) -> Vocabulary:
  kind, cut = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre", "gpt-2")
  if kind == "llama":
    return _sentencepiece(value)
  if kind != "gpt2" or cut not in _PRE_TOKENIZERS:
    raise CheckpointError(
      f"{path} has a tokenizer of kind {kind!r} cut by {cut!r}; SentencePiece ('llama') and byte-level BPE "
      f"('gpt2') cut by {' or '.join(map(repr, _PRE_TOKENIZERS))} are read."
    )
  tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
  merges = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges")]
  ids = {token: i for i, token in enumerate(tokens)}
  # Llama 3 takes a piece that is a token as it is, also where no merges lead to it.
  try:
    pairs = models.BPE(vocab=ids, merges=merges, ignore_merges=cut == "llama-bpe")
  except Exception as error:  # tokenizers raises bare Exception
    raise CheckpointError(f"{path} has a torn tokenizer ({error}).") from error
  tokenizer = Tokenizer(pairs)
  if cut == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  before = value("tokenizer.ggml.add_space_prefix", False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *_PRE_TOKENIZERS[cut](),
      pre_tokenizers.ByteLevel(add_prefix_space=before, use_regex=cut in ("gpt-2", "smollm")),
    ]
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
