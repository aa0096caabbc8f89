"""Where a job's model comes from: drawn afresh, published by somebody, or tuned by an earlier run.

`lora` puts adapters beside a published or tuned one. What a run of them saves is the adapters alone, and
in `model.json` how their base is opened again.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flan_jax.checkpoints import Checkpoints
from flan_jax.data.atomic import write_whole
from flan_jax.data.batches import START_ID
from flan_jax.data.home import data_home
from flan_jax.errors import CheckpointError, ConfigError, FlanJaxError, VocabularyError
from flan_jax.jobs.launch import current_phase
from flan_jax.jobs.planned_models import published_config
from flan_jax.jobs.processes import is_first
from flan_jax.models import (
  DecoderConfig,
  EncoderDecoderConfig,
  LanguageModel,
  build_model,
  described,
)
from flan_jax.models.config import KERNEL_PLATFORMS
from flan_jax.training.lora import Lora, LoraConfig
from flan_jax.training.partitioning import Layout, param_shardings
from flan_jax.vocabularies import (
  ChatFormat,
  Format,
  PlainFormat,
  Vocabulary,
  format_from_dict,
  load_vocabulary,
)

PyTree = Any

_CONFIGS: dict[str, Any] = {"decoder": DecoderConfig, "encoder_decoder": EncoderDecoderConfig}
_DESCRIPTION = "model.json"


@dataclass(frozen=True)
class ModelSource:
  """A model before it is on a mesh.

  Attributes:
    origin: said in logs and reports.
    model: shapes and functions.
    vocabulary: its words.
    load: puts the parameters on a mesh; the key is for parameters that are drawn afresh.
    fingerprint: of the parameters that `load` gives; two models never share one.
    format: how the prompts were written that it was tuned on; None where nobody said.
    reopened_by: the function of this module that gives the model again, by name, with its arguments;
      None: nothing gives it again, some of its parameters may be random.
    lora: adapters to train in place of the parameters, which stay frozen; None: train them all.
    trained: the adapters that `load` merges.
    generation: how its publisher has it generate, in the words of transformers.
    trained_on: the datasets that it was tuned on here, each with its cluster; {} where nothing is known.
  """

  origin: str
  model: LanguageModel
  vocabulary: Vocabulary
  load: Callable[[Layout, jax.Array], PyTree]
  fingerprint: str
  format: Format | None = None
  reopened_by: tuple[str, Mapping[str, Any]] | None = None
  lora: Lora | None = None
  trained: "TrainedAdapters | None" = None
  generation: Mapping[str, Any] = field(default_factory=dict)
  trained_on: Mapping[str, str] = field(default_factory=dict)

  def __post_init__(self) -> None:
    rows, words = self.model.config.vocab_size, self.vocabulary.size
    if words > rows:
      raise VocabularyError(
        f"the vocabulary has {words:,} ids, and the model's embedding only {rows:,} rows; "
        f"set {self.model.layout}.vocab_size to {words} or more."
      )

  def written_in(self, name: str | None) -> Format:
    """How prompts are written for it as it is: "plain" or "chat"; for None as it was tuned, else plain.

    Raises:
      ConfigError: there is no such format, or it has adapters that nobody has trained.
    """
    if self.lora is not None:
      raise ConfigError(
        "@lora() is a model whose adapters are yet to be trained: give @tuned() of a run that has trained them."
      )
    if name not in (None, "plain", "chat"):
      raise ConfigError(f"format={name!r} is neither 'plain' nor 'chat'.")
    if name == "chat":
      return ChatFormat.of(self.vocabulary)
    if name is None and self.format is not None:
      return self.format
    return PlainFormat(bos=self.begins)

  @property
  def begins(self) -> bool:
    """Whether its texts begin with a token for that: those of a decoder whose vocabulary has one."""
    return self.model.layout == "decoder" and self.vocabulary.bos_id is not None

  @property
  def start_id(self) -> int:
    """What an encoder-decoder's decoder reads first: as its publisher says, and ours once it is tuned."""
    published = self.generation.get("decoder_start_token_id")
    tuned = (self.reopened_by or ("", {}))[0] == "tuned"
    return START_ID if tuned or published is None else published


