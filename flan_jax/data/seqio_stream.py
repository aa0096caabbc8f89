"""Anybody's SeqIO task or mixture as a stream: what its `get_dataset` yields, token for token and in that order.

    encoder-decoder         the encoder reads `inputs`, the decoder writes `targets`
    decoder                 0, inputs, targets: the loss is taken on targets, as with SeqIO's
                            PrefixLMFeatureConverter
    decoder, targets alone  0, targets: the loss is taken on all, as with SeqIO's LMFeatureConverter

SeqIO itself mixes, splits, shuffles, trims and puts the end tokens. Using this module imports SeqIO and
TensorFlow.
"""

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flan_jax.data.batches import START_ID
from flan_jax.data.encode import Dropped, Encoded
from flan_jax.data.mixtures import known_names
from flan_jax.data.seqio_identity import identity, spelt
from flan_jax.data.seqio_vocabularies import check_vocabulary, our_vocabulary
from flan_jax.data.store import StoreConfig, TaskCounts
from flan_jax.data.streams import Stretch
from flan_jax.data.windows import Drawn
from flan_jax.errors import ConfigError, FlanJaxError, RecordError, UnknownName, VocabularyError
from flan_jax.vocabularies import Vocabulary

if TYPE_CHECKING:
  import seqio

Provider = Any
"""A `seqio.Task` or `seqio.Mixture`."""

CLUSTER = "seqio"
"""What stands for the cluster of a SeqIO task in logs and tables."""

_TASK = "_task"  # beside inputs and targets: the number of the task that an example is of


def find(name: str) -> Provider:
  """The task or mixture of this name: registered already, or one of the T5 library's.

  Raises:
    UnknownName: there is none.
  """
  try:
    import seqio
    import tensorflow as tf
  except ImportError as error:
    hint = f"It may be a SeqIO task, but here SeqIO cannot be imported ({error})."
    raise UnknownName("mixture", name, known_names(), hint) from error
  with contextlib.suppress(RuntimeError):  # once TensorFlow has begun to compute
    tf.config.set_visible_devices([], "GPU")  # they are the trainer's
  if name not in _registered():
    register_t5()
  if name not in _registered():
    hint = "Your own, and your SeqIO tasks, are known once their module is imported: --module my_tasks.py."
    raise UnknownName("mixture", name, {*known_names(), *_registered()}, hint)
  return seqio.get_mixture_or_task(name)


@functools.cache
def register_t5() -> None:
  """Registers the T5 library's own tasks and mixtures with SeqIO, where it is installed.

  Raises:
    ConfigError: that fails, for a user's task of the same name for instance.
  """
  if importlib.util.find_spec("t5") is None:
    return
  try:
    importlib.import_module("t5.data.tasks")
    importlib.import_module("t5.data.mixtures")
  except Exception as error:
    raise ConfigError(
      f"the T5 library's tasks cannot be registered: {type(error).__name__}: {error}"
    ) from error


def task_vocabulary(name: str) -> Vocabulary:
  """Our vocabulary of the ids that a task's `targets` are written in.

  Raises:
    UnknownName: there is no such task.
    VocabularyError: the task's vocabulary is of a kind that we do not have.
  """
  features = find(name).output_features
  if "targets" not in features:
    raise _lacks(name, "targets", features)
  theirs = features["targets"].vocabulary
  ours = our_vocabulary(theirs)
  if ours is None:
    raise VocabularyError(
      f"the SeqIO task {name!r} has a {type(theirs).__name__}, which cannot be converted: give the model a "
      f"vocabulary of {theirs.vocab_size:,} ids or more yourself."
    )
  return ours


