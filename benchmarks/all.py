"""The benchmarks that have a mark to reach, one after the other, and their table in docs/benchmarks.md.

  make benchmarks
  python benchmarks/all.py --only training_step packing

Of a script that is left out, or fails, the rows that stand in the table stay as they are, unless another machine or
other versions made them; each row has its date.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from figures import TOLD, Figure

SCRIPTS = {
  "rendering": [],
  "promptsource": [],
  "packing": [],
  "pipeline": [],
  "loss_memory": ["--turns", "1"],
  "training_step": ["--turns", "3"],
  "mixture_tuning": [],
  "start_up": ["--turns", "2"],
  "generation": ["--turns", "2", "--new", "64"],
}
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by benchmarks/all.py -->", "<!-- until here -->"
PEERS = ("jax", "torch", "transformers", "seqio", "tensorflow", "grain")
HEAD = ["| what | found | ratio | mark | script | date |", "|---|---|---|---|---|---|"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", nargs="*", choices=SCRIPTS, default=list(SCRIPTS))
  args = parser.parse_args()
  failed = []
  for script in args.only:
    begun = time.perf_counter()
    print(f"== {script}", flush=True)
    try:
      figures = run(script)
    except subprocess.CalledProcessError as error:
      failed.append(f"{script} ({error.returncode})")
      continue
    write(script, figures)
    print(f"-- {script}: {(time.perf_counter() - begun) / 60:.1f} min", flush=True)
  print("\n" + "\n".join(table()))
  if failed:
    sys.exit(f"failed: {', '.join(failed)}")


def run(script: str) -> list[Figure]:
  with tempfile.NamedTemporaryFile("r") as told:
    subprocess.run(
      [sys.executable, Path(__file__).with_name(f"{script}.py"), *SCRIPTS[script]],
      check=True,
      env={**os.environ, TOLD: told.name, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return [Figure(**json.loads(line)) for line in told]


def write(script: str, figures: Iterable[Figure]) -> None:
  """Puts the script's rows in place of those that the page has of it."""
  page = PAGE.read_text()
  before, after = page[: page.index(BEGIN)], page[page.index(END) :]
  same = about() in page
  rows = [row for row in table()[2:] if same and f"| `{script}.py` |" not in row]
  rows += (row_of(script, figure) for figure in figures)
  order = list(SCRIPTS)
  rows.sort(key=lambda row: order.index(row.split("`")[-2].removesuffix(".py")))
  PAGE.write_text("\n".join([before + BEGIN, "", about(), "", *HEAD, *rows, "", after]))


def table() -> list[str]:
  page = PAGE.read_text()
  written = page[page.index(BEGIN) : page.index(END)].splitlines()
  return [line for line in written if line.startswith("|")] or HEAD


def row_of(script: str, figure: Figure) -> str:
  way = "at most" if figure.at_most else "at least"
  mark = f"{way} {figure.mark:g}" + ("" if figure.reached else ", NOT reached")
  found = f"{figure.ratio:.4g} {figure.unit}"
  today = datetime.date.today().isoformat()
  return f"| {figure.what} | {figure.found} | {found} | {mark} | `{script}.py` | {today} |"


def about() -> str:
  versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
  return f"{len(os.sched_getaffinity(0))} cores, {processor()}, Python {platform.python_version()}, {versions}."


def processor() -> str:
  lines = Path("/proc/cpuinfo").read_text().splitlines()
  return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
  main()
