"""`flan-jax compare` and `flan-jax explain`: what was judged in several folders, read again."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from flan_jax.cli.named_places import named_place
from flan_jax.errors import ConfigError
from flan_jax.evaluation import (
  compare,
  compared_table,
  explain,
  explained_table,
  read_evaluations,
  read_several,
)
from flan_jax.evaluation.pages.comparison_page import write_comparison, write_explanation


def show_compare(options: argparse.Namespace) -> None:
  """The checkpoints of several reports side by side, with paired differences from the first.

  Raises:
    ConfigError: two folders of one name.
    EvaluationError: a folder holds no report, or they were not judged on the same.
  """
  compared = compare(read_several(_named(options.folders)))
  print(json.dumps(compared.as_json()) if options.json else compared_table(compared), end="")
  if options.out:
    write_comparison(compared, options.out)


def show_explain(options: argparse.Namespace) -> None:
  """What a change is made of: of a report with a before, or from the checkpoint of one to that of another.

  Raises:
    ConfigError: a report has no before, and no other one was named.
    EvaluationError: a folder holds no report, or they were not judged on the same.
  """
  found = read_evaluations(options.report)
  if options.after:
    before, native, after = found["after"], None, read_evaluations(options.after)["after"]
  elif "before" in found:
    before, native, after = found["before"], found.get("baseline"), found["after"]
  else:
    raise ConfigError(
      f"the report in {options.report} has no untuned model to compare with: set evaluate.before, or name a later "
      "report as well."
    )
  if options.native:
    native = read_evaluations(options.native)["after"]
  explained = explain(before, after, native)
  print(json.dumps(explained.as_json()) if options.json else explained_table(explained), end="")
  if options.out:
    write_explanation(explained, options.out)


def _named(words: Sequence[str]) -> dict[str, Path]:
  """Folders by what they are called: NAME=FOLDER, or as much of the path as tells them apart."""
  pairs = [named_place(word) for word in words]
  paths = [Path(folder).resolve() for _, folder in pairs]
  shortest = 1
  while shortest < max(len(path.parts) for path in paths) and len(
    {path.parts[-shortest:] for path in paths}
  ) < len({*paths}):
    shortest += 1
  named = {
    name or "/".join(path.parts[-shortest:]): Path(folder)
    for (name, folder), path in zip(pairs, paths, strict=True)
  }
  if len(named) < len(words):
    raise ConfigError(f"two of {', '.join(words)} have one name: say NAME=FOLDER.")
  return named
