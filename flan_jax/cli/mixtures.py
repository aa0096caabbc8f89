"""`flan-jax mixtures`: what is in a mixture before any run, its lock, and what two locks differ in."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_jax.cli.table import print_table
from flan_jax.data import (
  Mixture,
  MixtureTask,
  TaskDescription,
  describe,
  get_mixture,
  mixture_names,
)
from flan_jax.data.home import data_home
from flan_jax.data.mixtures import is_known
from flan_jax.data.token_lengths import SAMPLE, TokenLengths, token_lengths
from flan_jax.errors import ConfigError

if TYPE_CHECKING:
  from flan_jax.data.encode import Layout
  from flan_jax.data.store import StoreConfig

_DRAWS = 10_000
_LENGTHS = {"inputs": 1024, "targets": 256}
_OPTIONS = ("draws", "json", "layout", "lengths", "lock", "strict", "vocabulary")
_SETTINGS = ("max_examples", "rate_cap", "temperature", "per_template")
_MEASURES = ("inputs", "targets", "shortened", "dropped")


def show_mixtures(options: argparse.Namespace) -> None:
  """Every mixture; one, dataset by dataset; or what differs between two.

  Raises:
    ConfigError: the words or options do not go together.
  """
  _check(options)
  if options.words[:1] == ["diff"]:
    _show_changes(options)
  elif not options.words:
    names = mixture_names()
    print(json.dumps(names, indent=1) if options.json else "\n".join(names))
  elif options.lock:
    _write_lock(options)
  else:
    _show(options)


def _check(options: argparse.Namespace) -> None:
  words = options.words
  if words[:1] == ["diff"] and len(words) != 3:
    raise ConfigError(
      "`flan-jax mixtures diff A B` takes two: each a mixture, or a file that --lock wrote."
    )
  if words[:1] != ["diff"] and len(words) > 1:
    raise ConfigError(
      f'one mixture at a time: write "{" ".join(words)}" in quotes if that is its name.'
    )
  given = [name for name in _OPTIONS if getattr(options, name) is not None]
  for name in given:
    if name not in _obeyed(options):
      hint = " without --vocabulary" if name in ("lengths", "layout") else ""
      raise ConfigError(f"--{name} would be ignored here{hint}: leave it out.")


def _obeyed(options: argparse.Namespace) -> set[str]:
  """The options that the form of the command takes."""
  if not options.words:
    return {"json"}
  if options.words[0] == "diff":
    return {"json", "strict"}
  if options.lock:
    return {"lock", "strict"}
  of_lengths = {"lengths", "layout"} if options.vocabulary else set()
  return {"draws", "json", "strict", "vocabulary", *of_lengths}


def _show(options: argparse.Namespace) -> None:
  mixture = get_mixture(options.words[0])
  draws = _DRAWS if options.draws is None else options.draws
  config = _config(options, mixture)
  rows = describe(mixture, data_home(), draws, bool(options.strict))
  tasks = [row.task for row in rows]
  lengths = token_lengths(tasks, config, data_home()) if config is not None else None
  held_out = list(dict.fromkeys(task.cluster for task in tasks if task.held_out))
  if options.json:
    settings = {
      **{name: getattr(mixture, name) for name in _SETTINGS},
      "hold_out": held_out,
      "draws": draws,
      **{name: getattr(config, name, None) for name in ("layout", "lengths")},
    }
    datasets = [_as_json(row, lengths) for row in rows]
    about = {"mixture": mixture.name, **settings, "datasets": datasets}
    print(json.dumps(about, indent=1, ensure_ascii=False))
    return
  print(
    f"{mixture.name}: at most {mixture.max_examples:,} examples a dataset, rate cap "
    f"{mixture.rate_cap:,}, temperature {mixture.temperature:g}, "
    f"{'each template counts, ' if mixture.per_template else ''}"
    f"held out: {', '.join(held_out) or 'nothing'}; passes at {draws:,} draws\n"
  )
  measures = () if lengths is None else _MEASURES
  header = ("dataset", "cluster", "available", "used", "cap", "rate", "share", "passes")
  print_table(
    (*header, *measures, "templates", "licence", "source"), [_cells(row, lengths) for row in rows]
  )
  if lengths is not None:
    print(
      f"\nlengths in tokens, of the first {SAMPLE} draws of each dataset as training stores them"
    )
  for row in rows:
    if row.task.missing:
      print(f"\n{row.task.name} is {row.task.status}: {row.task.missing}")


def _config(options: argparse.Namespace, mixture: Mixture) -> "StoreConfig | None":
  """What training with these options would store; None without a vocabulary."""
  if options.vocabulary is None:
    return None
  from flan_jax.checkpoints.vocabularies import open_vocabulary
  from flan_jax.data.store import StoreConfig
  from flan_jax.vocabularies import PlainFormat

  vocabulary = open_vocabulary(options.vocabulary, data_home())
  layout: Layout = options.layout or "encoder_decoder"
  bos = layout == "decoder" and vocabulary.bos_id is not None
  lengths = options.lengths or _LENGTHS
  return StoreConfig(mixture, vocabulary, PlainFormat(bos=bos), layout, lengths)


def _cells(row: TaskDescription, lengths: dict[str, TokenLengths] | None) -> tuple[str, ...]:
  task = row.task
  found = (lengths or {}).get(task.name)
  measures = ("",) * len(_MEASURES) if lengths is not None else ()
  if found is not None:
    means = ["-" if mean is None else f"{mean:.0f}" for mean in (found.inputs, found.targets)]
    measures = (*means, f"{found.shortened:.1%}", f"{found.dropped:.1%}")
  return (
    task.name,
    task.cluster,
    f"{task.available:,}",
    f"{task.examples:,}",
    f"{task.cap:,}",
    f"{task.rate:,.0f}",
    _place(task),
    f"{row.passes:.2f}",
    *measures,
    f"{len(row.templates)} + {len(row.unseen)} unseen",
    row.licence if len(row.licence) <= 60 else row.licence[:57] + "...",
    row.source,
  )


def _place(task: MixtureTask) -> str:
  if task.missing:
    return task.status
  return "held out" if task.held_out else f"{task.share:.1%}"


def _as_json(row: TaskDescription, lengths: dict[str, TokenLengths] | None) -> dict[str, Any]:
  """The keys are always the same; what was not measured is null."""
  found = (lengths or {}).get(row.task.name)
  about = {**asdict(row.task), "status": row.task.status, **asdict(row)}
  del about["task"], about["fetchable"]
  return {**about, **{name: getattr(found, name, None) for name in _MEASURES}}


def _write_lock(options: argparse.Namespace) -> None:
  from flan_jax.data.locks import lock_mixture, write_lock

  lock = lock_mixture(options.words[0], data_home(), bool(options.strict))
  write_lock(Path(options.lock), lock)
  print(f"{options.lock}: {lock['mixture']}, sha256 {lock['hash']}")


def _show_changes(options: argparse.Namespace) -> None:
  from flan_jax.data.lock_changes import changes
  from flan_jax.data.locks import lock_mixture

  sides = [_lock_or_mixture(place) for place in options.words[1:]]
  before, after = (
    lock_mixture(side, data_home(), bool(options.strict)) if isinstance(side, Mixture) else side
    for side in sides
  )
  found = changes(before, after)
  if options.json:
    print(json.dumps(found, indent=1, ensure_ascii=False))
    return
  print(" -> ".join(f"{lock['mixture']} {lock['hash'][:12]}" for lock in (before, after)))
  if not found:
    print("nothing is different")
  for dataset, lines in found.items():
    print("\n" + "\n  ".join([dataset or "the mixture", *lines]))


def _lock_or_mixture(place: str) -> dict[str, Any] | Mixture:
  """The lock in a file, or the mixture of this name."""
  from flan_jax.data.locks import read_lock

  path = Path(place)
  if path.is_file() or (path.suffix and not is_known(place)):
    return read_lock(path)
  return get_mixture(place)
