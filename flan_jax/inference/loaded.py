"""A model in one object, for who wants to ask it from Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flan_jax.checkpoints.pretrained import open_pretrained
from flan_jax.data.home import data_home
from flan_jax.errors import CheckpointError, ConfigError
from flan_jax.inference.generation import check_ids, generate
from flan_jax.models import LanguageModel, Params, build_model
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings
from flan_jax.vocabularies import Vocabulary


@dataclass(frozen=True)
class LoadedModel:
  """A model with its parameters.

  Attributes:
    model: shapes and pure functions.
    params: on the devices.
    stop_ids: tokens at which generation ends.
    start_id: an encoder-decoder's first decoder token.
  """

  origin: str
  model: LanguageModel
  params: Params
  vocabulary: Vocabulary | None
  stop_ids: tuple[int, ...]
  start_id: int

  @property
  def tokenizer(self) -> Vocabulary:
    """Text to ids and back.

    Raises:
      CheckpointError: the model came without one.
    """
    if self.vocabulary is None:
      raise CheckpointError(f"{self.origin} came without a tokenizer.")
    return self.vocabulary

  def logits(
    self,
    input_ids: Int[Array, "B S"],
    attention_mask: Int[Array, "B S"] | None = None,
    decoder_input_ids: Int[Array, "B T"] | None = None,
    decoder_attention_mask: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T V"]:
    """Logits in float32, of every token of a decoder or of every decoder token.

    Args:
      attention_mask: 1 on tokens, 0 on padding, which may stand on either side and whose own logits mean
        nothing.
      decoder_input_ids: what an encoder-decoder has written so far, begin token included.
    """
    if (decoder_input_ids is None) != (self.model.layout == "decoder"):
      verb = "needs" if decoder_input_ids is None else "has no use for"
      raise ConfigError(f"{self.origin}: logits of this model {verb} decoder_input_ids.")
    told = np.ones(np.shape(input_ids)) if attention_mask is None else np.asarray(attention_mask)
    check_ids(self.model, input_ids, int(told.sum(-1).max()), "input_ids")
    if decoder_input_ids is not None:
      check_ids(self.model, decoder_input_ids, 0, "decoder_input_ids")
    if decoder_input_ids is None:
      batch = _side("decoder", input_ids, attention_mask)
    else:
      batch = _side("encoder", input_ids, attention_mask)
      batch |= _side("decoder", decoder_input_ids, decoder_attention_mask)
      if attention_mask is not None and decoder_attention_mask is None:
        batch["decoder_segment_ids"] = jnp.ones(batch["decoder_input_tokens"].shape, jnp.int32)
    return _logits(self.model, self.params, batch)

  def generate(
    self,
    prompts: Sequence[str | Sequence[int]] | Int[Array, "B S"],
    max_new_tokens: int = 64,
    attention_mask: Int[Array, "B S"] | None = None,
    **settings: Any,
  ) -> list[list[int]]:
    """The new ids of each prompt, without the one that stopped it.

    Args:
      prompts: texts; or ids of any lengths, as the model is to read them.
      attention_mask: 0 on ids that are padding.
      settings: of `flan_jax.inference.generate`.
    """
    stop = settings.pop("eos_ids", self.stop_ids)
    ids = [self._ids(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    if attention_mask is not None:
      masked = zip(ids, np.asarray(attention_mask), strict=True)
      ids = [np.asarray(prompt)[mask > 0].tolist() for prompt, mask in masked]
    return generate(
      self.model, self.params, ids, max_new_tokens, stop, start_id=self.start_id, **settings
    )

  def _ids(self, prompt: str) -> list[int]:
    """A text as the model was trained to read it: after its begin token, or before its end token."""
    ids = self.tokenizer.encode(prompt)
    if self.model.layout == "encoder_decoder":
      return [*ids, self.tokenizer.eos_id]
    return ids if self.tokenizer.bos_id is None else [self.tokenizer.bos_id, *ids]


def load(
  source: str | Path,
  dtype: str = "float32",
  adapters: str | Path | None = None,
  mesh: MeshConfig = MeshConfig(),
) -> LoadedModel:
  """Opens a published model: a folder of Hugging Face's layout, a GGUF file, a checkpoint of T5X, a package.

  Args:
    source: see `flan_jax.checkpoints.pretrained.open_pretrained`.
    dtype: of parameters and activations.
    adapters: a folder of PEFT's, which is merged into the model.

  Raises:
    CheckpointError: there is no such model, or it is torn or not understood.
  """
  found = open_pretrained(source, dtype, adapters=adapters, cache_dir=data_home())
  model = build_model(found.config)
  layout = make_layout(model, make_mesh(mesh))
  params = found.load(param_shardings(model, layout))
  return LoadedModel(str(source), model, params, found.vocabulary, found.stop_ids, found.start_id)


@jax.jit(static_argnames="model")
def _logits(model: LanguageModel, params: Params, batch: dict[str, Array]) -> Float[Array, "B T V"]:
  return model.logits(params, batch)


def _side(name: str, ids: Any, mask: Any) -> dict[str, Array]:
  side = {f"{name}_input_tokens": jnp.asarray(np.asarray(ids), jnp.int32)}
  if mask is not None:
    side[f"{name}_segment_ids"] = jnp.asarray(np.asarray(mask), jnp.int32)
  return side
