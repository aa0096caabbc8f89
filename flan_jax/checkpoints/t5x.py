"""Checkpoints of T5X: TensorStore's zarr folders, Orbax's, and the single files of its first days.

A folder holds `checkpoint`, a tree in msgpack whose leaves are small arrays, or say in which zarr folder
beside it an array lies. A scanned model keeps its layers in one array, along axis 1.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from flax import serialization, traverse_util

from flan_jax.checkpoints.families import Family
from flan_jax.checkpoints.published import Published
from flan_jax.checkpoints.streaming import check_tensors, load_params
from flan_jax.checkpoints.tensor_forms import SAME, TRANSPOSED
from flan_jax.errors import CheckpointError
from flan_jax.models import EncoderDecoderConfig, build_model

_TREE = "checkpoint"
_PLACEHOLDER = "PLACEHOLDER://"


@dataclass(frozen=True)
class T5XTensor:
  """An array of a checkpoint.

  Attributes:
    open: gives the array: of NumPy, or of TensorStore, which reads what is asked for.
    layer: which one of a scanned model's; None: all of it.
  """

  open: Callable[[], Any]
  layer: int | None = None

  @cached_property
  def array(self) -> Any:
    return self.open()

  @property
  def shape(self) -> tuple[int, ...]:
    whole = tuple(self.array.shape)
    return whole if self.layer is None else whole[:1] + whole[2:]

  def read(self) -> np.ndarray:
    part = self.array if self.layer is None else self.array[:, self.layer]
    return np.asarray(part if isinstance(part, np.ndarray) else part.read().result())


def is_t5x(path: Path) -> bool:
  """Whether a file or folder looks like a checkpoint of T5X."""
  file = path / _TREE if path.is_dir() else path
  if not file.is_file():
    return False
  with file.open("rb") as opened:
    start = opened.read(32)
  # A map of a few entries, of which one of these is the first.
  return any(name in start for name in (b"version", b"optimizer", b"target"))


def t5x_tensors(path: Path) -> dict[str, T5XTensor]:
  """Every array of a checkpoint by its path, such as "target/encoder/encoder_norm/scale".

  Raises:
    CheckpointError: it is torn, or no checkpoint of T5X.
  """
  file = path / _TREE if path.is_dir() else path
  try:
    tree = serialization.msgpack_restore(file.read_bytes())
    leaves = traverse_util.flatten_dict(tree, is_leaf=lambda _, x: "driver" in x, sep="/")
  except FileNotFoundError:
    raise CheckpointError(f"{path}: there is no {_TREE!r} in this folder.") from None
  except Exception as error:
    raise CheckpointError(f"{file} is torn or no checkpoint of T5X ({error}).") from None
  found = {}
  for name, leaf in leaves.items():
    if isinstance(leaf, Mapping) and "driver" in leaf:
      folder = file.parent / leaf["kvstore"]["path"]
      found[name] = T5XTensor(partial(_opened, folder, leaf))
    elif isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
      found[name] = T5XTensor(partial(_opened, file.parent / leaf.removeprefix(_PLACEHOLDER)))
    elif isinstance(leaf, (np.ndarray, np.generic)):
      found[name] = T5XTensor(partial(np.asarray, leaf))
  return found


def open_t5x(path: Path, dtype: str = "float32") -> Published:
  """The T5 in a checkpoint. Its shape is that of its arrays; it comes without a tokenizer.

  Args:
    dtype: of the parameters and of the activations, until the configuration is replaced.

  Raises:
    CheckpointError: it is torn, or holds no T5.
  """
  found, target = t5x_tensors(path), re.compile(r"^(?:optimizer/)?target/")
  tensors = {target.sub("", name): tensor for name, tensor in found.items() if target.match(name)}
  if "token_embedder/embedding" not in tensors:
    some = ", ".join(sorted(found)[:3])
    raise CheckpointError(f"{path} holds no T5: it has no token_embedder/embedding, but {some}.")
  tensors = _unscanned(tensors)
  config = _config(tensors, dtype)
  model = build_model(config)
  check_tensors(str(path), model, _FAMILY, tensors)
  load = partial(load_params, str(path), model, _FAMILY, tensors)
  return Published(config, None, load, (1,))


def _opened(folder: Path, about: Mapping[str, Any] | None = None) -> Any:
  """The array in a zarr folder; `about` says again what the folder's own .zarray says, which may be lost."""
  spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
  assumed = about is not None and not (folder / ".zarray").is_file()
  if about is not None and assumed:
    plain = {"zarr_format": 2, "order": "C", "filters": None, "fill_value": None}
    spec["metadata"] = {**plain, "dtype": np.dtype(about["dtype"]).str, **about["metadata"]}
  try:
    return tensorstore.open(spec, read=True, open=True, assume_metadata=assumed).result()
  except ValueError as error:
    said = str(error).split(" [")[0]
    raise CheckpointError(f"{folder} is missing or torn ({said}).") from None