def describe(config: StoreConfig) -> list[dict[str, Any]]:
  """What `store.json` says about a SeqIO task, or about each task of a mixture.

  Its fingerprints are of what can be seen: names, rates, features and their vocabularies, the qualified
  names of preprocessors with their bound arguments, the version of SeqIO; of the source the TFDS
  dataset's version, or names and contents of files (of those beyond 64 MiB size and time), or the
  function's name; of a cache its statistics and files. What cannot be seen is the body of a preprocessor
  or of a source's function, and data that such a function reads: after changing one, give the task
  another name.

  Raises:
    ConfigError, UnknownName, VocabularyError: the task does not suit the store.
  """
  provider = find(config.mixture_name)
  _check(provider, config)
  tasks = _tasks(provider, config.split)
  rates = _rates(provider, tasks)
  with _told(provider.name):
    entries = [identity(task, config) for task in tasks]
  mixed = {
    "mixture": type(provider).__qualname__,
    "sample": spelt(getattr(provider, "_sample_fn", None)),
  }
  if not _tells_tasks(provider):
    whole = {"of": entries, "rates": rates, **mixed}
    return [_entry(provider.name, 1.0, sum(e["examples"] for e in entries), whole, {})]
  return [
    _entry(
      task.name, rate / sum(rates), entry["examples"], {**entry["task"], **mixed}, entry["source"]
    )
    for task, rate, entry in zip(tasks, rates, entries, strict=True)
  ]


class SeqioStream:
  """The examples of a task or mixture. Going on is cheap, going back begins again.

  Raises:
    ConfigError, UnknownName, VocabularyError: the task does not suit the store.
  """

  def __init__(self, config: StoreConfig):
    self._config, self._provider = config, find(config.mixture_name)
    _check(self._provider, config)
    tasks = _tasks(self._provider, config.split) if _tells_tasks(self._provider) else []
    self._names = [task.name for task in tasks] or [self._provider.name]
    self._examples: Iterator[Mapping[str, np.ndarray]] = iter(())
    self._at = -1

  def check(self, rows: int) -> None:
    """Every task has an example: an empty one, repeated without end, would never give the first."""
    del rows
    settings = {**self._settings(), "num_epochs": 1, "shuffle": False, "try_in_mem_cache": False}
    for task in _tasks(self._provider, self._config.split):
      with _told(task.name):
        empty = not any(True for _ in task.get_dataset(**settings).take(1))
      if empty:
        raise ConfigError(
          f"the SeqIO task {task.name!r} has no example in the split {self._config.split!r}: its source is "
          "empty, or its preprocessors drop everything."
        )

  def stretch(self, start: int, count: int) -> Stretch:
    if start != self._at:
      with _told(self._provider.name):
        self._examples = self._dataset().skip(start).as_numpy_iterator()
    with _told(self._provider.name):
      taken = list(itertools.islice(self._examples, count))
    self._at = start + count
    if len(taken) < count:
      raise ConfigError(
        f"the SeqIO task {self._provider.name!r} ends after {start + len(taken):,} examples, although asked to "
        "go on without end: one of its preprocessors stops (`take`), or its mixture's `sample_fn`."
      )
    examples: list[Drawn] = []
    counts: dict[str, TaskCounts] = {}
    for place, features in enumerate(taken, start):
      number = int(features.get(_TASK, 0))
      encoded = self._encoded(features)
      counts.setdefault(self._names[number], TaskCounts()).count(encoded, self._config.layout)
      if isinstance(encoded, Encoded):
        examples.append(Drawn(encoded, number, place, 0))
    self._check_ids(examples)
    return Stretch(examples, counts)

  def _dataset(self) -> Any:
    """The endless dataset of inputs, targets and the number of each example's task."""
    import tensorflow as tf

    provider, settings = _numbered(self._provider, self._names), self._settings()
    options = tf.data.Options()
    options.deterministic = True
    wanted = (*settings["sequence_length"], _TASK)
    dataset = provider.get_dataset(shuffle=self._config.shuffle, num_epochs=None, **settings)
    dataset = dataset.map(lambda features: {k: v for k, v in features.items() if k in wanted})
    return dataset.with_options(options)

  def _settings(self) -> dict[str, Any]:
    config, features = self._config, self._provider.output_features
    return {
      "sequence_length": {k: n for k, n in config.lengths.items() if k in features},
      "split": config.split,
      "use_cached": bool(config.seqio_cache),
      "seed": config.seed,
    }

  def _encoded(self, features: Mapping[str, np.ndarray]) -> Encoded | Dropped:
    inputs, targets = features.get("inputs", _NOTHING), features["targets"]
    if not len(targets):
      return Dropped("empty")
    if self._config.layout == "encoder_decoder":
      if not len(inputs):
        return Dropped("empty")
      return Encoded(inputs, targets, ((0, len(targets)),))
    ids = np.concatenate([[START_ID], inputs, targets]).astype(np.int32)
    prefix = 1 + len(inputs)
    first = 1 if self._config.loss_on == "everything" else prefix
    return Encoded(_NOTHING, ids, ((first, len(ids)),), prefix)

  def _check_ids(self, examples: list[Drawn]) -> None:
    size = self._config.vocabulary.size
    for drawn in examples:
      for ids in (drawn.encoded.inputs, drawn.encoded.targets):
        if len(ids) and not 0 <= ids.min() <= ids.max() < size:
          raise VocabularyError(
            f"the SeqIO task {self._names[drawn.task]!r}: example {drawn.example} of the stream has the id "
            f"{ids.max() if ids.min() >= 0 else ids.min()}, and the model's vocabulary has {size:,}."
          )


