"""The report at the end of a launch: files, pictures, and a table on the terminal."""

import importlib.metadata
import json
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from flan_jax.data.atomic import write_whole
from flan_jax.errors import EvaluationError
from flan_jax.evaluation import (
  Evaluation,
  build_report,
  compare,
  compared_table,
  read_several,
  terminal_table,
  write_html,
  write_markdown,
)
from flan_jax.evaluation.pages.comparison_page import write_comparison
from flan_jax.jobs.processes import is_first
from flan_jax.training.timers import Timers

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")


def _made_with() -> dict[str, Any]:
  packages = ("flan-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  return {
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in packages},
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "processes": jax.process_count(),
    "flags": {name: os.environ[name] for name in _FLAGS if name in os.environ},
  }


def environment(timers: Timers) -> dict[str, Any]:
  """Versions, devices, seconds by kind, and peak memory of this process and its children."""
  peak = max(
    resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return {
    **_made_with(),
    "seconds": {kind: round(taken, 1) for kind, taken in timers.seconds.items()},
    "peak_memory_gb": round(peak / 2**20, 2),
  }


def write_environment(directory: Path) -> None:
  """Notes in `environment.json` what the run is made with; process 0 does."""
  if is_first():
    about = {**_made_with(), "command": sys.argv, "host": platform.node()}
    write_whole(directory / "environment.json", [json.dumps(about, indent=2), "\n"])


def write_report(
  directory: Path,
  after: Evaluation,
  before: Mapping[str, Evaluation],
  notes: tuple[str, ...],
  facts: Mapping[str, Any],
) -> None:
  """Writes report.json, examples.jsonl, report.md and report.html, and prints the table; process 0
  does.

  Args:
    before: the untuned model by format: "plain" (the format of `after`), "chat"; {} where `after`
      is reported alone.
    facts: what `environment` found, and whatever else belongs into the report.
  """
  if not is_first():
    return
  report = build_report(
    after, before.get("plain"), before.get("chat"), notes=notes, environment=facts
  )
  report.write(directory)
  write_markdown(report, directory / "report.md")
  write_html(report, directory / "report.html", run_dir=directory)
  print(terminal_table(report))
  seconds = ", ".join(f"{kind} {taken:.0f} s" for kind, taken in facts["seconds"].items())
  print(f"{seconds}; peak memory {facts['peak_memory_gb']:.1f} GB")
  print(f"report: {directory / 'report.html'}")


def compare_phases(directory: Path, phases: Sequence[str]) -> None:
  """Writes comparison.json and comparison.html of what several phases were judged on, and prints the table.

  Process 0 does; what was not judged on the same is not compared, and that is told.
  """
  judged = {
    name: directory / name for name in phases if (directory / name / "report.json").is_file()
  }
  if not is_first() or len(judged) < 2:
    return
  try:
    compared = compare(read_several(judged))
  except EvaluationError as error:
    print(f"the phases are not compared: {error}", file=sys.stderr)
    return
  write_whole(directory / "comparison.json", [json.dumps(compared.as_json(), indent=2), "\n"])
  write_comparison(compared, directory / "comparison.html")
  print(compared_table(compared))
  print(f"comparison: {directory / 'comparison.html'}")
