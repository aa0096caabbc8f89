"""`flan-jax contamination`: what is trained on beside what is evaluated."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flan_jax.cli.table import print_table
from flan_jax.data.atomic import write_whole
from flan_jax.data.contamination import SAME_RECORDS, Contamination, Overlap, Pair, contamination
from flan_jax.data.exemplars import ExemplarOverlap, exemplar_overlaps
from flan_jax.data.home import data_home
from flan_jax.errors import ConfigError

_SHOWN_WORDS = 25


def show_contamination(options: argparse.Namespace) -> None:
  """Tables of what the two sides share; JSON with `--json`, and in the file that `--out` names."""
  if options.out and not Path(options.out).resolve().parent.is_dir():
    raise ConfigError(f"--out {options.out}: there is no such folder; make it, or name another.")
  found = contamination(
    options.train,
    options.eval,
    data_dir=data_home(),
    examples=options.examples,
    progress=True,
  )
  exemplars = (
    exemplar_overlaps(options.train, data_home(), options.few_shot) if options.few_shot else []
  )
  if options.json or options.out:
    text = json.dumps(_as_json(found, exemplars), indent=2, ensure_ascii=False)
    if options.out:
      write_whole(Path(options.out), [text + "\n"])
    if options.json:
      print(text)
      return
  _print_overlaps("evaluated", found.evaluated)
  _print_overlaps("trained on", found.train)
  for pair in found.pairs:
    _print_pair(pair)
  if exemplars:
    print(f"\nqueries with {options.few_shot} exemplars of other groups")
    _print_exemplars(exemplars)
  for name, reason in found.missing.items():
    print(f"\n{name} was not compared: {reason}")


def _as_json(found: Contamination, exemplars: Sequence[ExemplarOverlap]) -> dict[str, Any]:
  pairs = [
    {**asdict(pair), "same_records": pair.same_records >= SAME_RECORDS} for pair in found.pairs
  ]
  return {**asdict(found), "pairs": pairs, "exemplars": [asdict(each) for each in exemplars]}


def _print_overlaps(title: str, overlaps: Sequence[Overlap]) -> None:
  header = (title, "split", "examples", "record", "field", "n-gram", "any", "share")
  print_table(header, [_row(overlap) for overlap in overlaps])
  print()


def _row(overlap: Overlap) -> tuple[str, ...]:
  fields = ", ".join(f"{name} {count:,}" for name, count in overlap.fields.items())
  counts = [f"{overlap.examples:,}", f"{overlap.record:,}", fields or "0", f"{overlap.ngram:,}"]
  return (
    overlap.dataset,
    overlap.split,
    *counts,
    f"{overlap.overlapping:,}",
    f"{overlap.share:.1%}",
  )


def _print_pair(pair: Pair) -> None:
  train, evaluated = pair.train, pair.evaluated
  print(
    f"{train.dataset} ({train.split}) and {evaluated.dataset} ({evaluated.split}): "
    f"{train.overlapping:,} training records overlap with {evaluated.overlapping:,} evaluated ones"
  )
  if pair.same_records >= SAME_RECORDS:
    print(f"  these two datasets share {pair.same_records:.0%} of their records")
  for example in pair.examples:
    what = example.field or "all fields"
    words = example.words.split()
    shown = " ".join(words[:_SHOWN_WORDS]) + (" ..." if len(words) > _SHOWN_WORDS else "")
    print(
      f"  {example.kind}, {what}: {train.split} {example.train[-1]} and "
      f"{evaluated.split} {example.evaluated[-1]}: {shown}"
    )


def _print_exemplars(overlaps: Sequence[ExemplarOverlap]) -> None:
  rows = [
    (
      each.dataset,
      f"{each.queries:,}",
      f"{each.equal:,}",
      f"{each.sharing:,}",
      "" if each.first is None else "train {} and {}".format(*each.first),
    )
    for each in overlaps
  ]
  print_table(("dataset", "queries", "equal", "sharing a field", "first"), rows)
