"""Several processes as one run."""

import os
from collections.abc import Callable
from typing import TypeVar

import jax
import orbax.checkpoint as ocp

from flan_jax.errors import ConfigError, MeshError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

Made = TypeVar("Made")


def join() -> None:
  """Joins the processes of a run, where the environment tells of any, and looks for devices.

  JAX_COORDINATOR_ADDRESS is host:port of process 0, JAX_NUM_PROCESSES their number, JAX_PROCESS_ID
  this one's.

  Raises:
    ConfigError: one of the three is missing, or no number.
    MeshError: JAX finds no devices.
  """
  if ADDRESS in os.environ and not jax.distributed.is_initialized():
    _join()
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    raise MeshError(
      f"JAX finds no devices of the kind that JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r} "
      "asks for: unset it, or install JAX for them."
    ) from error


def _join() -> None:
  try:
    count, index = int(os.environ[COUNT]), int(os.environ[INDEX])
  except (KeyError, ValueError) as error:
    raise ConfigError(
      f"{ADDRESS} is set, so {COUNT} and {INDEX} must be too, each a number ({error})."
    ) from None
  if not 0 <= index < count:
    raise ConfigError(f"{INDEX}={index} is not one of {COUNT}={count} processes, counted from 0.")
  jax.distributed.initialize(os.environ[ADDRESS], count, index)


def is_first() -> bool:
  """Whether this is the process that writes what is written once: reports, logs, bars."""
  return jax.process_index() == 0


def first_alone(make: Callable[[], Made], name: str) -> Made:
  """`make()` in process 0 while the others wait, then in them: they find what the first one left.

  Processes that share no disk with it make their own.

  Args:
    name: of this meeting of the processes; not used for another one.
  """
  if jax.process_count() == 1:
    return make()
  made = make() if is_first() else None
  ocp.multihost.sync_global_processes(name, timeout=_PATIENCE)
  return make() if made is None else made


_PATIENCE = 24 * 60 * 60  # seconds: preparing a large mixture takes hours