class TrainedAdapters(NamedTuple):
  """Adapters apart from the model that they were trained beside.

  Args:
    load: the adapters, laid out on a mesh.
  """

  lora: Lora
  base: ModelSource
  load: Callable[[Layout], PyTree]


def scratch(
  architecture: DecoderConfig | EncoderDecoderConfig, vocabulary: Vocabulary
) -> ModelSource:
  """A model with fresh parameters."""
  model = build_model(architecture)

  def load(layout: Layout, key: jax.Array) -> PyTree:
    with layout.active():
      return jax.jit(model.init, out_shardings=param_shardings(model, layout))(key)

  # How the same numbers are computed is no part of what they are: a run may go on with other switches.
  same = dataclasses.replace(architecture, remat="none", scan_layers=True)
  return ModelSource("fresh parameters", model, vocabulary, load, f"fresh {described(same)}")


def pretrained(
  source: str,
  dtype: str = "float32",
  param_dtype: str = "float32",
  remat: str = "none",
  dropout_rate: float = 0.0,
  vocabulary: Vocabulary | None = None,
  adapters: str | None = None,
  attention: str = "xla",
) -> ModelSource:
  """A published model; see `flan_jax.checkpoints.pretrained.open_pretrained` for `source`.

  Args:
    dropout_rate: in training, where the model's configuration says; what it was published with is not taken.
    vocabulary: in place of the one that it came with; T5X's checkpoints come without.
    adapters: a folder of PEFT's, which is merged into the model.
    attention: see `DecoderConfig`.
  """
  from flan_jax.checkpoints.pretrained import content_digest, open_pretrained

  own: dict[str, Any] = {
    "dtype": dtype,
    "remat": remat,
    "dropout_rate": dropout_rate,
    "attention": attention,
  }
  if current_phase().planning and vocabulary is not None:
    config = published_config(source, param_dtype, adapters, data_home())
    config = dataclasses.replace(config, param_dtype=param_dtype, **own)
    return dataclasses.replace(scratch(config, vocabulary), origin=source)
  settings: dict[str, Any] = {
    "source": source,
    "dtype": dtype,
    "param_dtype": param_dtype,
    "remat": remat,
    "dropout_rate": dropout_rate,
  }
  found = open_pretrained(source, param_dtype, adapters=adapters, cache_dir=data_home())
  digest = content_digest(source)
  if adapters is not None:
    settings["adapters"] = adapters
    digest += f" with {content_digest(adapters)}"
  if attention != "xla":
    settings["attention"] = attention
  vocabulary = vocabulary or found.vocabulary
  if vocabulary is None:
    raise CheckpointError(
      f"{source} came without a tokenizer: set pretrained.vocabulary, such as "
      "@sentencepiece(), or put its tokenizer.json beside it."
    )
  model = build_model(dataclasses.replace(found.config, **own))

  def load(layout: Layout, key: jax.Array) -> PyTree:
    del key
    return found.load(param_shardings(model, layout))

  return ModelSource(
    source.partition("#")[0],
    model,
    vocabulary,
    load,
    f"{digest} {param_dtype}",
    reopened_by=("pretrained", settings),
    generation=found.generation,
  )


