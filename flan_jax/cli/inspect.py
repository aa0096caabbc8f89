"""The commands that only look: templates, checkpoints."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flan_jax.cli.table import print_table
from flan_jax.data import dataset_names, dataset_spec, load_records
from flan_jax.data.home import data_home
from flan_jax.data.mirror import is_remote
from flan_jax.data.records import are_built
from flan_jax.errors import SourceError, TemplateError


def show_templates(options: argparse.Namespace) -> None:
  """Each template of a dataset on real examples, or every dataset's name; or their lint or web page."""
  from flan_jax.prompting.gallery import gallery

  names = dataset_names() if options.dataset is None else [options.dataset]
  if options.lint:
    _lint(names)
    return
  if options.html is not None:
    _write_page(names, Path(options.html), options.seed)
    return
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


def _lint(names: Sequence[str]) -> None:
  from flan_jax.prompting.lint import lint

  found: list[str] = []
  for name in names:
    try:
      found += lint(dataset_spec(name))
    except TemplateError as error:
      found += str(error).split("\n")
    except SourceError:
      continue  # promptsource's templates cannot be had, and are left alone anyway
  if found:
    print("\n".join(found))
    raise TemplateError(f"findings in the templates: {len(found)}")


def _write_page(names: Sequence[str], path: Path, seed: int) -> None:
  from flan_jax.data.atomic import write_whole
  from flan_jax.prompting.gallery_page import gallery_page

  if path.is_dir() or path.suffix not in (".html", ".htm"):
    path = path / "index.html"
  specs = []
  for name in names:
    try:
      specs.append(dataset_spec(name))
    except SourceError as error:  # promptsource's templates have to be fetched
      print(f"{name} is left out: {error}", file=sys.stderr)
  write_whole(path, [gallery_page(specs, seed)])
  print(path)


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
