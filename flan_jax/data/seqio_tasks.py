"""A view of our mixtures for SeqIO: tasks, the mixture of them, and the vocabulary.

Whatever reads SeqIO tasks can then read ours. Asking for it imports SeqIO and with it TensorFlow;
nothing else in the library needs either.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flan_jax.data.encode import Dropped, Encoder
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import Mixture, get_mixture
from flan_jax.data.rates import mixture_tasks
from flan_jax.data.records import Records, load_records
from flan_jax.data.rendering import DatasetDraws
from flan_jax.data.seqio_vocabularies import seqio_view
from flan_jax.errors import ConfigError, RecordError
from flan_jax.prompting import DatasetSpec, Draw, Rendering, Template
from flan_jax.vocabularies import Format, Vocabulary

_UNLIMITED = 1 << 30
_registered: dict[str, tuple[Any, ...]] = {}


def register_seqio(
  mixture: Mixture | str,
  vocabulary: Vocabulary,
  format: Format,
  *,
  data_dir: Path | str,
  seed: int = 0,
  renderings: int = 4,
  few_shot: int = 0,
  prefix: str = "",
) -> list[str]:
  """Registers a mixture in SeqIO's registries.

  - `<dataset>`: the training datasets. Each pass over the records draws other templates, and pass
    p repeats pass p - `renderings`.
  - `<dataset>.<template>`: one task per evaluation template of every dataset, held out or not. Its
    metric is the share of predictions that equal an accepted target; rank classification is the
    business of `flan_jax.evaluation`.
  - `<mixture>`: the training datasets at their rates, unless it is the one dataset of that name.

  Features are `inputs` and `targets`, truncated by field where SeqIO gives the lengths and dropped
  (an error for evaluation) where that does not suffice; their whole text; and `golds`, the accepted
  targets. SeqIO's feature converters take id 0 for padding, whatever the vocabulary says.

  Args:
    mixture: or its name.
    vocabulary: tokenises; SeqIO sees a view of it.
    format: puts turns into one text.
    data_dir: where records are kept; those that are missing are built.
    seed: of the draws.
    renderings: how many passes over an example differ.
    few_shot: exemplars before each query of a training dataset.
    prefix: goes before every name, for a second registration with other settings.

  Returns:
    The names that can be asked for with `seqio.get_mixture_or_task`.

  Raises:
    ConfigError: a name is taken, by another task or by ours with other settings.
    SourceError: records of the mixture cannot be had.
  """
  import seqio

  mixture = get_mixture(mixture) if isinstance(mixture, str) else mixture
  settings = (vocabulary.fingerprint, format.fingerprint, str(data_dir), seed, renderings, few_shot)
  rates: list[tuple[str, float]] = []
  names: list[str] = []
  for task in mixture_tasks(mixture, data_dir, strict=True):
    spec = dataset_spec(task.name)
    build = functools.partial(
      _task_settings, spec, vocabulary, format, data_dir, seed, renderings, few_shot
    )
    if not task.held_out:
      names.append(prefix + task.name)
      rates.append((names[-1], task.rate))
      _register(seqio.TaskRegistry, names[-1], (*settings, spec.fingerprint), build)
    for template in spec.evaluation_templates():
      names.append(f"{prefix}{task.name}.{template.name}")
      one = functools.partial(build, template=template)
      told = (spec.fingerprint, template.words, template.metrics)
      _register(seqio.TaskRegistry, names[-1], (*settings, *told), one)
  name = prefix + re.sub(r"\W+", "_", mixture.name)
  if name not in names:
    names.append(name)
    _register(seqio.MixtureRegistry, name, (*settings, *rates), lambda: {"tasks": rates})
  return names


def _register(
  registry: Any, name: str, settings: tuple[Any, ...], build: Callable[[], dict[str, Any]]
) -> None:
  import seqio

  if name in (*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()):
    if _registered.get(name) == settings:
      return
    raise ConfigError(
      f"SeqIO has a task or mixture named {name!r} already"
      f"{' with other settings' if name in _registered else ''}; give register_seqio a prefix."
    )
  registry.add(name, **build())
  _registered[name] = settings


def _task_settings(
  spec: DatasetSpec,
  vocabulary: Vocabulary,
  format: Format,
  data_dir: Path | str,
  seed: int,
  renderings: int,
  few_shot: int,
  template: Template | None = None,
) -> dict[str, Any]:
  """The arguments of a SeqIO task: for one template, or for a template drawn each time."""
  import seqio

  records = load_records(spec, data_dir)
  view = seqio_view(vocabulary)
  features = {
    "inputs": seqio.Feature(view, add_eos=format.eos_on_inputs),
    "targets": seqio.Feature(view, add_eos=format.eos),
  }
  draws = {
    split: DatasetDraws(spec, records[split], len(records[split]), seed, renderings, few_shot)
    for split in records
  }
  preprocess = _Features(spec, draws, vocabulary, format, template).preprocess
  source = seqio.FunctionDataSource(
    functools.partial(_places, records),
    splits=list(records),
    num_input_examples={split: len(records[split]) for split in records},
  )
  settings: dict[str, Any] = {
    "source": source,
    "preprocessors": [preprocess],
    "output_features": features,
  }
  if template is not None:
    settings |= {"postprocess_fn": _golds_or_prediction, "metric_fns": [_exact_match]}
  return settings


def _places(
  records: Mapping[str, Records], split: str, shuffle_files: bool, seed: int | None = None
):
  """A dataset of the places of the records, and of where each stands in the pass."""
  import tensorflow as tf

  count = len(records[split])
  order = np.random.default_rng(seed).permutation(count) if shuffle_files else np.arange(count)
  places = tf.data.Dataset.from_tensor_slices({"example": order, "position": np.arange(count)})
  return places.map(lambda place: {**place, "split": tf.constant(split)})


class _Features:
  """The preprocessor: places of records to features."""

  def __init__(
    self,
    spec: DatasetSpec,
    draws: Mapping[str, DatasetDraws],
    vocabulary: Vocabulary,
    format: Format,
    template: Template | None,
  ):
    self._spec, self._draws, self._template = spec, draws, template
    self._vocabulary, self._format = vocabulary, format

  def preprocess(self, dataset, sequence_length: Mapping[str, int] | None = None):
    import tensorflow as tf

    limits = sequence_length or {}
    lengths = {name: limits.get(name) or _UNLIMITED for name in ("inputs", "targets")}
    encoder = Encoder(self._vocabulary, self._format, "encoder_decoder", lengths)
    encode = functools.partial(self._encode, encoder)

    def count_passes(state, place):
      epoch, last = state
      epoch += tf.cast(place["position"] <= last, tf.int64)
      return (epoch, place["position"]), {**place, "epoch": epoch}

    def features(place):
      arguments = [place["split"], place["example"], place["epoch"]]
      kinds = [tf.int32, tf.int32, tf.string, tf.string, tf.string]
      names = ["inputs", "targets", "inputs_pretokenized", "targets_pretokenized", "golds"]
      shapes = [[None], [None], [], [], [None]]
      values = tf.numpy_function(encode, arguments, kinds)
      return {
        name: tf.ensure_shape(value, shape)
        for name, value, shape in zip(names, values, shapes, strict=True)
      }

    # SeqIO repeats a dataset before it is preprocessed: a position that does not grow begins a pass,
    # also where the dataset is a shard.
    start = (tf.constant(0, tf.int64), tf.constant(-1, tf.int64))
    dataset = dataset.scan(start, count_passes).map(features)
    return dataset.filter(lambda example: tf.size(example["targets"]) > 0)

  def _encode(self, encoder: Encoder, split: bytes, example: int, epoch: int) -> tuple[Any, ...]:
    draws = self._draws[split.decode()]
    shown: list[Rendering] = []

    def render(long_limit: int | None) -> Rendering:
      if self._template is None:
        rendering = draws.render(int(example), int(epoch), long_limit)
      else:
        record = draws.records[int(example)]
        draw = Draw(draws.seed, self._spec.name, int(example))
        rendering = self._template.render(record, draw, long_limit)
      shown.append(rendering)
      return rendering

    try:
      encoded = encoder.encode(render)
    except RecordError:
      if self._template is not None:
        raise
      encoded = Dropped("unrenderable")
    if isinstance(encoded, Dropped):
      if self._template is not None:
        raise RecordError(
          f"{self._spec.name}.{self._template.name}: example {example} of {split.decode()} cannot "
          f"be evaluated: {encoded.reason}. Give longer sequence lengths."
        )
      empty = np.zeros(0, np.int32)
      return empty, empty, b"", b"", np.zeros(0, object)
    whole = shown[0]
    texts = (self._format.encoder_text(whole.turns), self._format.target_text(whole.turns))
    golds = np.array([gold.encode() for gold in whole.golds], object)
    return encoded.inputs, encoded.targets, texts[0].encode(), texts[1].encode(), golds


def _golds_or_prediction(output: Any, is_target: bool = False, example: Any = None) -> Any:
  """SeqIO's hook between decoded ids and metrics: the accepted targets, or the prediction as it is."""
  if not is_target:
    return output
  return [gold.decode() for gold in np.asarray(example["golds"]).tolist()]


def _exact_match(targets: list[list[str]], predictions: list[str]) -> dict[str, float]:
  pairs = zip(targets, predictions, strict=True)
  return {"exact_match": float(np.mean([text.strip() in golds for golds, text in pairs]))}
