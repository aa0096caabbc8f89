"""SIGTERM at any moment of a launch: status 0, a word, and the same command neither loses nor repeats a step."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

TRAIN = (sys.executable, "-m", "flan_jax.cli.main", "train", "--module", "tasks.py")
SETTINGS = (
  "--gin_file=check.gin",
  "--gin.train.evaluation=@evaluation()",
  "--gin.train.checkpoint_every=4",
  "--gin.STEPS=24",
)


def start(folder, run, processes):
  """The processes of a launch, and the files that they speak to."""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
  mesh = ("--gin.mesh.data=1", f"--gin.mesh.fsdp={processes}")
  if processes > 1:
    with socket.socket() as listener:
      listener.bind(("127.0.0.1", 0))
      environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{listener.getsockname()[1]}"
    environment["JAX_NUM_PROCESSES"] = str(processes)
  running, said = [], [folder / f"said{index}.txt" for index in range(processes)]
  for index, path in enumerate(said):
    with path.open("w") as output:
      running.append(
        subprocess.Popen(
          [*TRAIN, *SETTINGS, *mesh, f"--gin.RUN_DIR={run}"],
          env={**environment, "JAX_PROCESS_ID": str(index)},
          stdout=output,
          stderr=output,
        )
      )
  return running, said


def ends_well(running, said):
  for process, path in zip(running, said, strict=True):
    assert process.wait(timeout=1200) == 0, path.read_text()[-3000:]
  return said[0].read_text()


def lines(run):
  path = run / "metrics.jsonl"
  return len(path.read_text().splitlines()) if path.exists() else 0


MOMENTS = {
  "before the first step": lambda run: (run / ".lock").exists(),
  "a step": lambda run: lines(run) >= 6,
  "a save": lambda run: lines(run) >= 4 and any(run.glob("checkpoints/*tmp*")),
  "the evaluation of the tuned model": lambda run: (run / "checkpoints/24").exists(),
}


@pytest.mark.scale
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_ends_a_launch_with_status_0_and_it_goes_on(folder, moment, processes):
  run = folder / "runs/stopped"
  running, said = start(folder, run, processes)
  try:
    while not MOMENTS[moment](run):
      ended = [process.poll() for process in running]
      assert ended == [None] * processes, said[0].read_text()[-3000:]
      time.sleep(0.002)
    running[-1].send_signal(signal.SIGTERM)  # one of them hears it
    told = ends_well(running, said)
  finally:
    for process in running:
      process.kill()
      process.wait()
  if moment == "the evaluation of the tuned model" and (run / "report.json").exists():
    return  # that takes a second, and was at its end before the processes had agreed to stop
  assert not (run / "report.json").exists()
  assert "stopped by SIGTERM" in told
  saved = max((int(p.name) for p in run.glob("checkpoints/*") if p.name.isdecimal()), default=0)
  assert lines(run) == saved
  told = ends_well(*start(folder, run, 1))
  assert (f"going on from step {saved}" in told) == (saved > 0)
  records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [record["rows"] for record in records] == [[8 * k, 8 * k + 8] for k in range(24)]
  assert (run / "report.json").exists()


BUSY = """
import os, time
above = os.getppid()
for _ in range({generation}):
  above = int(open(f"/proc/{{above}}/stat").read().rpartition(")")[2].split()[1])
if above == int(os.environ.get("LAUNCH", 0)):
  open("busy", "w").write(str(os.getpid()))
  time.sleep(600)
"""


@pytest.mark.parametrize("generation", [0, 1], ids=["modules are imported", "data is prepared"])
def test_sigterm_before_there_is_anything_to_save_ends_at_once_and_nobody_is_left(
  folder, generation
):
  with (folder / "tasks.py").open("a") as tasks:
    tasks.write(BUSY.format(generation=generation))
  said = folder / "said.txt"
  with said.open("w") as output:
    # The launch's parent is the process that is started here, its child works, and the child of that prepares.
    command = ["sh", "-c", 'LAUNCH=$$ exec "$@"', "sh", *TRAIN, *SETTINGS]
    launch = subprocess.Popen(command, stdout=output, stderr=output)
  while not (folder / "busy").exists() or not (folder / "busy").read_text():
    assert launch.poll() is None, said.read_text()
    time.sleep(0.01)
  launch.send_signal(signal.SIGTERM)
  assert launch.wait(timeout=60) == 0
  assert "stopped by SIGTERM" in said.read_text()
  child = int((folder / "busy").read_text())
  for _ in range(1000):
    if not os.path.exists(f"/proc/{child}"):
      return
    time.sleep(0.01)
  raise AssertionError("a process was left behind")
