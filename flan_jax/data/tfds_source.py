"""Records of TensorFlow Datasets."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from typing import Any

from flan_jax.data.sources import Source
from flan_jax.errors import ConfigError, NetworkError, SourceError, UnknownName


class TFDSSource(Source):
  """A TensorFlow dataset, by name and version; class labels become their names.

  A part is a split or a slice of one, such as "train[:90%]". Unlabelled records (class -1) carry
  None. TensorFlow is imported when records are asked for.
  """

  def __init__(self, settings: Mapping[str, Any]):
    super().__init__(settings)
    self._name, _, version = str(settings["tfds"]).partition(":")
    if not version:
      raise ConfigError(
        f"tfds: {self._name} is not pinned to a version; write it like glue/rte:2.0.0."
      )
    self._builder: Any = None

  @property
  def parts(self) -> tuple[str, ...]:
    return tuple(self._prepared().info.splits)

  def records(self, part: str) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    builder = self._prepared()
    splits = builder.info.splits
    if splits and part.partition("[")[0] not in splits:
      raise UnknownName("split", part, splits, f"They are those of the TFDS dataset {self._name}.")
    # Files are read one after the other, so that the order is always the same.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(split=part, shuffle_files=False, read_config=config)
    for record in tfds.as_numpy(dataset):
      yield _plain(builder.info.features, record)

  def _prepared(self) -> Any:
    if self._builder is None:
      builder = self._named()
      from requests.exceptions import RequestException
      from tensorflow_datasets.core.download import downloader

      # Ten tries, as TFDS has it, take three minutes for each dataset where there is no network.
      downloader.MAX_RETRIES = 4
      logging.getLogger("urllib3").setLevel(logging.ERROR)
      advice = "Prepare the dataset once where that works, and name its folder by `data_dir:` in the source."
      try:
        with redirect_stdout(
          sys.stderr
        ):  # where TFDS tells of it; what is printed here may be for a program
          builder.download_and_prepare()
      except RequestException as error:
        raise NetworkError(
          f"TFDS cannot download {self.settings['tfds']}: {error}. {advice}"
        ) from error
      except (ImportError, AssertionError, RuntimeError, ValueError) as error:
        raise SourceError(
          f"TFDS cannot prepare {self.settings['tfds']}: {error}. {advice}"
        ) from error
      self._builder = builder
    return self._builder

  def _named(self) -> Any:
    try:
      import tensorflow_datasets as tfds
    except ImportError as error:
      raise ConfigError(
        f"the dataset {self._name} is read by TFDS, which is not installed; "
        "pip install tensorflow-datasets."
      ) from error
    try:
      return tfds.builder(self.settings["tfds"], data_dir=self.settings.get("data_dir"))
    except tfds.core.DatasetNotFoundError:
      pass
    except (AssertionError, ValueError, KeyError) as error:
      configs = getattr(tfds.builder_cls(self._name.split("/")[0]), "builder_configs", {})
      config = self._name.partition("/")[2]
      if config and config not in configs:
        hint = f"They are those of the TFDS dataset {self._name.split('/')[0]}."
        raise UnknownName("configuration", config, configs, hint) from error
      raise ConfigError(f"TFDS cannot open {self.settings['tfds']}: {error}") from error
    raise UnknownName("TFDS dataset", self._name.split("/")[0], tfds.list_builders())


def _plain(feature: Any, value: Any) -> Any:
  """A TFDS value in plain Python: text for bytes, names for classes, lists for sequences."""
  import numpy as np
  import tensorflow_datasets as tfds

  if value is None:
    return None
  if isinstance(value, Mapping):
    inner = getattr(feature, "feature", feature)
    return {str(key): _plain(_inner(inner, key), item) for key, item in value.items()}
  if isinstance(feature, tfds.features.ClassLabel) and np.ndim(value) == 0:
    return None if value < 0 else feature.int2str(int(value))
  if hasattr(value, "to_list"):  # a ragged tensor
    value = value.to_list()
  if isinstance(value, np.ndarray) and value.ndim == 0:
    value = value[()]
  if isinstance(value, list | np.ndarray):
    return [_plain(getattr(feature, "feature", None), item) for item in value]
  if isinstance(value, bytes):
    return value.decode("utf-8", errors="replace")
  return value.item() if isinstance(value, np.generic) else value


def _inner(feature: Any, key: str) -> Any:
  try:
    return feature[key]
  except (KeyError, TypeError):
    return None
