"""Real processes that meet over the loopback: lost, hung, missing, different. Each launch says what is the matter."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

STEPPING = Path(__file__).with_name("stepping.py")
ROOT = STEPPING.parents[2]


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


class Launches:
  """One launch for each process, as several hosts have it."""

  def __init__(self, count: int, *arguments: str, absent=(), own=None, places=None):
    port = free_port()
    places = places or [
      {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
      }
      for index in range(count)
    ]
    here = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    self.processes = {
      index: subprocess.Popen(
        [sys.executable, STEPPING, *arguments, *(own or {}).get(index, {}).get("arguments", ())],
        env={**here, **places[index], **(own or {}).get(index, {}).get("environment", {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for index in range(count)
      if index not in absent
    }

  def at_step(self, index: int, step: int) -> int:
    """Waits until a process has made a step; its pid."""
    while line := self.processes[index].stdout.readline():
      words = line.split()
      if len(words) == 4 and words[0].isdecimal() and int(words[2]) == step:
        return int(words[0])
    raise AssertionError(self.processes[index].communicate()[1])

  def ends(self) -> dict[int, tuple[int, str]]:
    """Exit status of each launch, and what it said."""
    said = {index: process.communicate(timeout=300) for index, process in self.processes.items()}
    return {
      index: (self.processes[index].returncode, errors) for index, (_, errors) in said.items()
    }


def sentences(said: str) -> list[str]:
  return [
    line.removeprefix("flan-jax: ") for line in said.splitlines() if line.startswith("flan-jax: ")
  ]


@pytest.mark.parametrize("killed", [1, 0])
def test_a_process_that_is_killed_is_named_by_every_launch(killed):
  launches = Launches(2, "--timeout", "heartbeat=10")
  pid = launches.at_step(killed, 3)
  launches.at_step(1 - killed, 3)
  os.kill(pid, signal.SIGKILL)
  ends = launches.ends()
  name = rf"process {killed} \(host \S+, pid {pid}\)"
  status, said = ends[killed]
  assert status == 128 + signal.SIGKILL
  assert re.match(rf"{name} died at .* in step \d+: SIGKILL", sentences(said)[-1])
  status, said = ends[1 - killed]
  assert status == 3
  assert re.match(rf"{name} was lost: .* process {1 - killed} \(host .* ended", sentences(said)[-1])


@pytest.mark.scale
def test_of_four_processes_the_one_that_is_killed_is_named_by_all():
  launches = Launches(4, "--timeout", "heartbeat=10")
  pid = launches.at_step(2, 3)
  os.kill(pid, signal.SIGKILL)
  for _, said in launches.ends().values():
    assert "process 2 (host" in sentences(said)[-1] and f"pid {pid})" in sentences(said)[-1]


@pytest.mark.scale
@pytest.mark.parametrize("stopped", [1, 0])
def test_a_process_that_is_stopped_counts_as_lost_and_is_ended(stopped):
  launches = Launches(2, "--timeout", "heartbeat=10")
  pid = launches.at_step(stopped, 3)
  os.kill(pid, signal.SIGSTOP)
  ends = launches.ends()
  status, said = ends[stopped]
  assert (
    status == 137 and "is stopped for longer than the heartbeat time-out" in sentences(said)[-1]
  )
  status, said = ends[1 - stopped]
  assert status == 3
  assert f"process {stopped} (host" in sentences(said)[-1] and "was lost" in sentences(said)[-1]


def test_a_process_that_never_arrives_is_named_by_those_that_wait():
  for status, said in Launches(3, "--timeout", "initialization=6", absent=[1]).ends().values():
    assert status == 3 and sentences(said)[-1].startswith("process 1 never arrived")


@pytest.mark.scale
def test_a_first_process_that_never_arrives_is_named_too():
  for status, said in Launches(2, "--timeout", "initialization=3", absent=[0]).ends().values():
    assert status == 3 and sentences(said)[-1].startswith("process 0 never answered")


def test_processes_that_would_not_do_the_same_say_who_differs_and_in_what():
  launches = Launches(
    3,
    "a.x=1",
    own={
      1: {"arguments": ["a.x=2", "b.y='own'"]},
      2: {"environment": {"JAX_NUM_CPU_DEVICES": "2"}},
    },
  )
  ends = launches.ends()
  assert [status for status, _ in ends.values()] == [2, 2, 2]
  _, said = ends[0]
  assert re.search(r"process 1 \(host \S+, pid \d+\): a\.x is \(2,\), not \(1,\)", said)
  assert re.search(r"process 1 \(host \S+, pid \d+\): b\.y is \('own',\), not not set", said)
  assert re.search(r"process 2 \(host \S+, pid \d+\): devices is 2 x cpu, not 1 x cpu", said)


@pytest.mark.scale
def test_another_code_is_told_by_its_hash(tmp_path):
  shutil.copytree(ROOT / "flan_jax", tmp_path / "flan_jax")
  with (tmp_path / "flan_jax/training/step.py").open("a") as file:
    file.write("# changed\n")
  launches = Launches(2, own={1: {"environment": {"PYTHONPATH": str(tmp_path)}}})
  ends = launches.ends()
  assert [status for status, _ in ends.values()] == [2, 2]
  assert re.search(r"process 1 \(.*\): the code of flan-jax is \w{12}, not \w{12}", ends[0][1])
  assert ends[0][1].count("process 1 (") == 1


@pytest.mark.scale
def test_a_hung_step_ends_the_run_and_says_who_is_late_with_its_stack():
  launches = Launches(2, "--late=1:3", "--step_timeout=4", "--heartbeat=1.5")
  ends = launches.ends()
  for status, said in ends.values():
    assert status == 3
    assert re.search(
      r"^flan-jax: no step for \d s, and watchdog\.step_timeout is 4 s: late: process 1 \(.*\), in step 2",
      said,
      re.MULTILINE,
    )
    assert re.search(r'stepping.py", line \d+ in main', said)
  assert re.search(r"^heartbeat: step 3; 2 processes.*late: process 1 ", ends[0][1], re.MULTILINE)
  assert "heartbeat:" not in ends[1][1]


@pytest.mark.scale
def test_a_process_that_fails_ends_the_others_with_its_reason():
  ends = Launches(2, "--fails=1").ends()
  assert ends[1][0] == 2 and sentences(ends[1][1]) == ["this one fails"]
  assert ends[0][0] == 3
  assert re.match(
    r"process 1 \(.*\) failed: FlanJaxError: this one fails", sentences(ends[0][1])[-1]
  )


@pytest.mark.scale
def test_the_clusters_own_environment_is_enough():
  job = free_port() % 2**12
  slurm = [
    {
      "SLURM_JOB_ID": str(job),
      "SLURM_STEP_NODELIST": "localhost",
      "SLURM_NTASKS": "2",
      "SLURM_STEP_NUM_TASKS": "2",
      "SLURM_STEP_NUM_NODES": "1",
      "SLURM_PROCID": str(index),
      "SLURM_LOCALID": str(index),
    }
    for index in range(2)
  ]
  open_mpi = [
    {
      "OMPI_MCA_orte_hnp_uri": f"{(job + 1) * 2**12}.0;tcp://127.0.0.1:34911",
      "OMPI_COMM_WORLD_SIZE": "2",
      "OMPI_COMM_WORLD_RANK": str(index),
      "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
      "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }
    for index in range(2)
  ]
  for places in (slurm, open_mpi):
    launches = Launches(2, "--steps=2", places=places)
    launches.at_step(0, 2), launches.at_step(1, 2)
    assert [status for status, _ in launches.ends().values()] == [0, 0]
