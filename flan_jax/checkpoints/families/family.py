"""How a family of models is written, and what several families share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flan_jax.checkpoints.tensor_forms import SAME, TRANSPOSED, TensorForm
from flan_jax.errors import CheckpointError, nearest
from flan_jax.models import DecoderConfig, ModelConfig, RopeScaling

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
  """How a family is written.

  Args:
    model_type, architecture: as `config.json` has them.
    names: of a configuration: path of our parameter -> name of their tensor.
    read: from their settings to ours.
    write: from ours to theirs; need not check that it can.
    base: what stands before the names of a folder that was saved with the logits, and may be missing.
    forms: how a tensor holds what our parameter holds, by path; a kernel is transposed else.
    ignored: patterns of tensors that carry nothing.
  """

  model_type: str
  architecture: str
  names: Callable[[Any], Mapping[str, str]]
  read: Callable[[Json], ModelConfig]
  write: Callable[[Any], dict[str, Any]]
  base: str = "model."
  forms: Mapping[str, TensorForm] = field(default_factory=dict)
  kernels: TensorForm = TRANSPOSED
  ignored: tuple[str, ...] = ()

  def form(self, path: str) -> TensorForm:
    """How their tensor holds the parameter at this path."""
    return self.forms.get(path, self.kernels if path.endswith("/kernel") else SAME)


_BUFFERS = ("*.attn.bias", "*.attention.bias", "*.masked_bias", "*.inv_freq")


def decoder_family(
  kind: str,
  architecture: str,
  names: Mapping[str, str],
  read: Callable[[Json], ModelConfig],
  write: Callable[[Any], dict[str, Any]],
  base: str = "model.",
  **forms: Any,
) -> Family:
  return Family(kind, architecture, lambda _: names, read, write, base, ignored=_BUFFERS, **forms)


_ACTIVATIONS = {
  "gelu": "gelu_exact",
  "gelu_fast": "gelu",
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
}
THEIR_ACTIVATIONS = {"gelu_exact": "gelu", "gelu": "gelu_new", "relu": "relu", "silu": "silu"}


def activation(name: str) -> str:
  if not isinstance(name, str) or name not in _ACTIVATIONS:
    close = ", ".join(nearest(str(name), _ACTIVATIONS) or sorted(_ACTIVATIONS))
    raise CheckpointError(f"the activation {name!r} is not known; known: {close}.")
  return _ACTIVATIONS[name]


def refuse(settings: Json, **unless: Any) -> None:
  """Settings that would have to be obeyed and are not."""
  for name, value in unless.items():
    if settings.get(name, value) not in (value, None):
      raise CheckpointError(f"config.json: {name}={settings[name]!r} is not supported.")


def rope(settings: Json, theta: float, layers: str = "") -> tuple[float, RopeScaling | None]:
  """Base and scaling, as config.json of transformers 5 or of earlier ones has them.

  Args:
    theta: where none is given.
    layers: the kind of layers, where they differ.
  """
  for name in ("rope_parameters", "rope_scaling"):
    if not isinstance(settings.get(name) or {}, Mapping):
      raise CheckpointError(f"config.json: {name}={settings[name]!r} is no mapping.")
  written = settings.get("rope_parameters") or {}
  written = written.get(layers) or written
  scaling = written or settings.get("rope_scaling") or {}
  theta = float(written.get("rope_theta") or settings.get("rope_theta") or theta)
  kind = scaling.get("rope_type", scaling.get("type", "default"))
  if kind == "default":
    return theta, None
  if kind == "linear":
    return theta, RopeScaling("linear", float(scaling["factor"]))
  if kind != "llama3":
    raise CheckpointError(
      f"config.json: rotary scaling of type {kind!r} is not supported; 'linear' and 'llama3' are."
    )
  return theta, RopeScaling(
    "llama3",
    float(scaling["factor"]),
    float(scaling["low_freq_factor"]),
    float(scaling["high_freq_factor"]),
    int(scaling["original_max_position_embeddings"]),
  )


def written_rope(theta: float, scaling: Any) -> dict[str, Any]:
  if scaling is None:
    return {"rope_theta": theta, "rope_type": "default"}
  written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
  if scaling.kind == "llama3":
    written |= {
      "low_freq_factor": scaling.low_frequency_factor,
      "high_freq_factor": scaling.high_frequency_factor,
      "original_max_position_embeddings": scaling.original_length,
    }
  return {"rope_theta": theta, **written}


def written_length(config: DecoderConfig, name: str) -> dict[str, Any]:
  """The length of its texts under their name, where it is known."""
  return {} if config.context_length is None else {name: config.context_length}


def written_ropes(config: DecoderConfig) -> dict[str, Any]:
  """In the words of transformers 5 and of the versions before it."""
  written = written_rope(config.rope_theta, config.rope_scaling)
  old = {name: value for name, value in written.items() if name != "rope_theta"}
  return {
    "rope_parameters": written,
    "rope_theta": config.rope_theta,
    "rope_scaling": old if config.rope_scaling else None,
  }


def window(settings: Json, usual: Callable[[int], bool]) -> dict[str, Any]:
  """The window and the layers that have it.

  Args:
    usual: whether a layer has it, where config.json lists no layers.
  """
  layers = settings["num_hidden_layers"]
  kinds = settings.get("layer_types")
  if kinds is None:
    windowed = [usual(i) for i in range(layers)]
  else:
    windowed = [kind == "sliding_attention" for kind in kinds[:layers]]
  window = settings.get("sliding_window")
  if window is None or not any(windowed):
    return {}
  return {"sliding_window": window, "window_pattern": _period(windowed)}


def _period(values: Sequence[bool]) -> tuple[bool, ...]:
  """The shortest beginning that gives the whole when it is repeated."""
  return next(
    tuple(values[:size])
    for size in range(1, len(values) + 1)
    if all(value == values[i % size] for i, value in enumerate(values))
  )


def written_window(config: DecoderConfig) -> dict[str, Any]:
  kinds = ["sliding_attention" if has else "full_attention" for has in config.windowed]
  return {"sliding_window": config.sliding_window, "layer_types": kinds}


def layer_names(prefix: str, parts: Mapping[str, str], leaves: Mapping[str, str]) -> dict[str, str]:
  """Every leaf ("kernel": "weight", ...) of every part of a layer."""
  return {
    f"layers/{ours}/{leaf}": f"{prefix}.{theirs}.{name}"
    for ours, theirs in parts.items()
    for leaf, name in leaves.items()
  }


WEIGHT, KERNEL = {"scale": "weight"}, {"kernel": "weight", "bias": "bias"}
NORM = {"scale": "weight", "bias": "bias"}
