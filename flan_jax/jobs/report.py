"""The report at the end of a launch: files, pictures, and a table on the terminal."""

import importlib.metadata
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from flan_jax.evaluation import Evaluation, build_report, terminal_table, write_html
from flan_jax.jobs.processes import is_first


class Phases:
  """Seconds spent in each phase of a launch."""

  def __init__(self) -> None:
    self.seconds: dict[str, float] = {}

  @contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
      yield
    finally:
      self.seconds[name] = round(time.monotonic() - started, 1)


def environment(phases: Phases) -> dict[str, Any]:
  """Versions, devices, seconds per phase, and peak memory of this process and its children."""
  packages = ("flan-jax", "jax", "flax", "optax", "numpy")
  peak = max(
    resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return {
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in packages},
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "seconds": dict(phases.seconds),
    "peak_memory_gb": round(peak / 2**20, 2),
  }


def write_report(
  directory: Path,
  after: Evaluation,
  before: Mapping[str, Evaluation],
  notes: tuple[str, ...],
  facts: Mapping[str, Any],
) -> None:
  """Writes report.json, examples.jsonl and report.html, and prints the table; process 0 does.

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
  write_html(report, directory / "report.html", run_dir=directory)
  print(terminal_table(report))
  seconds = ", ".join(f"{phase} {taken:.0f} s" for phase, taken in facts["seconds"].items())
  print(f"{seconds}; peak memory {facts['peak_memory_gb']:.1f} GB")
  print(f"report: {directory / 'report.html'}")