def tuned(
  run_dir: str,
  step: int | None = None,
  best: str | None = None,
  remat: str | None = None,
  averages: bool = True,
  attention: str | None = None,
) -> ModelSource:
  """What a training run saved: its last checkpoint that is whole, that of `step`, or the best.

  A LoRA run saved adapters; they are merged into their base, which is opened again.

  Args:
    best: by what, of the checkpoints that are kept, such as "lowest loss" or "lowest tasks/boolq".
    averages: take the moving average of each parameter that the run kept one of (`ema_decay`).
    remat, attention: None: as the run had them; of attention, where these devices have its kernel.

  Raises:
    CheckpointError: there is no such run or step, or the base of its adapters is gone or has changed.
  """
  about = _Description.read(Path(run_dir))
  remat = about.config.remat if remat is None else remat
  if attention is None:
    attention = about.config.attention
    here = jax.default_backend()
    if KERNEL_PLATFORMS.get(attention, here) != here and not current_phase().planning:
      attention = "xla"
  config = dataclasses.replace(about.config, remat=remat, attention=attention)
  model = dataclasses.replace(
    build_model(config),
    bidirectional_inputs=about.bidirectional_inputs,
  )
  lora = about.lora and Lora(model, about.lora)
  base = about.base and _base(about.base, run_dir)
  checkpoints = Checkpoints(Path(run_dir) / "checkpoints")
  if not checkpoints.steps():
    raise CheckpointError(f"{run_dir} holds no complete checkpoint yet.")
  if best is not None and step is not None:
    raise ConfigError(f"tuned.best={best!r} and tuned.step={step}: set one of them.")
  if best is not None:
    step = checkpoints.best(best)
  if step is None:
    step, digest = checkpoints.last_whole()
  else:
    digest = checkpoints.digest(step)
  settings: dict[str, Any] = {"run_dir": str(Path(run_dir).resolve()), "step": step}
  if not averages:
    settings["averages"] = False
    digest = f"{digest} without averages"

  def saved(layout: Layout) -> PyTree:
    trained = lora or model
    abstract = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      trained.shapes(),
      param_shardings(trained, layout),
    )
    restore = checkpoints.restore_averages if averages else checkpoints.restore_params
    return restore(abstract, step)[0]

  def load(layout: Layout, key: jax.Array) -> PyTree:
    params = saved(layout)
    return merged(lora, base.load(layout, key), params, layout) if lora and base else params

  return ModelSource(
    f"{run_dir}, step {step}",
    model,
    load_vocabulary(Path(run_dir) / "vocabulary"),
    load,
    f"{digest} on {base.fingerprint}" if base else digest,
    about.format,
    reopened_by=("tuned", settings),
    trained=TrainedAdapters(lora, base, saved) if lora and base else None,
    generation=about.generation,
    trained_on=about.trained_on,
  )


def lora(
  model: ModelSource,
  rank: int = 16,
  alpha: float = 32.0,
  dropout: float = 0.0,
  rank_stabilised: bool = False,
  patterns: Sequence[str] = ("*attention*kernel", "*mlp*kernel"),
  magnitudes: bool = False,
) -> ModelSource:
  """A model whose parameters stay frozen while low-rank adapters are trained beside them.

  Args:
    model: published, or tuned by an earlier run.
    rank, alpha, dropout, rank_stabilised, patterns, magnitudes: see `flan_jax.training.lora.LoraConfig`.

  Raises:
    ConfigError: the settings do not fit the model, or it has adapters already.
  """
  if model.lora is not None:
    raise ConfigError("lora.model is @lora() itself; train its adapters first, then use @tuned().")
  config = LoraConfig(rank, alpha, dropout, rank_stabilised, tuple(patterns), magnitudes)
  return dataclasses.replace(model, lora=Lora(model.model, config))


def continued(source: ModelSource, run_dir: Path) -> ModelSource:
  """A model with the parameters that a run left; dropout, remat and numerics are those of `source`.

  Raises:
    CheckpointError: the run has no whole checkpoint.
    ConfigError: it trained another model or vocabulary.
  """
  before = tuned(str(run_dir))
  check_continues(source, before)
  both_ways = before.model.bidirectional_inputs
  return dataclasses.replace(
    source,
    model=dataclasses.replace(source.model, bidirectional_inputs=both_ways),
    origin=before.origin,
    load=before.load,
    fingerprint=before.fingerprint,
    reopened_by=before.reopened_by,
    trained_on=before.trained_on,
  )


def check_continues(source: ModelSource, before: ModelSource) -> None:
  """Raises ConfigError where a model cannot have the parameters that the phase before leaves."""
  ours, theirs = source.model.config, before.model.config
  shapes = dataclasses.asdict(ours) | {
    name: getattr(theirs, name, None)
    for name in ("dropout_rate", "remat", "scan_layers", "dtype", "attention")
  }
  differences = [
    f"{name} is {getattr(theirs, name)!r} there and {value!r} here"
    for name, value in dataclasses.asdict(ours).items()
    if getattr(theirs, name, None) != shapes[name]
  ]
  if source.vocabulary.fingerprint != before.vocabulary.fingerprint:
    differences.append("its vocabulary is another one")
  if differences:
    raise ConfigError(
      f"it cannot go on from the phase before: {'; '.join(differences)}. Give both phases one model."
    )


