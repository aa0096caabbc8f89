"""Seconds from the start of a launch until its first training step is on its way, and those of `flan-jax --help`.

  python benchmarks/start_up.py [--turns 3]

SmolLM2-135M as the quickstart tunes it, from a store that is there. The first launch compiles and keeps what it has
compiled; the others find it. Of each is told when its run began to step, what of that went into store and parameters,
and how long it took to compile or to find what is compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import Figure, tell

FLAN_JAX = str(Path(sys.executable).with_name("flan-jax"))
LAUNCH = (
  FLAN_JAX,
  "train",
  "--gin_file=recipes/quickstart.gin",
  "--gin.STEPS=1",
  "--gin.WARMUP_STEPS=0",
  "--gin.train.evaluation=None",
  "--gin.train.checkpoint_every=1",
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--turns", type=int, default=3)
  args = parser.parse_args()
  helped = []
  for _ in range(args.turns):
    begun = time.time()
    subprocess.run([FLAN_JAX, "--help"], check=True, stdout=subprocess.DEVNULL)
    helped.append(time.time() - begun)
  seconds = statistics.median(helped)
  tell(Figure("`flan-jax --help`", f"median of {args.turns}", seconds, 1, "s", at_most=True))
  warm = []
  with tempfile.TemporaryDirectory() as folder:
    for turn in range(1 + args.turns):
      run = Path(folder, f"run{turn}")
      environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
      begun = time.time()
      subprocess.run(
        [*LAUNCH, f"--gin.RUN_DIR={str(run)!r}"],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
      )
      told = json.loads((run / "attempts.jsonl").read_text().splitlines()[0])
      ready, seconds = told["begun"] - begun, told["seconds"]
      whole = ready + seconds["feed"] + seconds["compile"]
      print(
        f"{'warm' if turn else 'cold'}: {whole:.1f} s ({ready:.1f} until the first step, of which "
        f"{seconds['prepare']:.1f} the store and {seconds['restore']:.1f} the parameters; "
        f"{seconds['compile']:.1f} to compile)",
        flush=True,
      )
      warm += [whole] if turn else []
  tell(
    Figure(
      "from the start of a launch until the first step of SmolLM2-135M, warm",
      f"median of {args.turns}",
      statistics.median(warm),
      10,
      "s",
      at_most=True,
    )
  )


if __name__ == "__main__":
  main()
