"""Time and memory until the first batch of `flan2021`, from a store that is there, every dataset mocked.

  python benchmarks/start_flan2021.py [--home /tmp/flan2021] [--examples 1000]

The first process mocks TFDS and the hub, builds the records of every dataset and prepares the store: each split has
so many records, which are the one in the dataset's file with other numbers in its texts. The second process starts
from nothing but what the first has left, as a launch does.
"""

import argparse
import copy
import functools
import operator
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from flan_jax.data.batches import Batches
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import training_datasets
from flan_jax.data.prepare import prepare
from flan_jax.data.sources import FilesSource
from flan_jax.data.store import StoreConfig
from flan_jax.data.tfds_source import TFDSSource
from flan_jax.errors import FlanJaxError
from flan_jax.prompting import DatasetSpec
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

Place = tuple[str | int, ...]

ROWS = 256
MIXTURE = "flan2021"
CONFIG = StoreConfig(MIXTURE, ByteVocabulary(), PlainFormat(), "encoder_decoder")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--home", type=Path, default=Path("/tmp/flan2021"))
  parser.add_argument("--examples", type=int, default=1000)
  parser.add_argument("--part", choices=("cold", "warm"), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.part:
    print({"cold": cold, "warm": warm}[args.part](args.home, args.examples))
    return
  for part in ("cold", "warm"):
    begun = time.perf_counter()
    words = [sys.executable, __file__, f"--home={args.home}", f"--examples={args.examples}"]
    said = subprocess.run([*words, "--part", part], check=True, stdout=subprocess.PIPE, text=True)
    print(f"{part}: {time.perf_counter() - begun:.1f} s; {said.stdout.strip()}")


def cold(home: Path, examples: int) -> str:
  """Prepares the store."""
  import tensorflow_datasets as tfds

  # Mocked builders do not know which splits they have; those that are asked for them have this one.
  only_train = mock.patch.object(TFDSSource, "parts", ("train",))
  hub = mock.patch.object(FilesSource, "records", _hub_records(examples))
  with tfds.testing.mock_data(as_dataset_fn=_as_dataset(examples)), only_train, hub:
    store = prepare(CONFIG, ROWS, home, workers=1)
  return f"{len(store.tasks)} datasets; {'; '.join(store.missing.values()) or 'none is missing'}"


def warm(home: Path, examples: int) -> str:
  """Takes the first batch."""
  del examples
  store = prepare(CONFIG, ROWS, home)
  batch = next(iter(Batches(store, 128, 0, 128)))
  # With those of the process that looks at the sources.
  usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  seconds = sum(each.ru_utime + each.ru_stime for each in usage)
  peak = sum(each.ru_maxrss for each in usage) / 2**20
  rows, datasets = len(batch["decoder_input_tokens"]), len(store.tasks)
  return f"{rows} rows; {datasets} datasets; {seconds:.1f} s of processor; peak {peak:.2f} GiB"


def _hub_records(examples: int) -> Callable[..., Any]:
  """What stands in for `FilesSource.records`."""
  specs = list(map(dataset_spec, training_datasets(MIXTURE)))

  def records(source: FilesSource, part: str) -> Iterator[dict[str, Any]]:
    (spec,) = (spec for spec in specs if spec.source == source.settings)
    places = numbered_places(spec)
    for number in _numbers(part, examples):
      yield numbered(spec.record, places, number)

  return records


def _numbers(part: str, examples: int) -> range:
  """No two splits, or parts of one, have a number in common."""
  first = zlib.crc32(part.encode()) % 1000 * examples
  return range(first, first + examples)


def _as_dataset(examples: int) -> Callable[..., Any]:
  """What stands in for `DatasetBuilder._as_dataset`."""
  specs = {
    str(spec.source["tfds"]).partition(":")[0]: spec
    for spec in map(dataset_spec, training_datasets(MIXTURE))
    if "tfds" in spec.source
  }

  def as_dataset(builder: Any, split: Any, **settings: Any) -> Any:
    import tensorflow as tf

    del settings
    config = builder.builder_config.name if builder.builder_config else ""
    spec = specs.get(f"{builder.name}/{config}") or specs[builder.name]
    features = builder.info.features
    signature = features.get_tensor_spec()
    places = numbered_places(spec, features)

    def records() -> Iterator[Any]:
      for number in _numbers(str(split), examples):
        record = features.encode_example(numbered(spec.record, places, number))
        yield _tensors(signature, record)

    return tf.data.Dataset.from_generator(records, output_signature=signature)

  return as_dataset


def numbered_places(spec: DatasetSpec, features: Any = None) -> list[Place]:
  """The texts of the dataset's example that may end in a number: it stays an example of the dataset."""
  places: list[Place] = []
  for place in _places(spec.record):
    record = numbered(spec.record, [*places, place], 12345)
    try:
      if features is not None:
        features.encode_example(record)
      if spec.derive_record(record) is not None:
        places.append(place)
    except (FlanJaxError, RuntimeError, ValueError):  # what TFDS raises
      continue
  return places


def _places(value: Any, place: Place = ()) -> Iterator[Place]:
  """Where the texts of a record stand."""
  if isinstance(value, str):
    yield place
  elif isinstance(value, Mapping):
    for key, item in value.items():
      yield from _places(item, (*place, key))
  elif isinstance(value, list):
    for index, item in enumerate(value):
      yield from _places(item, (*place, index))


def numbered(record: Mapping[str, Any], places: Iterable[Place], number: int) -> dict[str, Any]:
  """The record with a number behind some of its texts."""
  numbered = copy.deepcopy(dict(record))
  for *way, last in places:
    holder = functools.reduce(operator.getitem, way, numbered)
    holder[last] = f"{holder[last]} {number}"
  return numbered


def _tensors(signature: Any, value: Any) -> Any:
  """An encoded record as the tensors that TFDS would read."""
  import tensorflow as tf

  if isinstance(signature, dict):
    return {key: _tensors(inner, value[key]) for key, inner in signature.items()}
  plain = _plain(value)
  if isinstance(signature, tf.RaggedTensorSpec):
    return tf.ragged.constant(plain, signature.dtype, ragged_rank=signature.ragged_rank)
  return np.array(plain, signature.dtype.as_numpy_dtype)


def _plain(value: Any) -> Any:
  return [_plain(each) for each in value] if isinstance(value, list) else np.asarray(value).tolist()


if __name__ == "__main__":
  main()
