"""A model as somebody published it, before it is on a mesh."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flan_jax.models import ModelConfig
from flan_jax.vocabularies import Vocabulary

PyTree = Any


class Published(NamedTuple):
  """Args:
  vocabulary: None: it came without one.
  load: from the shardings of the parameters to the parameters, read one tensor at a time.
  stop_ids: tokens at which generation ends.
  start_id: an encoder-decoder's first decoder token.
  generation: how it is to generate, in the words of transformers' generation_config.json.
  """

  config: ModelConfig
  vocabulary: Vocabulary | None
  load: Callable[[PyTree], PyTree]
  stop_ids: tuple[int, ...]
  start_id: int = 0
  generation: Mapping[str, Any] = MappingProxyType({})
