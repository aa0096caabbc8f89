"""Folders as Hugging Face's libraries write them: config.json, safetensors, a tokenizer.

torch and transformers are not needed for either direction.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flan_jax.checkpoints.families import Family, family_for, family_of
from flan_jax.checkpoints.peft import adapted_tensors, base_of, is_adapters
from flan_jax.checkpoints.published import Published
from flan_jax.checkpoints.safetensors import SHARD_BYTES, stored_tensors, write_tensors
from flan_jax.checkpoints.streaming import (
  SourceTensor,
  check_tensors,
  load_params,
  stored_params,
)
from flan_jax.data.atomic import build_once
from flan_jax.errors import CheckpointError, ConfigError, FlanJaxError
from flan_jax.models import EncoderDecoderConfig, LanguageModel, ModelConfig, build_model
from flan_jax.vocabularies import (
  BPEVocabulary,
  ByteVocabulary,
  SentencePieceVocabulary,
  Vocabulary,
)

PyTree = Any


def open_folder(folder: Path, dtype: str = "float32", adapters: Path | None = None) -> Published:
  """The model in a folder. Its tensors are read when it is loaded.

  Args:
    dtype: of the parameters and of the activations, until the configuration is replaced.
    adapters: a folder of PEFT's, which is merged into the model.

  Raises:
    CheckpointError: a folder is torn, or holds what this library does not read.
  """
  if is_adapters(folder) and not (folder / "config.json").is_file():
    raise CheckpointError(
      f"{folder} holds adapters, not a model: open their base, which they call {base_of(folder)!r}, with "
      f"adapters={str(folder)!r}."
    )
  settings, family, config, pictures = _described(folder)
  tensors: dict[str, SourceTensor] = dict(stored_tensors(folder))
  if pictures:
    tensors = _text_model(tensors)
  tied = _is_tied(config, family, tensors)
  config = dataclasses.replace(config, tied_embeddings=tied, dtype=dtype, param_dtype=dtype)
  model = build_model(config)
  check_tensors(str(folder), model, family, tensors)
  if adapters is not None:
    tensors = adapted_tensors(adapters, model, family, tensors)
  vocabulary = tokenizer_of(folder)
  if vocabulary is not None and vocabulary.size > config.vocab_size:
    raise CheckpointError(
      f"the tokenizer in {folder} has {vocabulary.size:,} ids, and the embedding only {config.vocab_size:,} rows."
    )
  generation = _generation(folder, settings)
  return Published(
    config,
    vocabulary,
    lambda shardings: load_params(str(folder), model, family, tensors, shardings),
    stop_ids(generation, vocabulary),
    generation.get("decoder_start_token_id") or 0,
    generation,
  )


def folder_config(folder: Path) -> ModelConfig:
  """What config.json alone says of the model in a folder.

  Raises:
    CheckpointError: it is torn, or tells a model that this library does not compute.
  """
  return _described(folder)[2]


def _described(folder: Path) -> tuple[dict[str, Any], Family, ModelConfig, bool]:
  """The settings in config.json, what they mean, and whether the model also sees pictures."""
  settings = _json(folder / "config.json")
  pictures = settings.get("model_type") == "gemma3" and "text_config" in settings
  if pictures:
    settings = {**settings, **settings["text_config"], "model_type": "gemma3_text"}
  try:
    family = family_of(settings)
    config = family.read(settings)
  except KeyError as error:
    raise CheckpointError(f"{folder / 'config.json'} does not say {error}.") from None
  except (FlanJaxError, TypeError, AttributeError) as error:
    raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
  return settings, family, config, pictures


def _is_tied(config: ModelConfig, family: Family, tensors: Mapping[str, SourceTensor]) -> bool:
  """Whether the table of embeddings makes the logits.

  Versions of transformers say different things in config.json; like transformers we go by what the file holds.
  """
  names = family.names(config)
  head, table = names["unembed/kernel"], names["embed/embedding"]
  if isinstance(config, EncoderDecoderConfig):
    return head not in tensors
  if head not in tensors or not config.tied_embeddings:
    return config.tied_embeddings
  table = table if table in tensors else table.removeprefix(family.base)
  if table not in tensors:
    return True
  return np.array_equal(tensors[head].read().view(np.uint8), tensors[table].read().view(np.uint8))


def _text_model(tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
  """Of a model that also sees, what reads and writes, by the names of a model that only does that."""
  sight = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")
  return {
    re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)
    if not name.endswith("lm_head.weight")
    else "lm_head.weight": tensor
    for name, tensor in tensors.items()
    if not sight.match(name)
  }


# What transformers 4 and 5 look for in config.json too.
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def _generation(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
  """How a folder's model is to generate; what its generation_config.json leaves out, config.json may say."""
  path = folder / "generation_config.json"
  said = {name: settings[name] for name in _SPECIAL_IDS if settings.get(name) is not None}
  said |= _json(path) if path.is_file() else {}
  return {name: value for name, value in said.items() if not name.startswith(("_", "transformers"))}


def stop_ids(generation: Mapping[str, Any], vocabulary: Vocabulary | None) -> tuple[int, ...]:
  """The tokens at which generation ends, as its settings say, else the vocabulary."""
  said = generation.get("eos_token_id")
  if said is None:
    return () if vocabulary is None else (vocabulary.eos_id,)
  return tuple(said) if isinstance(said, list) else (said,)


