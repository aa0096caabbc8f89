"""Evaluations as the folder of a report holds them, to be compared with others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flan_jax.errors import EvaluationError
from flan_jax.evaluation.results import Evaluation, ScoredExample, TaskResult, TemplateResult

_FILES = {
  "after": "examples.jsonl",
  "before": "examples_before.jsonl",
  "baseline": "examples_baseline.jsonl",
}


def read_evaluations(folder: Path | str) -> dict[str, Evaluation]:
  """What `Report.write` left: "after", and "before" and "baseline" where there are any.

  Examples come in the order of their index, so that those of two evaluations can be paired.

  Raises:
    EvaluationError: there is no report, or a file of it is damaged.
  """
  folder = Path(folder)
  if not (folder / "report.json").is_file():
    reports = sorted(str(path.parent) for path in folder.glob("*/report.json"))
    hint = f" There are some below: {', '.join(reports)}." if reports else ""
    raise EvaluationError(
      f"{folder} holds no report.json, so nothing was judged there: name the OUT_DIR of `flan-jax evaluate`, or the "
      f"RUN_DIR of a run with an evaluation.{hint}"
    )
  try:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {
      role: _evaluation(about, report, folder / _FILES[role])
      for role, about in report["checkpoints"].items()
    }
  except (ValueError, LookupError, TypeError, OSError) as error:
    raise EvaluationError(
      f"the report in {folder} is damaged, or of another version ({error!r}): the command that wrote it writes it "
      "again, from what is scored already."
    ) from error


def read_several(folders: Mapping[str, Path]) -> dict[str, Evaluation]:
  """What was judged in several folders, by the names that these are given, to be compared.

  Where all of them were tuned from one model that was judged as well, it comes first, as "untuned" and, in its own
  chat format, "untuned, chat".

  Raises:
    EvaluationError: see `read_evaluations`; or a folder is given one of these two names.
  """
  read = {name: read_evaluations(folder) for name, folder in folders.items()}
  found: dict[str, Evaluation] = {}
  for role, name in (("before", "untuned"), ("baseline", "untuned, chat")):
    untuned = [roles[role] for roles in read.values() if role in roles]
    same = {tuple(sorted(each.fingerprints.items())) for each in untuned}
    if len(untuned) == len(read) and len(same) == 1:
      if name in read:
        raise EvaluationError(
          f"{name!r} is the model before tuning: call {folders[name]} otherwise."
        )
      found[name] = untuned[0]
  return found | {name: roles["after"] for name, roles in read.items()}


def _evaluation(about: Mapping[str, Any], report: Mapping[str, Any], examples: Path) -> Evaluation:
  found: dict[tuple[str, str], list[ScoredExample]] = {}
  metrics: dict[tuple[str, str], str] = {}
  with examples.open(encoding="utf-8") as lines:
    for line in map(json.loads, lines):
      key = line["task"], line["template"]
      found.setdefault(key, []).append(_example(line))
      metrics[key] = line["metric"]
  count = sum(map(len, found.values()))
  if count != about["examples"]:
    raise ValueError(f"{examples.name} has {count} examples, and {about['examples']} were scored")
  return Evaluation(
    about["checkpoint"],
    about["format"],
    report["scoring"],
    tuple(_task(row, found, metrics) for row in report["tasks"]),
    about["fingerprints"],
    about["seconds"],
  )


def _task(
  row: Mapping[str, Any],
  found: Mapping[tuple[str, str], Sequence[ScoredExample]],
  metrics: Mapping[tuple[str, str], str],
) -> TaskResult:
  name, draw = row["name"], row["draw"]
  templates = [
    TemplateResult(
      about["template"],
      metrics[name, about["template"]],
      about["fixed_labels"],
      tuple(sorted(found[name, about["template"]], key=lambda example: example.index)),
      about["unseen"],
      tuple(row["also"]),
    )
    for about in row["spread"]["templates"]
  ]
  return TaskResult(
    name,
    row["cluster"],
    row["held_out"],
    draw["split"],
    draw["seed"],
    draw["shots"],
    tuple(sorted({example.index for each in templates for example in each.examples})),
    tuple(draw["unfit"]),
    tuple(templates),
    row["trained_cluster"],
    row["overlap"],
  )


def _example(line: Mapping[str, Any]) -> ScoredExample:
  same = ("index", "inputs", "input_ids", "options", "labels", "option_ids", "generated", "style")
  fields = {name: line[name] for name in same}
  return ScoredExample.from_json({**fields, "golds": line["targets"], "scores": line["sums"]})
