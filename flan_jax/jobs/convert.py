"""`flan-jax convert`: a model as a folder that transformers and vLLM open."""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from flan_jax import __version__
from flan_jax.checkpoints import Checkpoints
from flan_jax.checkpoints.hugging_face import SHARD_BYTES, stop_ids, write_folder
from flan_jax.checkpoints.peft import write_adapters
from flan_jax.data.batches import START_ID
from flan_jax.errors import ConfigError
from flan_jax.jobs.models import ModelSource
from flan_jax.jobs.processes import is_first
from flan_jax.models import parameter_count
from flan_jax.training.lora import Lora
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh

PyTree = Any


def convert(
  model: ModelSource,
  folder: str,
  *,
  adapters: bool = False,
  base: str = "",
  dtype: str | None = None,
  shard_gigabytes: float = 5.0,
  mesh: MeshConfig = MeshConfig(),
) -> None:
  """Writes config.json, safetensors, the tokenizer and a model card: all of it, or nothing.

  Args:
    folder: must not exist.
    adapters: write the adapters that a run has trained as PEFT and vLLM open them, alone; without, they are merged
      into their base.
    base: what PEFT is told to open beside the adapters, a name or a folder; "": what the run opened.
    dtype: of the tensors; None: that of the parameters. Adapters stay in float32.
    shard_gigabytes: largest file.

  Raises:
    ConfigError: the folder exists, no family of Hugging Face's has such a model, or it has no adapters.
  """
  if model.lora is not None:
    raise ConfigError(
      "@lora() has adapters that nobody has trained: give @tuned() of a run of them."
    )
  if jax.process_count() > 1:
    raise ConfigError("a folder is written by one process: run this launch in one, on its devices.")
  if base and not adapters:
    raise ConfigError(
      f"convert.base={base!r} is for adapters alone: set convert.adapters, or leave it out."
    )
  if not 0 < shard_gigabytes < math.inf:
    raise ConfigError(f"convert.shard_gigabytes={shard_gigabytes} must be above 0.")
  layout, key = make_layout(model.model, make_mesh(mesh)), jax.random.key(0)
  if not adapters:
    _write_model(model, Path(folder), model.load(layout, key), dtype, int(shard_gigabytes * 1e9))
  elif model.trained is None:
    raise ConfigError(f"{model.origin} has no adapters: give @tuned() of a run of @lora().")
  else:
    lora, opened = model.trained.lora, model.trained.base
    magnitudes = lora.config.magnitudes
    params = opened.load(layout, key) if magnitudes else model.model.shapes()
    trained = model.trained.load(layout)
    _write_adapters(model, Path(folder), lora, trained, params, base or opened.origin)
  if is_first():
    print(f"written: {folder}", file=sys.stderr)


def export(source: ModelSource, run: Path, step: int, params: PyTree, base: PyTree) -> None:
  """Writes what a run has just saved to `exported/<step>`, as `convert` would: adapters alone, if those are trained.

  Folders whose checkpoint is not kept any longer go.

  Args:
    source: what is trained.
    params: trained, as they are after `step`.
    base: parameters that the adapters stand beside; None: there are no adapters.
  """
  exported = run / "exported"
  kept = {str(step) for step in Checkpoints(run / "checkpoints").steps()}
  for folder in exported.iterdir() if exported.is_dir() else ():
    if folder.name not in kept:
      shutil.rmtree(folder)
  if (exported / str(step)).exists():
    return
  exported.mkdir(exist_ok=True)
  saved = ("tuned", {"run_dir": str(run), "step": step})
  model = dataclasses.replace(
    source, origin=f"{run.name}, step {step}", reopened_by=saved, lora=None
  )
  if source.lora is None:
    _write_model(model, exported / str(step), params)
  else:
    _write_adapters(model, exported / str(step), source.lora, params, base, source.origin)


def _write_model(
  model: ModelSource,
  folder: Path,
  params: PyTree,
  dtype: str | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  write_folder(
    folder,
    model.model,
    params,
    model.vocabulary,
    dtype=dtype,
    stop_ids=stop_ids(model.generation, model.vocabulary),
    generation=_generation(model),
    shard_bytes=shard_bytes,
    card=_card(model, folder.name, adapters=False),
  )


def _write_adapters(
  model: ModelSource, folder: Path, lora: Lora, adapters: PyTree, params: PyTree, base: str
) -> None:
  card = _card(model, folder.name, adapters=True)
  write_adapters(folder, model.model, lora.config, adapters, params, origin=base, card=card)


def _generation(model: ModelSource) -> dict[str, Any]:
  """As its publisher says, but for the token that a decoder begins with, which is ours once it is tuned."""
  tuned = (model.reopened_by or ("", {}))[0] == "tuned"
  told = dict(model.generation)
  if tuned and model.model.layout == "encoder_decoder":
    told["decoder_start_token_id"] = START_ID
  return told


def _card(model: ModelSource, name: str, adapters: bool) -> str:
  return "\n".join(_card_lines(model, name, adapters)) + "\n"


def _card_lines(model: ModelSource, name: str, adapters: bool) -> Iterator[str]:
  """The model card: what it is, what it was tuned on and how, and how it was judged."""
  yield from (
    "---",
    f"library_name: {'peft' if adapters else 'transformers'}",
    "tags: [flan-jax, instruction-tuning]",
    "---",
    "",
  )
  yield from (f"# {name}", "")
  what = "Adapters" if adapters else f"{parameter_count(model.model):,} parameters"
  yield f"{what}, written by flan-jax {__version__} from {model.origin}."
  opener, settings = model.reopened_by or ("", {})
  if opener != "tuned":
    return
  run = Path(settings["run_dir"])
  meta = Checkpoints(run / "checkpoints").meta(settings["step"])
  yield from (
    "",
    "## Training",
    "",
    f"Tuned on the mixture `{meta['mixture']}`, {meta['step']:,} steps.",
  )
  fingerprints = meta["fingerprints"]
  yield f"Records, templates and tokenizer as prepared: store `{fingerprints['store'][:16]}`."
  yield from ("", "```", meta["gin"].strip(), "```")
  report = run / "report.json"
  if report.is_file():
    yield from ("", "## Evaluation", "", *_table(json.loads(report.read_text())))


def _table(report: Mapping[str, Any]) -> Iterator[str]:
  yield "Zero-shot, with 95 % intervals; tasks marked * belong to clusters that were held out of tuning."
  yield from ("", "| task | metric | n | before | after | majority |", "|---|---|---|---|---|---|")
  for task in report["tasks"]:
    low, high = task["after_interval"] or (None, None)
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    star = " *" if task["held_out"] else ""
    row = (
      f"{task['name']}{star}",
      task["metric"],
      str(task["n"]),
      _number(task["before"]),
      f"{_number(task['after'])}{interval}",
      _number(task["majority"]),
    )
    yield f"| {' | '.join(row)} |"


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.3f}"
