"""Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors. Both ways, without PEFT.

For `model.layers.0.self_attn.q_proj` a file holds, under `base_model.model.` and that name,
  lora_A.weight [r, in], lora_B.weight [out, r], and with DoRA lora_magnitude_vector [out].
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flan_jax.checkpoints.families import Family, family_for
from flan_jax.checkpoints.safetensors import tensors_of, write_file
from flan_jax.checkpoints.streaming import Part, SourceTensor, parts_of
from flan_jax.checkpoints.tensor_forms import SAME, Thirds
from flan_jax.data.atomic import build_once
from flan_jax.errors import CheckpointError, ConfigError, nearest
from flan_jax.models import LanguageModel, LoraConfig
from flan_jax.models.layers import column_norms

PyTree = Any

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva", "corda")


@dataclasses.dataclass(frozen=True)
class AdaptedTensor:
  """A tensor of a folder with an adapter merged into it: V = W + s B A, with DoRA V m / |V|.

  Args:
    scale: s.
    transposed: W is [in, out], as GPT-2 has it, not [out, in].
  """

  base: SourceTensor
  a: SourceTensor
  b: SourceTensor
  magnitude: SourceTensor | None
  scale: float
  transposed: bool

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def read(self) -> np.ndarray:
    """In float32."""
    a, b = (np.asarray(each.read(), np.float32) for each in (self.a, self.b))
    product = np.float32(self.scale) * (b @ a)
    made = np.asarray(self.base.read(), np.float32) + (product.T if self.transposed else product)
    if self.magnitude is None:
      return made
    inputs = 0 if self.transposed else 1
    norms = np.linalg.norm(made, axis=inputs, keepdims=True)
    magnitude = np.asarray(self.magnitude.read(), np.float32).reshape(norms.shape)
    return made * (magnitude / norms)


def is_adapters(folder: Path) -> bool:
  """Whether a folder holds adapters."""
  return (folder / SETTINGS).is_file()


def base_of(folder: Path) -> str:
  """The model that a folder's adapters say they belong to."""
  return str(_settings(folder).get("base_model_name_or_path") or "")


def adapted_tensors(
  folder: Path, model: LanguageModel, family: Family, tensors: Mapping[str, SourceTensor]
) -> dict[str, SourceTensor]:
  """The tensors of a model with a folder's adapters merged into them, each when it is read.

  Raises:
    CheckpointError: the folder is torn, or its adapters are of another kind or of another model; all that
      does not fit is named at once.
  """
  settings = _settings(folder)
  _check_supported(folder, settings)
  if not (folder / WEIGHTS).is_file():
    raise CheckpointError(f"{folder} holds no {WEIGHTS}.")
  modules: dict[str, dict[str, SourceTensor]] = {}
  wrong, merged = [], dict(tensors)
  # By what they are: a file's own word on it, fan_in_fan_out, PEFT too corrects where it is wrong.
  by_rows = {
    part.name: part.form == SAME or isinstance(part.form, Thirds)
    for part in parts_of(model, family)
    if part.path.endswith("/kernel")
  }
  for name, tensor in tensors_of(folder / WEIGHTS).items():
    found = re.fullmatch(
      r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?",
      name,
    )
    if found is None:
      wrong.append(f"{name} is no part of an adapter")
    else:
      modules.setdefault(found["module"], {})[found["part"]] = tensor
  for module, parts in modules.items():
    full = (f"{module}.weight", f"{family.base}{module}.weight")
    name = next((each for each in full if each in by_rows), "")
    stored = _name_of(name, tensors)
    if stored is None:
      close = nearest(full[0], by_rows, count=1)
      wrong.append(
        f"{module}: the model has no such matrix{f'; nearest: {close[0]}' if close else ''}"
      )
    elif complaint := _misfit(parts, tensors[stored].shape, by_rows[name], settings):
      wrong.append(f"{module}: {complaint}")
    else:
      merged[stored] = AdaptedTensor(
        tensors[stored],
        parts["lora_A"],
        parts["lora_B"],
        parts.get("lora_magnitude_vector"),
        _scale(module, parts["lora_A"].shape[0], settings),
        by_rows[name],
      )
  if wrong or not modules:
    listed = "".join(f"\n  {line}" for line in wrong[:30]) or " there are none in its file."
    raise CheckpointError(f"the adapters in {folder} do not fit the model:{listed}")
  return merged


