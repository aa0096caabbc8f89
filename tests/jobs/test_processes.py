"""Several processes are one run: real ones, that meet over the loopback."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flan_jax.cli.main import main

TRAIN = (sys.executable, "-m", "flan_jax.cli.main", "train", "--module", "tasks.py")
RECIPE = ("--gin_file=check.gin", "--gin.train.evaluation=@evaluation()")


DECODER = """
scratch.architecture = @decoder()
decoder.vocab_size = 384
decoder.emb_dim = 32
decoder.num_heads = 4
decoder.num_kv_heads = 2
decoder.head_dim = 8
decoder.num_layers = 2
decoder.mlp_dim = 64
"""


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def launch(run_dir: str, *settings: str, devices: int = 1, **environment: str) -> subprocess.Popen:
  here = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  return subprocess.Popen(
    [*TRAIN, *RECIPE, f"--gin.RUN_DIR={run_dir}", *settings],
    env={**os.environ, **here, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def launches(run_dir: str, *settings: str, processes: int, devices: int = 1) -> list:
  """A launch for each process, as several hosts have it."""
  place = {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    "JAX_NUM_PROCESSES": str(processes),
  }
  return [
    launch(run_dir, *settings, devices=devices, **place, JAX_PROCESS_ID=str(index))
    for index in range(processes)
  ]


def run_together(run_dir: str, *settings: str, processes: int, devices: int) -> str:
  """Runs a launch in so many processes of so many devices each; what the first one says."""
  running = launches(run_dir, *settings, processes=processes, devices=devices)
  said = [process.communicate(timeout=300) for process in running]
  for process, (_, errors) in zip(running, said, strict=True):
    assert process.returncode == 0, errors
  # Gloo itself says that it is connected, its threads into each other's lines.
  for output, errors in said[1:]:
    lines = filter(None, output.splitlines())
    assert [line for line in lines if not re.search("Gloo|peer ranks", line)] == []
    assert errors == ""
  return said[0][1]


def losses(run_dir) -> list[float]:
  return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [("fsdp=2", "data=1"), ("tensor=2",)], ids=" ".join)
def test_two_processes_train_and_judge_as_one_process_does(folder, mesh):
  settings = [f"--gin.mesh.{setting}" for setting in mesh]
  run_together("runs/one", *settings, processes=1, devices=2)
  run_together("runs/two", *settings, processes=2, devices=1)
  one, two = losses(folder / "runs/one"), losses(folder / "runs/two")
  assert len(two) == 6 and two == pytest.approx(one, rel=1e-5)
  reports = [json.loads((folder / f"runs/{run}/report.json").read_text()) for run in ("one", "two")]
  assert reports[0]["tasks"][0]["after"] == reports[1]["tasks"][0]["after"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("family", ["encoder_decoder", "decoder"])
def test_processes_on_a_mesh_of_all_axes_give_the_curve_of_one_device(folder, family, processes):
  recipe = (folder / "check.gin").read_text()
  if family == "decoder":
    kept = [line for line in recipe.splitlines() if "encoder_decoder" not in line]
    (folder / "check.gin").write_text("\n".join([*kept, DECODER]))
  settings = (
    "--gin.STEPS=30",
    "--gin.train.evaluation=None",
    "--gin.BATCH_SIZE=16",
    "--gin.train.accumulation=2",
  )
  mesh = ("--gin.mesh.data=2", "--gin.mesh.fsdp=2", "--gin.mesh.tensor=2")
  run_together("runs/one", *settings, processes=1, devices=1)
  run_together("runs/many", *settings, *mesh, processes=processes, devices=8 // processes)
  one, many = losses(folder / "runs/one"), losses(folder / "runs/many")
  assert len(many) == 30 and many == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_run_of_two_processes_is_gone_on_with_by_one(folder):
  settings = ("--gin.train.checkpoint_every=3", "--gin.train.keep=4")
  run_together("runs/whole", *settings, processes=1, devices=2)
  run_together(
    "runs/moved",
    *settings,
    "--gin.STEPS=3",
    "--gin.linear_schedule.total_steps=6",
    processes=2,
    devices=1,
  )
  said = run_together("runs/moved", *settings, processes=1, devices=1)
  assert "going on from step 3" in said
  rows = [
    json.loads(line)["rows"]
    for line in (folder / "runs/moved/metrics.jsonl").read_text().splitlines()
  ]
  assert rows == [[8 * k, 8 * k + 8] for k in range(6)]
  assert losses(folder / "runs/moved") == pytest.approx(losses(folder / "runs/whole"), rel=1e-5)


def test_half_a_description_of_the_processes_is_refused(folder, monkeypatch, capsys):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
  assert main(["train", "--module", "tasks.py", "--gin_file=check.gin"]) == 2
  assert "--processes (JAX_NUM_PROCESSES)" in capsys.readouterr().err


def steps_made(run_dir: Path) -> int:
  with contextlib.suppress(FileNotFoundError):
    return len((run_dir / "metrics.jsonl").read_text().splitlines())
  return 0


def when_made(run_dir: Path, step: int, running: list[subprocess.Popen]) -> None:
  while steps_made(run_dir) < step:
    assert all(process.poll() is None for process in running), [
      process.communicate()[1] for process in running
    ]
    time.sleep(0.05)


def child_of(process: subprocess.Popen) -> int:
  return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.slow
def test_either_process_may_be_killed_and_both_may_be_stopped_and_the_run_goes_on(folder):
  settings = (
    "--gin.STEPS=40",
    "--gin.train.evaluation=None",
    "--gin.train.checkpoint_every=3",
    "--gin.mesh.data=1",
    "--gin.mesh.fsdp=2",
    "--heartbeat_timeout=25",
  )
  run_together("runs/whole", *settings, processes=1, devices=2)
  run, last = folder / "runs/killed", 0
  for killed in (1, 0):
    running = launches("runs/killed", *settings, processes=2)
    when_made(run, last + 5, running)
    last = steps_made(run)
    pid = child_of(running[killed])
    os.kill(pid, signal.SIGKILL)
    said = [process.communicate(timeout=300)[1] for process in running]
    assert all(process.returncode > 2 for process in running)
    for errors in said:
      assert f"process {killed} (host {socket.gethostname()}, pid {pid})" in errors.splitlines()[-1]
  one = launch("runs/killed", *settings, "--local_processes=2")
  when_made(run, last + 5, [one])
  one.terminate()
  said = one.communicate(timeout=300)[1]
  assert one.returncode == 0 and "going on from step" in said and "stopped by SIGTERM" in said
  again = launch("runs/killed", *settings, "--local_processes=2")
  assert "going on from step" in again.communicate(timeout=300)[1]
  assert again.returncode == 0
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [line["rows"] for line in lines] == [[8 * k, 8 * k + 8] for k in range(40)]
  assert losses(run) == pytest.approx(losses(folder / "runs/whole"), rel=1e-5)


def test_local_processes_are_for_the_command_itself(folder, capsys):
  assert main(["train", "--module", "tasks.py", "--gin_file=check.gin", "--local_processes=2"]) == 2
  assert "--local_processes is for the command" in capsys.readouterr().err
