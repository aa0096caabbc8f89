"""Kills a training run at random moments, goes on each time, and looks whether any example is lost or read twice.

  python benchmarks/soak.py [--kills 20] [--seed 0] [--same-layout]

The run is `flan-jax train` on the tickets of the tests: real processes that meet over the loopback. It is killed by
SIGKILL once it has saved twice, half of the times while a checkpoint is being written: all of its processes, or one
of them and the others shortly after. Each time it goes on with another number of processes and another mesh, or,
with --same-layout, as it was, and then has to end with the very bits of a run that nobody killed.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TICKETS = Path(__file__).resolve().parent.parent / "tests" / "tickets"
BATCH = 8


class Layout(NamedTuple):
  """So many processes of so many devices, and the axes of their mesh."""

  processes: int
  devices: int
  mesh: tuple[str, ...]

  def __str__(self) -> str:
    return f"{self.processes} x {self.devices} {','.join(self.mesh)}"


LAYOUTS = (
  Layout(1, 1, ("data=1",)),
  Layout(1, 4, ("data=1", "fsdp=4")),
  Layout(1, 4, ("data=2", "tensor=2")),
  Layout(2, 1, ("data=1", "fsdp=2")),
  Layout(2, 2, ("data=1", "fsdp=2", "tensor=2")),
  Layout(4, 1, ("data=4",)),
  Layout(4, 1, ("data=2", "fsdp=2")),
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--every", type=int, default=3, help="steps between checkpoints")
  parser.add_argument("--same-layout", action="store_true")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    soak = Soak(Path(folder), args.kills, args.every, random.Random(args.seed))
    soak.reference()
    while soak.killed < args.kills:
      soak.attempt(LAYOUTS[1] if args.same_layout else soak.draw.choice(LAYOUTS))
    soak.attempt(LAYOUTS[1] if args.same_layout else soak.draw.choice(LAYOUTS), to_the_end=True)
    soak.report(args.same_layout)


class Soak:
  """A run that is killed again and again, beside one that is not."""

  def __init__(self, folder: Path, kills: int, every: int, draw: random.Random):
    self.folder, self.every, self.draw = folder, every, draw
    # Two saves and what is made until the kill, each time.
    self.steps = 5 * every * (kills + 1)
    self.killed = 0
    self.tally = collections.Counter[str]()
    self.lost: list[int] = []
    self._run = folder / "runs" / "killed"
    shutil.copytree(TICKETS, folder, dirs_exist_ok=True)

  def reference(self) -> None:
    with self._launch("runs/whole", LAYOUTS[1]) as processes:
      said = self._finish(processes)
    print(f"whole: {LAYOUTS[1]}, {self.steps} steps, a save every {self.every}", flush=True)
    assert "going on" not in said, said

  def attempt(self, layout: Layout, to_the_end: bool = False) -> None:
    """Goes on, checks that it did where the last whole checkpoint stands, and kills it unless it is to end."""
    saved, logged = max(self._saved(), default=0), len(self._rows())
    said, told = self.folder / "said.txt", "ended by itself"
    with self._launch("runs/killed", layout, said) as processes:
      if to_the_end:
        self._finish(processes)
      else:
        told = self._kill(processes, saved, said)
    if told is None:
      self.tally["attempts that ended or stalled before two saves, made again"] += 1
      assert self.tally.total() < 4 * self.killed + 20, "nothing comes of it"
      return
    begun = re.findall(r"going on from step (\d+) \(row (\d+)\)", said.read_text())
    want = [(str(saved), str(saved * BATCH))] if saved else []
    assert begun == want, f"went on from {begun}, and the last whole checkpoint is {saved}"
    rows = self._rows()
    assert rows == [[BATCH * k, BATCH * (k + 1)] for k in range(len(rows))], rows
    self.lost.append(max(logged - saved, 0))
    if not to_the_end:
      self.killed += 1
      self.tally[told] += 1
      self.tally[str(layout)] += 1
      steps = f"{saved} to {len(rows)}, the last saved {max(self._saved())}"
      print(f"kill {self.killed:2d}: {told:38s} {layout!s:32s} steps {steps}", flush=True)

  def report(self, same_layout: bool) -> None:
    """Raises AssertionError where the two runs did not read the same."""
    ours, theirs = self._log("killed"), self._log("whole")
    for name in ("step", "updates", "rows", "tokens", "targets", "learning_rate"):
      assert [line[name] for line in ours] == [line[name] for line in theirs], name
    assert len(ours) == self.steps
    print(*(f"{count:3d}  {what}" for what, count in sorted(self.tally.items())), sep="\n")
    print(f"steps made again after a kill: {sum(self.lost)} in all, {max(self.lost)} at most")
    apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(ours, theirs, strict=True))
    print(f"{self.steps * BATCH} rows, each read once and in order; losses differ by {apart:.1e}")
    if same_layout:
      whole, killed = (self._digest(run) for run in ("whole", "killed"))
      assert whole == killed, f"the bits differ: {whole} and {killed}"
      print(f"the same bits at the end: {whole}")

  @contextlib.contextmanager
  def _launch(
    self, run: str, layout: Layout, said: Path | None = None
  ) -> Iterator[list[subprocess.Popen]]:
    """The processes of one attempt; whatever happens, none is left."""
    command = [sys.executable, "-m", "flan_jax.cli.main", "train", "--module", "tasks.py"]
    command += ["--gin_file=check.gin", f"--gin.RUN_DIR={run}", f"--gin.STEPS={self.steps}"]
    command += [f"--gin.train.checkpoint_every={self.every}", "--gin.train.keep=3"]
    command += [f"--gin.mesh.{axis}" for axis in layout.mesh]
    environment = {
      **os.environ,
      "FLAN_JAX_HOME": str(self.folder / "home"),
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(layout.devices),
    }
    if layout.processes == 1:
      environment["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / "compiled")
      environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    else:  # the first process alone would find what it compiled, and wait for the others in vain
      environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{_free_port()}"
      environment["JAX_NUM_PROCESSES"] = str(layout.processes)
    with (said or self.folder / "whole.txt").open("w") as output:
      processes = [
        subprocess.Popen(
          command,
          cwd=self.folder,
          env={**environment, "JAX_PROCESS_ID": str(index)},
          stdout=subprocess.DEVNULL,
          stderr=output,
        )
        for index in range(layout.processes)
      ]
      try:
        yield processes
      finally:
        _end(processes)

  def _finish(self, processes: Sequence[subprocess.Popen]) -> str:
    codes = [process.wait(timeout=1800) for process in processes]
    said = (self.folder / ("said.txt" if self.killed else "whole.txt")).read_text()
    assert codes == [0] * len(codes), said[-3000:]
    return said

  def _kill(self, processes: Sequence[subprocess.Popen], saved: int, said: Path) -> str | None:
    """Waits for two saves and a random moment after them; says what was killed, and when.

    None: it came to nothing, as where a crowded machine starts four processes too slowly for JAX to join them.
    """
    while_saving = self.draw.random() < 0.5
    if not self._wait(processes, lambda: sum(step > saved for step in self._saved()) >= 2) or (
      while_saving and not self._wait(processes, self._is_saving)
    ):
      lines = said.read_text().strip().splitlines()
      print(f"made again: {next((x for x in lines if 'Error' in x), lines[-1:])}", flush=True)
      return None
    if while_saving:
      time.sleep(self.draw.uniform(0, 0.1))
    else:
      time.sleep(self.draw.uniform(0, 1))
    when = "saving" if self._is_saving() else "between saves"
    one = len(processes) > 1 and self.draw.random() < 0.5
    victims = [self.draw.choice(processes)] if one else processes
    for process in victims:
      process.send_signal(signal.SIGKILL)
    if one:
      time.sleep(self.draw.uniform(0, 2))
    return f"{when}, {'one process' if one else 'all processes'}"

  def _wait(self, processes: Sequence[subprocess.Popen], until: Callable[[], bool]) -> bool:
    stalled = time.monotonic() + 400
    while not until():
      if time.monotonic() > stalled or any(process.poll() is not None for process in processes):
        return False
      time.sleep(0.005)
    return True

  def _saved(self) -> list[int]:
    folder = self._run / "checkpoints"
    return [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]

  def _is_saving(self) -> bool:
    return any((self._run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

  def _log(self, run: str) -> list[dict]:
    path = self.folder / "runs" / run / "metrics.jsonl"
    lines = path.read_text().split("\n") if path.is_file() else [""]
    return [
      json.loads(line) for line in lines[:-1]
    ]  # what stands after the last newline was cut off

  def _rows(self) -> list[list[int]]:
    return [line["rows"] for line in self._log("killed")]

  def _digest(self, run: str) -> str:
    command = [sys.executable, "-m", "flan_jax.cli.main", "checkpoints", f"runs/{run}", "--json"]
    table = subprocess.run(command, cwd=self.folder, check=True, capture_output=True).stdout
    return json.loads(table)[-1]["digest"]


def _end(processes: Sequence[subprocess.Popen]) -> None:
  for process in processes:
    process.kill()
    process.wait()


def _free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


if __name__ == "__main__":
  main()