def write_adapters(
  folder: Path,
  model: LanguageModel,
  config: LoraConfig,
  adapters: PyTree,
  base: PyTree,
  origin: str,
  card: str = "",
) -> None:
  """Writes adapters as PEFT and vLLM open them: whole, or not at all.

  Args:
    folder: must not exist.
    model: that they adapt.
    adapters: as `flan_jax.training.lora.Lora` has them.
    base: the model's parameters, whose norms a magnitude of theirs includes; without magnitudes their shapes.
    origin: name or folder of the model that PEFT is to open beside them.
    card: of README.md.

  Raises:
    ConfigError: the folder exists, or no family of Hugging Face's has such a model.
    StorageError: the disk is full.
  """
  family = family_for(model.config)
  if folder.exists():
    raise ConfigError(f"{folder} exists: write to another folder, or remove it first.")
  leaves = traverse_util.flatten_dict(adapters, sep="/")
  kernels = traverse_util.flatten_dict(base, sep="/")
  modules: dict[str, list[Part]] = {}
  for part in parts_of(model, family):
    if part.path.endswith("/kernel"):
      modules.setdefault(part.name.removesuffix(".weight"), []).append(part)
  adapted = {
    module: parts
    for module, parts in modules.items()
    if any(_beside(part, "lora_a") in leaves for part in parts)
  }
  arrays: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  for module, parts in adapted.items():
    found = _in_their_form(parts, leaves, kernels, config, model, family.kernels == SAME)
    ranks[module] = found["lora_A.weight"].shape[0]
    arrays |= {f"{_PREFIX}{module}.{name}": array for name, array in found.items()}
  # Where one matrix of theirs is several of ours, its rank is the sum of theirs; s stays.
  other = {module: rank for module, rank in ranks.items() if rank != config.rank}
  root = math.sqrt if config.rank_stabilised else float
  settings = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM" if model.layout == "decoder" else "SEQ_2_SEQ_LM",
    "base_model_name_or_path": origin,
    "r": config.rank,
    "lora_alpha": config.alpha,
    "lora_dropout": config.dropout,
    "use_rslora": config.rank_stabilised,
    "use_dora": config.magnitudes,
    "fan_in_fan_out": family.kernels == SAME,
    "target_modules": _targets(list(adapted), list(modules)),
    "rank_pattern": {re.escape(module): rank for module, rank in other.items()},
    "alpha_pattern": {
      re.escape(module): config.alpha * root(rank / config.rank) for module, rank in other.items()
    },
    "bias": "none",
    "inference_mode": True,
  }

  def write(directory: Path) -> None:
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for _ in write_file(directory / WEIGHTS, shapes, arrays.__getitem__):
      pass
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    if card:
      (directory / "README.md").write_text(card, encoding="utf-8")

  build_once(folder, write)


def _in_their_form(
  parts: Sequence[Part],
  leaves: Mapping[str, Any],
  kernels: Mapping[str, Any],
  config: LoraConfig,
  model: LanguageModel,
  by_rows: bool,
) -> dict[str, np.ndarray]:
  """A, B and magnitude of one matrix of theirs. Where it is several of ours, their As stand upon each other, and
  each B in the rows of its A.

  Args:
    by_rows: the matrix is [in, out].
  """
  own = [
    {
      name: np.asarray(_layer(part, leaves[_beside(part, name)]), np.float32)
      for name in ("lora_a", "lora_b", "lora_magnitude")
      if _beside(part, name) in leaves
    }
    for part in parts
  ]
  rank = config.rank * sum(map(bool, own))
  widened, row = [], 0
  for part, found in zip(parts, own, strict=True):
    b = np.zeros((rank, kernels[part.path].shape[-1]), np.float32)
    if found:
      b[row : row + config.rank] = found["lora_b"]
      row += config.rank
    widened.append(b)
  form = parts[0].form
  b = form.theirs(widened, model.config)
  result = {
    "lora_A.weight": np.concatenate([found["lora_a"].T for found in own if found]),
    "lora_B.weight": b.T if by_rows else b,
  }
  if config.magnitudes:
    norms = [
      np.asarray(column_norms(jnp.asarray(_layer(part, kernels[part.path]))))
      + found.get("lora_magnitude", np.float32(0))
      for part, found in zip(parts, own, strict=True)
    ]
    result["lora_magnitude_vector"] = form.theirs([n[None] for n in norms], model.config).reshape(
      -1
    )
  return result