def merged(
  lora: Lora, base: PyTree, adapters: PyTree, layout: Layout, keep: bool = False
) -> PyTree:
  """W + s A B on the mesh; unless `keep`, in the place of the base, which is given up."""
  shardings = param_shardings(lora.model, layout)
  with layout.active():
    merge = jax.jit(lora.merge, donate_argnums=() if keep else 0, out_shardings=shardings)
    return merge(base, adapters)


def describe_model(source: ModelSource, format: Format, run_dir: Path) -> None:
  """Writes beside a run's checkpoints what `tuned` needs to open them; process 0 does."""
  if not is_first():
    return
  source.vocabulary.save(run_dir / "vocabulary")
  about: dict[str, Any] = {
    "origin": source.origin,
    "layout": source.model.layout,
    "config": dataclasses.asdict(source.model.config),
    "bidirectional_inputs": source.model.bidirectional_inputs,
    "format": format.as_dict(),
    "generation": dict(source.generation),
    "trained_on": dict(source.trained_on),
  }
  if source.lora and source.reopened_by:
    opener, settings = source.reopened_by
    about["lora"] = dataclasses.asdict(source.lora.config)
    about["base"] = {"from": opener, "settings": settings, "fingerprint": source.fingerprint}
  write_whole(run_dir / _DESCRIPTION, [json.dumps(about, indent=2), "\n"])


class _Description(NamedTuple):
  """What `describe_model` wrote."""

  config: DecoderConfig | EncoderDecoderConfig
  format: Format
  bidirectional_inputs: bool
  lora: LoraConfig | None
  base: dict[str, Any] | None
  generation: dict[str, Any]
  trained_on: dict[str, str]

  @classmethod
  def read(cls, run_dir: Path) -> "_Description":
    path = run_dir / _DESCRIPTION
    if not path.is_file():
      phases = sorted(str(each.parent) for each in run_dir.glob(f"*/{_DESCRIPTION}"))
      hint = f" Its phases are runs: {', '.join(phases)}." if phases else ""
      raise CheckpointError(
        f"{run_dir} is no run of `flan-jax train`: it has no {_DESCRIPTION}.{hint}"
      )
    try:
      about = json.loads(path.read_text())
      lora, base = about.get("lora"), about.get("base")
      return cls(
        _CONFIGS[about["layout"]](**about["config"]),
        format_from_dict(about["format"]),
        about.get("bidirectional_inputs", False),
        lora and LoraConfig(**lora),
        lora and {name: base[name] for name in ("from", "settings", "fingerprint")},
        about.get("generation", {}),
        about.get("trained_on", {}),
      )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise CheckpointError(
        f"{path} is damaged ({error}): delete it, and the run's own command writes it again."
      ) from error


def _base(about: Mapping[str, Any], run_dir: str) -> ModelSource:
  """The model that a run's adapters were trained beside, the very same one."""
  opener, settings = about["from"], about["settings"]
  if opener not in _OPENERS:
    raise CheckpointError(f"{run_dir}: its adapters have a base from {opener!r}, which is unknown.")
  if opener == "pretrained":
    settings = {**settings, "vocabulary": load_vocabulary(Path(run_dir) / "vocabulary")}
  try:
    base = _OPENERS[opener](**settings)
  except (FlanJaxError, TypeError) as error:
    raise CheckpointError(f"{run_dir} holds adapters, and their base is gone: {error}") from error
  if base.fingerprint != about["fingerprint"]:
    raise CheckpointError(
      f"{run_dir} holds adapters, and their base {base.origin} has changed since: it was "
      f"{about['fingerprint']}, and is {base.fingerprint}. Put back what it was."
    )
  return base


_OPENERS: dict[str, Callable[..., ModelSource]] = {"pretrained": pretrained, "tuned": tuned}
