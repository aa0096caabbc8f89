"""The commands that only look: templates, checkpoints."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flan_jax.cli.table import print_table
from flan_jax.data import dataset_names, dataset_spec, load_records
from flan_jax.data.home import data_home
from flan_jax.data.records import are_built


def show_templates(options: argparse.Namespace) -> None:
  """Each template of a dataset on real examples, or every dataset's name."""
  from flan_jax.prompting.gallery import gallery

  if options.dataset is None:
    print("\n".join(dataset_names()))
    return
  spec = dataset_spec(options.dataset)
  templates = [spec.template(options.template)] if options.template else spec.templates
  records: Sequence[Mapping[str, Any]] = ()
  # A look is not worth the hours that some of TFDS take to prepare.
  if "tfds" not in spec.source or are_built(spec, data_home()):
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
  print_table(columns, [tuple(str(row[c]) for c in columns) for row in rows])
