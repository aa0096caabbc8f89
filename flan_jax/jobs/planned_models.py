"""Models of which only the shapes are asked for: nothing that they hold is opened."""

from pathlib import Path

from flan_jax.models import ModelConfig
from flan_jax.vocabularies import ByteVocabulary


class UnreadVocabulary(ByteVocabulary):
  """In the place of a vocabulary that nobody will read with."""

  def __init__(self) -> None:
    super().__init__()
    self.size = 0


def published_config(source: str, dtype: str, adapters: str | None, cache_dir: Path) -> ModelConfig:
  """What a published model says of itself. Of a folder only its config.json is read."""
  from flan_jax.checkpoints.hugging_face import folder_config
  from flan_jax.checkpoints.pretrained import open_pretrained

  if (Path(source) / "config.json").is_file():
    return folder_config(Path(source))
  return open_pretrained(source, dtype, adapters=adapters, cache_dir=cache_dir).config