def _layer(part: Part, leaf: Any) -> Any:
  return leaf if part.layer is None else leaf[part.layer]


def _beside(part: Part, name: str) -> str:
  return f"{part.path.removesuffix('kernel')}{name}"


def _targets(adapted: Sequence[str], modules: Sequence[str]) -> list[str]:
  """The modules by the ends of their names, where those speak of no other."""
  ends = sorted({module.rpartition(".")[2] for module in adapted})
  meant = [module for module in modules if module.rpartition(".")[2] in ends]
  return ends if sorted(meant) == sorted(adapted) else list(adapted)


def _name_of(name: str, tensors: Mapping[str, SourceTensor]) -> str | None:
  """As the folder calls a tensor: one that was saved without the logits leaves the base's name out."""
  if name in tensors:
    return name
  without = name.partition(".")[2]
  return without if without in tensors else None


def _misfit(
  parts: Mapping[str, SourceTensor],
  shape: tuple[int, ...],
  by_rows: bool,
  settings: Mapping[str, Any],
) -> str:
  """What is wrong with the adapter of a matrix; "" if nothing."""
  missing = [name for name in ("lora_A", "lora_B") if name not in parts]
  if settings.get("use_dora") and "lora_magnitude_vector" not in parts:
    missing.append("lora_magnitude_vector")
  if missing:
    return f"{' and '.join(missing)} missing"
  wanted = shape[::-1] if by_rows else shape
  a, b = parts["lora_A"].shape, parts["lora_B"].shape
  if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != wanted or a[0] != b[1]:
    return f"A is {a} and B {b}, and the matrix {shape}"
  return ""


def _scale(module: str, rank: int, settings: Mapping[str, Any]) -> float:
  alpha = settings["lora_alpha"]
  for pattern, other in (settings.get("alpha_pattern") or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      alpha = other
      break
  return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _check_supported(folder: Path, settings: Mapping[str, Any]) -> None:
  kind = settings.get("peft_type")
  if kind != "LORA":
    raise CheckpointError(f"{folder} holds adapters of type {kind!r}; LORA is read.")
  if "lora_alpha" not in settings:
    raise CheckpointError(f"{folder / SETTINGS} does not say lora_alpha.")
  unread = {
    name: settings[name]
    for name in (
      "modules_to_save",
      "trainable_token_indices",
      "lora_bias",
      "alora_invocation_tokens",
    )
    if settings.get(name)
  }
  if settings.get("bias", "none") != "none":
    unread["bias"] = settings["bias"]
  # The others take away from the base what the adapters begin with.
  if settings.get("init_lora_weights", True) not in _PLAIN_BEGINNINGS:
    unread["init_lora_weights"] = settings["init_lora_weights"]
  if unread:
    said = ", ".join(f"{name}={value!r}" for name, value in unread.items())
    raise CheckpointError(f"{folder / SETTINGS}: {said} is not supported.")


def _settings(folder: Path) -> dict[str, Any]:
  try:
    found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise CheckpointError(f"{folder / SETTINGS} cannot be read ({error}).") from None
  if not isinstance(found, dict):
    raise CheckpointError(f"{folder / SETTINGS} holds no settings, but {type(found).__name__}.")
  return found
