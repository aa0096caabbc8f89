"""The commands that only look: templates, rows of stores, checkpoints."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from flan_jax.cli.table import print_table
from flan_jax.data import Provenance, Store, dataset_names, dataset_spec, load_records
from flan_jax.data.home import data_home
from flan_jax.data.records import are_built
from flan_jax.data.sources import is_large
from flan_jax.data.told import told_example
from flan_jax.errors import ConfigError, SourceError, TemplateError


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
  # A look is not worth the hours that some sets take to prepare.
  if not is_large(spec.source) or are_built(spec, data_home()):
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


def show_rows(options: argparse.Namespace) -> None:
  """The examples of some rows of a prepared store: where each comes from, and its text as it was stored."""
  if options.index is not None and not options.dataset:
    raise ConfigError("--index is a record of a dataset: name that by --dataset.")
  store = Store.open(options.store)
  for number in _chosen_rows(store, options):
    examples = zip(store.provenance(number), store.row(number), strict=True)
    for place, (provenance, example) in enumerate(examples):
      if not _is_asked_for(provenance, options):
        continue
      read, written = store.texts(example)
      if options.json:
        about = {"row": number, "place": place, **asdict(provenance)}
        print(json.dumps({**about, "inputs": read, "targets": written}, ensure_ascii=False))
      else:
        print("\n".join(told_example(number, place, provenance, read, written)))


def _chosen_rows(store: Store, options: argparse.Namespace) -> Iterator[int]:
  if options.row:
    return iter(options.row)
  if options.dataset:
    return islice(store.rows_of(options.dataset, options.index), options.limit)
  return iter(range(min(store.rows, options.limit)))


def _is_asked_for(provenance: Provenance, options: argparse.Namespace) -> bool:
  wanted = ((options.dataset, provenance.dataset), (options.index, provenance.index))
  return all(asked in (None, found) for asked, found in wanted)


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