_NOTHING = np.empty(0, np.int32)


def _registered() -> set[str]:
  import seqio

  return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def _tasks(provider: Provider, split: str) -> "list[seqio.Task]":
  """The tasks that SeqIO draws from for a split, in its order."""
  import seqio

  if isinstance(provider, seqio.Task):
    return [provider]
  return [task for task in provider.tasks if split in task.splits]


def _rates(provider: Provider, tasks: "list[seqio.Task]") -> list[float]:
  """How often each task is drawn, against the others."""
  import seqio

  if isinstance(provider, seqio.Task):
    return [1.0]
  rates = []
  for task in tasks:
    try:
      rates.append(float(provider.get_rate(task)))
    except Exception as error:
      raise ConfigError(
        f"the SeqIO mixture {provider.name!r}: the rate of {task.name!r} cannot be had, {type(error).__name__}: "
        f"{error}. Mend the function or the number that it is registered with."
      ) from error
  if min(rates, default=0) < 0 or not sum(rates) > 0:
    told = ", ".join(f"{task.name} {rate:g}" for task, rate in zip(tasks, rates, strict=True))
    raise ConfigError(
      f"the SeqIO mixture {provider.name!r} has the rates {told or 'of no task'}: none may be below 0, and one has "
      "to be above."
    )
  return rates


def _tells_tasks(provider: Provider) -> bool:
  """Whether it can be told which task an example is of: not of a mixture that mixes in its own way."""
  import seqio

  if isinstance(provider, seqio.Task):
    return True
  methods = ("get_dataset", "get_task_dataset")
  return all(getattr(type(provider), name) is getattr(seqio.Mixture, name) for name in methods)


def _numbered(provider: Provider, names: list[str]) -> Provider:
  """A mixture whose examples carry the number of their task; a task as it is."""
  import seqio
  import tensorflow as tf

  if isinstance(provider, seqio.Task) or not _tells_tasks(provider):
    return provider

  class Numbered(type(provider)):  # type: ignore[misc]
    """The same mixture; the one more feature changes neither order nor draws."""

    def get_task_dataset(self, task: seqio.Task, *args: Any, **kwargs: Any) -> Any:
      number = tf.constant(names.index(task.name), tf.int32)
      dataset = super().get_task_dataset(task, *args, **kwargs)
      return dataset.map(lambda features: {**features, _TASK: number})

  numbered = object.__new__(Numbered)
  numbered.__dict__.update(provider.__dict__)
  return numbered


def _check(provider: Provider, config: StoreConfig) -> None:
  name, features = provider.name, provider.output_features
  needed = ("inputs", "targets") if config.layout == "encoder_decoder" else ("targets",)
  for feature in needed:
    if feature not in features:
      raise _lacks(name, feature, features)
  for feature in ("inputs", "targets"):
    if feature in features:
      _check_feature(name, feature, features[feature], config.vocabulary)
  for setting in ("renderings", "few_shot", "template_choice", "templates_per_dataset", "options"):
    if (value := getattr(config, setting)) != getattr(StoreConfig, setting):
      raise ConfigError(
        f"{setting}={value!r} is for our own datasets; the SeqIO task {name!r} puts its records into words "
        "itself: leave it out."
      )
  with _told(name):
    _check_split(provider, config)
  if config.seqio_cache:
    _check_cached(provider, config)


