"""The commands that only look: mixtures, templates, checkpoints."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flan_jax.data import (
  MixtureTask,
  dataset_names,
  dataset_spec,
  describe,
  get_mixture,
  load_records,
  mixture_names,
)
from flan_jax.data.home import data_home
from flan_jax.data.mirror import is_remote
from flan_jax.data.records import are_built


def show_mixtures(options: argparse.Namespace) -> None:
  """Every dataset of a mixture: how much there is, how often it is drawn, in which words."""
  if options.name is None:
    print("\n".join(mixture_names()))
    return
  mixture = get_mixture(options.name)
  rows = describe(mixture, data_home(), options.draws, options.strict)
  print(
    f"{mixture.name}: at most {mixture.max_examples:,} examples a dataset, rate cap "
    f"{mixture.rate_cap:,}, temperature {mixture.temperature:g}, "
    f"{'each template counted, ' if mixture.per_template else ''}"
    f"held out: {', '.join(mixture.hold_out) or 'nothing'}; passes at {options.draws:,} draws\n"
  )
  _print_table(
    ("dataset", "cluster", "examples", "cap", "rate", "share", "passes", "templates", "licence"),
    [
      (
        row.task.name,
        row.task.cluster,
        f"{row.task.examples:,}",
        f"{row.task.cap:,}",
        f"{row.task.rate:,.0f}",
        _place(row.task),
        f"{row.passes:.2f}",
        f"{len(row.templates)} + {len(row.unseen)} unseen",
        row.licence if len(row.licence) <= 60 else row.licence[:57] + "...",
      )
      for row in rows
    ],
  )
  for row in rows:
    if row.task.missing:
      print(f"\n{row.task.name} is missing: {row.task.missing}")


def _place(task: MixtureTask) -> str:
  if task.missing:
    return "missing"
  return "held out" if task.held_out else f"{task.share:.1%}"


def show_templates(options: argparse.Namespace) -> None:
  """Each template of a dataset on real examples, or every dataset's name."""
  from flan_jax.prompting.gallery import gallery

  if options.dataset is None:
    print("\n".join(dataset_names()))
    return
  spec = dataset_spec(options.dataset)
  templates = [spec.template(options.template)] if options.template else spec.templates
  records: Sequence[Mapping[str, Any]] = ()
  # A look is not worth the hours that some of TFDS and of the hub take to prepare.
  far = "tfds" in spec.source or is_remote(str(spec.source.get("files", "")))
  if not far or are_built(spec, data_home()):
    records = load_records(spec, data_home())[next(iter(spec.splits))][: options.examples]
  else:
    print(f"on the example of {spec.path}; `flan-jax mixtures {spec.name}` prepares real ones\n")
  print(gallery(spec, templates, records, seed=options.seed))


def show_checkpoints(options: argparse.Namespace) -> None:
  """The steps saved in a run's directory, each with a digest over the bytes of all its arrays."""
  from flan_jax.checkpoints import checkpoint_table

  run = Path(options.directory)
  rows = checkpoint_table(run / "checkpoints" if (run / "checkpoints").is_dir() else run)
  if options.json:
    print(json.dumps(rows, indent=2))
    return
  columns = list(rows[0]) if rows else []
  _print_table(columns, [tuple(str(row[c]) for c in columns) for row in rows])


def _print_table(header, rows) -> None:
  widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
  for row in [header, *rows]:
    print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
