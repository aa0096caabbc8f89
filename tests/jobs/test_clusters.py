"""Where a process finds its place: what it is told, and what SLURM, Open MPI and TPUs set."""

import http.server
import os
import subprocess
import sys
import threading

import pytest

from flan_jax.errors import ConfigError
from flan_jax.jobs.clusters import Place, find_place

SLURM = {
  "SLURM_JOB_ID": "4711",
  "SLURM_STEP_NODELIST": "gpu[007-008],login1",
  "SLURM_NTASKS": "8",
  "SLURM_STEP_NUM_TASKS": "8",
  "SLURM_STEP_NUM_NODES": "2",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
}
OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
OPEN_MPI_4 = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
SLURM_PORT = 4711 % 2**12 + 65535 - 2**12 + 1


@pytest.fixture
def told(monkeypatch):
  """Sets an environment in which nothing else tells of a cluster."""
  for name in os.environ:
    if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS", "CUDA_VIS")):
      monkeypatch.delenv(name)

  def tell(**environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)

  return tell


def test_nothing_told_is_one_process(told):
  assert find_place() is None
  assert find_place("host:1", 1, 0) is None


def test_what_is_given_wins_over_the_environment(told):
  told(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")
  assert find_place() == Place("a:1", 2, 1)
  assert find_place("b:2", 4, 3) == Place("b:2", 4, 3)
  told(**SLURM)
  assert find_place() == Place("a:1", 2, 1, [1])


@pytest.mark.parametrize(
  ("given", "says"),
  [
    (("host:1", None, 0), "--processes"),
    ((None, 2, 0), "--coordinator"),
    (("host:1", 2, 2), "not one of 2 processes"),
    (("host", 2, 1), "HOST:PORT"),
  ],
)
def test_half_a_description_and_an_impossible_one_are_refused(told, given, says):
  with pytest.raises(ConfigError, match=says):
    find_place(*given)


def test_a_number_that_is_none_is_refused(told):
  told(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="1")
  with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES='two'"):
    find_place()


def test_a_step_of_slurm_is_enough_and_gives_each_task_of_a_node_a_gpu(told):
  told(**SLURM)
  assert find_place() == Place(f"gpu007:{SLURM_PORT}", 8, 5, [1])
  assert find_place("gpu007:99") == Place("gpu007:99", 8, 5, [1])
  told(CUDA_VISIBLE_DEVICES="3")  # as --gpus-per-task=1 leaves it
  assert find_place().devices is None


def test_one_task_a_node_has_all_its_gpus(told):
  told(**SLURM, CUDA_VISIBLE_DEVICES="0,1,2,3")
  told(SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="1", SLURM_LOCALID="0")
  assert find_place() == Place(f"gpu007:{SLURM_PORT}", 2, 1)


def test_a_shell_within_an_allocation_of_slurm_is_alone(told):
  told(**SLURM)
  told(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0")
  assert find_place() is None


def test_open_mpi_tells_all_up_to_version_4_and_all_but_the_address_from_5(told):
  told(**OPEN_MPI)
  with pytest.raises(ConfigError, match="Open MPI from version 5"):
    find_place()
  assert find_place("host0:1234") == Place("host0:1234", 4, 3, [1])
  told(**OPEN_MPI_4)
  job = 1531576320 // 2**12
  assert find_place() == Place(f"10.96.0.1:{job % 2**12 + 65535 - 2**12 + 1}", 4, 3, [1])


def on_tpu(**environment) -> str:
  """The place that a process finds that takes this machine for a TPU's."""
  code = (
    "import os, jax\n"
    "os.environ.pop('TPU_SKIP_MDS_QUERY', None)\n"  # JAX sets it where it sees no chip
    "from flan_jax.jobs.clusters import find_place\n"
    "print(find_place(patience=5))"
  )
  forced = {"JAX_FORCE_TPU_INIT": "1", "TPU_LIBRARY_PATH": __file__, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", code], env={**os.environ, **forced, **environment}, capture_output=True
  )
  assert done.returncode == 0, done.stderr.decode()
  return done.stdout.decode().strip()


def test_a_tpu_slice_of_kubernetes_tells_all():
  slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
  hosts = {"TPU_WORKER_HOSTNAMES": "localhost,127.0.0.1", "TPU_WORKER_ID": "1"}
  first = {"MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080"}
  assert on_tpu(**hosts, **slices, **first) == str(Place("localhost:8482", 4, 3))


class Metadata(http.server.BaseHTTPRequestHandler):
  """What a TPU VM asks its metadata server for."""

  workers = "localhost,localhost"

  def do_GET(self):
    name = self.path.rpartition("/")[2]
    known = {"agent-worker-number": "1", "worker-network-endpoints": self.workers, "tpu-env": ""}
    self.send_response(200 if name in known else 404)
    self.end_headers()
    self.wfile.write(known.get(name, "").encode())

  def log_message(self, *_):
    pass


def test_a_tpu_vm_asks_its_metadata():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = on_tpu(GCE_METADATA_IP=f"127.0.0.1:{server.server_port}")
    server.shutdown()
  assert place == str(Place("localhost:8482", 2, 1))
