"""Which process of a run this one is: as the command line, the environment or the cluster says."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from jax._src import cloud_tpu_init, clusters

from flan_jax.errors import ConfigError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@dataclass(frozen=True)
class Place:
  """One process among those of a run.

  Attributes:
    address: host:port where process 0 listens.
    count: of the processes.
    index: of this one, from 0.
    devices: the GPUs of this host that are its own; None: all that it sees.
  """

  address: str
  count: int
  index: int
  devices: list[int] | None = None


def find_place(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  patience: int = 300,
) -> Place | None:
  """The place of this process; None where it is alone.

  What is given wins over JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and these over what
  Open MPI, a step of SLURM or a TPU's metadata tell.

  Args:
    coordinator: host:port.
    patience: seconds to wait until the name of a TPU's first host is known.

  Raises:
    ConfigError: half a description, or one that cannot be.
  """
  address = coordinator or os.environ.get(ADDRESS)
  count = _number(COUNT) if processes is None else processes
  index = _number(INDEX) if process is None else process
  devices = None
  found = _open_mpi() or _slurm() or _tpu()
  if found is not None:
    count = found.count if count is None else count
    index = found.index if index is None else index
    if address is None and count > 1:
      address = found.address(patience)
    devices = found.devices
  if address is None and count in (None, 1) and index in (None, 0):
    return None
  if address is None or count is None or index is None:
    raise ConfigError(
      f"one of several processes has to know all of --coordinator HOST:PORT ({ADDRESS}), --processes ({COUNT}) "
      f"and --process ({INDEX}); these are {address}, {count} and {index}."
    )
  if not 0 <= index < count:
    raise ConfigError(
      f"--process ({INDEX}) is {index}: not one of {count} processes, counted from 0."
    )
  if not address.rpartition(":")[2].isdecimal():
    raise ConfigError(f"--coordinator ({ADDRESS}) is {address!r}; it must be HOST:PORT.")
  return Place(address, count, index, devices) if count > 1 else None


@dataclass(frozen=True)
class _Found:
  """What a cluster tells: the address only when it is asked for."""

  count: int
  index: int
  address: Callable[[int], str]
  devices: list[int] | None = None


def _open_mpi() -> _Found | None:
  count = _number("OMPI_COMM_WORLD_SIZE") or 1
  if count == 1:
    return None

  def address(patience: int) -> str:
    try:
      return _of_jax("ompi", patience)
    except (KeyError, RuntimeError):  # the second from JAX that would ask mpi4py
      raise ConfigError(
        "Open MPI from version 5 on does not tell where its first process is: give --coordinator HOST:PORT, with "
        "the host of rank 0 and any free port there."
      ) from None

  here, own = _number("OMPI_COMM_WORLD_LOCAL_SIZE") or 1, _number("OMPI_COMM_WORLD_LOCAL_RANK")
  return _Found(
    count, _number("OMPI_COMM_WORLD_RANK") or 0, address, _gpus(own if here > 1 else None)
  )


def _slurm() -> _Found | None:
  """A step of several tasks; a shell within an allocation has its variables too, and is alone."""
  count = _number("SLURM_STEP_NUM_TASKS") or 1
  if count == 1:
    return None
  several = count > (_number("SLURM_STEP_NUM_NODES") or 1)
  own = _number("SLURM_LOCALID") if several else None
  return _Found(
    count, _number("SLURM_PROCID") or 0, lambda patience: _of_jax("slurm", patience), _gpus(own)
  )


def _tpu() -> _Found | None:
  if not cloud_tpu_init.running_in_cloud_tpu_vm:
    return None
  for name in ("gketpu", "gcetpu"):
    cluster = _cluster(name)
    if cluster.is_env_present():
      return _Found(
        cluster.get_process_count(),
        cluster.get_process_id(),
        lambda patience, name=name: _of_jax(name, patience),  # type: ignore[misc]
      )
  return None


def _gpus(own: int | None) -> list[int] | None:
  """One for each process of a host, unless it sees one alone or JAX_LOCAL_DEVICE_IDS says which."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  alone = visible is not None and "," not in visible
  return None if own is None or alone or "JAX_LOCAL_DEVICE_IDS" in os.environ else [own]


def _cluster(name: str) -> type[clusters.ClusterEnv]:
  return next(each for each in clusters.ClusterEnv._cluster_types if each.name == name)


def _of_jax(name: str, patience: int) -> str:
  port = os.environ.get("JAX_COORDINATOR_PORT")
  return _cluster(name).get_coordinator_address(patience, port)


def _number(name: str) -> int | None:
  text = os.environ.get(name)
  if text is None:
    return None
  if not text.isdecimal():
    raise ConfigError(f"{name}={text!r} is no number of processes.")
  return int(text)
