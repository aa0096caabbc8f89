"""What can be told of a SeqIO task without running it: where its data come from, and what is made of them."""

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flan_jax.data.seqio_vocabularies import our_vocabulary
from flan_jax.data.store import StoreConfig

if TYPE_CHECKING:
  import seqio

_DIGESTED = 64 << 20  # bytes of a file that is read to tell whether it changed


def identity(task: "seqio.Task", config: StoreConfig) -> dict[str, Any]:
  """{"task": what it makes of its data, "source": where they come from, "examples": how many there are}."""
  import seqio

  features = {
    name: [_vocabulary(feature.vocabulary), feature.add_eos, str(feature.dtype), feature.required]
    for name, feature in task.output_features.items()
  }
  return {
    "task": {
      "seqio": seqio.__version__,
      "features": features,
      "preprocessors": [spelt(step) for step in task.preprocessors],
      "shuffle_buffer_size": task.shuffle_buffer_size,
    },
    "source": _cache(task, config.split) if config.seqio_cache else _source(task, config.split),
    "examples": _examples(task, config),
  }


def spelt(thing: Any) -> str:
  """A function by its qualified name and bound arguments, anything else as it prints, without addresses."""
  if isinstance(thing, functools.partial):
    bound = [*map(spelt, thing.args), *(f"{k}={spelt(v)}" for k, v in thing.keywords.items())]
    return f"{spelt(thing.func)}({', '.join(bound)})"
  if hasattr(thing, "__qualname__"):
    return f"{thing.__module__}.{thing.__qualname__}"
  if isinstance(thing, Mapping):
    return "{" + ", ".join(f"{k}: {spelt(v)}" for k, v in thing.items()) + "}"
  return re.sub(r" at 0x[0-9a-f]+", "", f"{type(thing).__qualname__}: {thing}")


def _examples(task: "seqio.Task", config: StoreConfig) -> int:
  """How many examples a pass over the source has; 0 where SeqIO does not know."""
  if config.seqio_cache:
    return int(task.get_cached_stats(config.split).get("examples", 0))
  try:
    return task.num_input_examples(config.split) or 0
  except (KeyError, ValueError):  # a slice of a split, or a split without a count
    return 0


def _source(task: "seqio.Task", split: str) -> dict[str, Any]:
  """What can be seen of where a task's data come from."""
  import seqio

  source = task.source
  about: dict[str, Any] = {"kind": type(source).__qualname__}
  if isinstance(source, seqio.TfdsDataSource):
    dataset = source.tfds_dataset
    about |= {
      "tfds": dataset._get_builder(split).info.full_name,
      "splits": spelt(getattr(dataset, "_split_map", None)),
    }
  elif isinstance(source, seqio.FileDataSource):
    about |= {"reader": spelt(source._reader), "files": _files(source.list_shards(split))}
  elif isinstance(source, seqio.FunctionDataSource):
    about["function"] = spelt(source._dataset_fn)
  else:
    about["source"] = spelt(source)
  return about


def _cache(task: "seqio.Task", split: str) -> dict[str, Any]:
  files = task._get_cached_source(split).list_shards(split)
  return {"cached": dict(task.get_cached_stats(split)), "files": _files(files)}


def _files(paths: Iterable[Any]) -> list[tuple[str, int, str]]:
  """Name, size and digest of files, wherever TensorFlow can read them; of large ones the time instead."""
  import tensorflow as tf

  about = []
  for path in map(str, paths):
    stat = tf.io.gfile.stat(path)
    identity = f"changed {stat.mtime_nsec}"
    if stat.length <= _DIGESTED:
      with tf.io.gfile.GFile(path, "rb") as file:
        identity = hashlib.sha256(file.read()).hexdigest()
    about.append((path.rsplit("/", 1)[-1], stat.length, identity))
  return about


def _vocabulary(vocabulary: Any) -> str:
  ours = our_vocabulary(vocabulary)
  return spelt(vocabulary) if ours is None else ours.fingerprint