def _unscanned(tensors: Mapping[str, T5XTensor]) -> dict[str, T5XTensor]:
  """As if the layers had not been scanned."""
  plain = {}
  for name, tensor in tensors.items():
    side, _, rest = name.partition("/")
    if not rest.startswith(f"{side}/"):
      plain[name] = tensor
      continue
    for layer in range(tensor.array.shape[1]):
      plain[f"{side}/layers_{layer}/{rest.removeprefix(f'{side}/')}"] = T5XTensor(
        tensor.open, layer
      )
  return plain


def _config(tensors: Mapping[str, T5XTensor], dtype: str) -> EncoderDecoderConfig:
  def layers(side: str) -> int:
    found = (re.match(rf"{side}/layers_(\d+)/", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)

  try:
    vocab_size, emb_dim = tensors["token_embedder/embedding"].shape
    heads, buckets = tensors["encoder/relpos_bias/rel_embedding"].shape
    width = tensors["encoder/layers_0/attention/query/kernel"].shape[-1]
    mlp_dim = tensors["encoder/layers_0/mlp/wo/kernel"].shape[0]
  except (KeyError, ValueError) as error:
    raise CheckpointError(f"this is no T5 as T5X writes it: {error} is missing.") from None
  gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
  return EncoderDecoderConfig(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=heads,
    head_dim=width // heads,
    num_encoder_layers=layers("encoder"),
    num_decoder_layers=layers("decoder"),
    mlp_dim=mlp_dim,
    mlp_activations=("gelu", "linear") if gated else ("relu",),
    tied_embeddings="decoder/logits_dense/kernel" not in tensors,
    relative_buckets=buckets,
    dtype=dtype,
    param_dtype=dtype,
  )


def _names(config: EncoderDecoderConfig) -> dict[str, str]:
  names = {
    "embed/embedding": "token_embedder/embedding",
    "unembed/kernel": "decoder/logits_dense/kernel",
  }
  gated = len(config.mlp_activations) == 2
  wide = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
  for side, attentions in (
    ("encoder", {"attention": ("attention", "pre_attention")}),
    (
      "decoder",
      {
        "self_attention": ("self_attention", "pre_self_attention"),
        "cross_attention": ("encoder_decoder_attention", "pre_cross_attention"),
      },
    ),
  ):
    ours, theirs = f"{side}/layers", f"{side}/layers_{{}}"
    for name, (attention, norm) in attentions.items():
      for part in ("query", "key", "value", "out"):
        names[f"{ours}/{name}/{part}/kernel"] = f"{theirs}/{attention}/{part}/kernel"
      names[f"{ours}/{name}_norm/scale"] = f"{theirs}/{norm}_layer_norm/scale"
    for part, name in {**wide, "down": "wo"}.items():
      names[f"{ours}/mlp/{part}/kernel"] = f"{theirs}/mlp/{name}/kernel"
    names[f"{ours}/mlp_norm/scale"] = f"{theirs}/pre_mlp_layer_norm/scale"
    names[f"{side}/norm/scale"] = f"{side}/{side}_norm/scale"
    names[f"{side}/relative_bias/embedding"] = f"{side}/relpos_bias/rel_embedding"
  return names


_FAMILY = Family(
  "t5x",
  "T5X",
  _names,
  read=lambda settings: EncoderDecoderConfig(**settings),
  write=lambda config: {},
  base="",
  forms={f"{side}/relative_bias/embedding": TRANSPOSED for side in ("encoder", "decoder")},
  kernels=SAME,
)