def _check_split(provider: Provider, config: StoreConfig) -> None:
  import seqio

  is_task = isinstance(provider, seqio.Task)
  for task in [provider] if is_task else provider.tasks:
    if isinstance(task.source, seqio.TfdsDataSource) and not config.seqio_cache:
      _download(task.source.tfds_dataset, config.split)
  known = [str(split) for split in (provider.source if is_task else provider).splits]
  # A TFDS task also takes slices, such as "train[:90%]"; SeqIO's mixtures do not.
  split = config.split.partition("[")[0] if is_task else config.split
  if known and split not in known:
    hint = f"They are those of the SeqIO task {provider.name}."
    raise UnknownName("split", config.split, known, hint)


def _download(dataset: Any, split: str) -> None:
  """As SeqIO does when it loads a TFDS dataset; before that TFDS knows neither its splits nor its size."""
  elsewhere = dataset.tfds_splits  # a dataset for each split
  if not dataset._read_only and (elsewhere is None or split in elsewhere):
    dataset._get_builder(split).download_and_prepare()


def _check_feature(name: str, feature: str, about: Any, vocabulary: Vocabulary) -> None:
  import tensorflow as tf

  dtype = tf.as_dtype(about.dtype)
  if about.rank != 1 or not dtype.is_integer:
    raise ConfigError(
      f"the SeqIO task {name!r}: its feature {feature!r} is {dtype.name} of rank {about.rank}, and a model "
      "is trained on a sequence of integers, rank 1."
    )
  with _told(name):
    check_vocabulary(about.vocabulary, vocabulary, f"the feature {feature!r} of {name!r}")


def _check_cached(provider: Provider, config: StoreConfig) -> None:
  import seqio

  seqio.add_global_cache_dirs(config.seqio_cache)
  for task in _tasks(provider, config.split):
    if not task.supports_caching:
      raise ConfigError(
        f"the SeqIO task {task.name!r} cannot be cached: it has no CacheDatasetPlaceholder among its "
        "preprocessors. Leave seqio_cache out."
      )
    if not task.cache_dir:
      raise ConfigError(
        f"the SeqIO task {task.name!r} is not cached in {', '.join(config.seqio_cache)}: SeqIO's "
        "seqio_cache_tasks writes it there. Or leave seqio_cache out."
      )


def _lacks(name: str, feature: str, features: Mapping[str, Any]) -> ConfigError:
  advice = {
    "inputs": "a task with targets alone trains a decoder; an encoder-decoder reads inputs.",
    "targets": "a model is trained to write targets; name that feature so.",
  }
  return ConfigError(
    f"the SeqIO task {name!r} has no feature {feature!r}, only {', '.join(features)}: {advice[feature]}"
  )


def _entry(
  name: str, share: float, examples: int, task: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Any]:
  def digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

  return {
    "name": name,
    "cluster": CLUSTER,
    "licence": "",
    "citation": "",
    "examples": examples,
    "share": share,
    "templates": [],
    "seqio": {**task, "source": dict(source)},
    "templates_fingerprint": digest(task),
    "records_fingerprint": digest(source),
  }


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
  """Whatever SeqIO, TensorFlow or a user's function raises, as one sentence that names the task."""
  try:
    yield
  except FlanJaxError:
    raise
  except Exception as error:
    said = " ".join(str(getattr(error, "message", None) or error).split())
    # TensorFlow says around its message by which of its operations it came.
    said = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]( name:)?", "", said).strip()
    remedy = ""
    if type(error).__name__ == "DataLossError":
      remedy = " A file of its source is torn: fetch or write it again."
    if "shuffle_buffer_size" in said:
      remedy = " Set data.shuffle=False, or give it a buffer where it is registered."
    raise RecordError(
      f"the SeqIO task {name!r} cannot be read: {type(error).__name__}: {said[:600]}{remedy}"
    ) from error