def tokenizer_of(folder: Path) -> Vocabulary | None:
  """The tokenizer of a folder; None where it has none."""
  path = folder / "tokenizer_config.json"
  settings = _json(path) if path.is_file() else {}
  template = _chat_template(folder, settings)
  named = _named_tokens(folder, settings)
  if settings.get("tokenizer_class") == "ByT5Tokenizer":
    return ByteVocabulary(extra_ids=settings.get("extra_ids", 125))
  if (folder / "spiece.model").is_file():
    # T5's own, which its tokenizer.json only follows closely.
    return SentencePieceVocabulary(
      folder / "spiece.model",
      settings.get("extra_ids", 100),
      settings.get("control_tokens", ()),
      template,
      settings.get("added_tokens", ()),
    )
  if (folder / "tokenizer.json").is_file():
    tokens: dict[str, Any] = {
      role: _text(named.get(role)) for role in ("eos_token", "bos_token", "pad_token", "unk_token")
    }
    if tokens["eos_token"] is None:
      raise CheckpointError(f"{path} does not say which token ends a text (eos_token).")
    file = folder / "tokenizer.json"
    tokens |= {"chat_template": template, "added": _added_tokens(folder, settings)}
    vocabulary = BPEVocabulary.from_file(file, **tokens)
    begun = vocabulary.tokenizer.encode("").ids[:1]
    if vocabulary.bos_id is not None and begun != [vocabulary.bos_id]:
      # A tokenizer that names a begin token and does not put it before texts: none was trained with it.
      tokens["bos_token"] = None
      vocabulary = BPEVocabulary.from_file(file, **tokens)
    return vocabulary
  if (folder / "tokenizer.model").is_file():
    return SentencePieceVocabulary(folder / "tokenizer.model", chat_template=template)
  return None


def named_begin_token(folder: Path) -> str | None:
  """The begin token that a folder's tokenizer names, also where it puts none before texts; else None."""
  path = folder / "tokenizer_config.json"
  return _text(_named_tokens(folder, _json(path)).get("bos_token")) if path.is_file() else None


def _named_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
  special = folder / "special_tokens_map.json"
  return {**(_json(special) if special.is_file() else {}), **settings}


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
  """Tokens by id that older folders keep beside their tokenizer.json."""
  path = folder / "added_tokens.json"
  beside = _json(path) if path.is_file() else {}
  return {
    **{number: {"content": content} for content, number in beside.items()},
    **{
      int(number): about for number, about in (settings.get("added_tokens_decoder") or {}).items()
    },
  }


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
  path = folder / "chat_template.jinja"
  if path.is_file():
    return path.read_text(encoding="utf-8")
  template = settings.get("chat_template")
  if isinstance(template, list):
    by_name = {each["name"]: each["template"] for each in template}
    return by_name.get("default", next(iter(by_name.values()), None))
  return template


def _text(token: Any) -> str | None:
  return token["content"] if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise CheckpointError(f"{path}: no such file.") from None
  except ValueError as error:
    raise CheckpointError(f"{path} is damaged ({error}); fetch it again.") from None
  if not isinstance(found, dict):
    raise CheckpointError(f"{path} holds no settings, but {type(found).__name__}.")
  return found


def write_folder(
  folder: Path,
  model: LanguageModel,
  params: PyTree,
  vocabulary: Vocabulary | None = None,
  *,
  dtype: str | None = None,
  settings: Mapping[str, Any] | None = None,
  stop_ids: tuple[int, ...] = (),
  generation: Mapping[str, Any] | None = None,
  shard_bytes: int = SHARD_BYTES,
  card: str = "",
) -> None:
  """Writes a model as transformers and vLLM open it: whole, or not at all.

  Args:
    folder: must not exist.
    dtype: of the tensors; None: that of the parameters.
    settings: more for config.json, such as what a published model said that ours does not.
    stop_ids: tokens at which generation ends.
    generation: more for generation_config.json, in transformers' words.
    card: of README.md.

  Raises:
    ConfigError: the folder exists, or no family of theirs has such a model.
    CheckpointError: tensors hold numbers that are not finite, or not in `dtype`; all are named at once.
    StorageError: the disk is full.
  """
  family = family_for(model.config)
  if folder.exists():
    raise ConfigError(f"{folder} exists: write to another folder, or remove it first.")
  shapes, read = stored_params(model, family, params)
  kept = jnp.dtype(dtype or model.config.param_dtype)
  tensors = {name: (shape, kept) for name, shape in shapes.items()}
  about = {
    **(settings or {}),
    **family.write(model.config),
    "model_type": family.model_type,
    "architectures": [family.architecture],
    "torch_dtype": kept.name,
  }
  generates = dict(generation or {})
  if stop_ids:
    generates["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
  if model.layout == "encoder_decoder":
    generates = {"decoder_start_token_id": 0, "pad_token_id": 0} | generates
  about |= {name: generates[name] for name in _SPECIAL_IDS if name in generates}

  broken: list[str] = []

  def checked(name: str) -> np.ndarray:
    array = np.asarray(read(name), kept)
    if not np.isfinite(array).all():
      broken.append(name)
    return array

  def write(directory: Path) -> None:
    for _ in write_tensors(directory, tensors, checked, shard_bytes):
      pass
    if broken:
      raise CheckpointError(
        f"{len(broken)} tensors would hold numbers that are not finite in {kept.name}: {', '.join(broken[:8])}."
      )
    _write_json(directory / "config.json", about)
    _write_json(directory / "generation_config.json", generates)
    if card:
      (directory / "README.md").write_text(card, encoding="utf-8")
    if vocabulary is not None:
      for name, content in vocabulary.hugging_face_files().items():
        (directory / name).write_bytes(content)

  build_once(folder, write)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")
