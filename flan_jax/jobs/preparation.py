"""Makes a store in a process of its own, where neither JAX nor TensorFlow was loaded before.

This module must import neither: the process that it starts reads it first.
"""

import contextlib
import ctypes
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from flan_jax.data.library import dataset_spec
from flan_jax.data.prepare import prepare
from flan_jax.data.records import load_records
from flan_jax.data.store import Store, StoreConfig
from flan_jax.errors import FlanJaxError
from flan_jax.jobs import user_modules

_PR_SET_PDEATHSIG = 1


def prepared_store(
  config: StoreConfig,
  rows: int,
  data_dir: Path,
  *,
  datasets: Sequence[str] = (),
  workers: int | None = None,
) -> Store:
  """The store of these settings with at least so many rows; what is there already is kept.

  Args:
    datasets: others whose records are to be built as well, for evaluation.

  Raises:
    FlanJaxError: whatever the preparing process ran into.
  """
  task = (config, rows, data_dir, tuple(datasets), workers, tuple(user_modules.IMPORTED))
  with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    try:
      directory, mistake = pool.submit(_prepare, *task).result()
    except BrokenProcessPool:
      raise FlanJaxError(
        "the process that prepares the data was killed; where the system kills, memory has mostly "
        "run out. Finished windows are kept: run the same command again, with fewer workers."
      ) from None
  if mistake is not None:
    raise mistake[0](mistake[1])
  return Store.open(directory)


def _prepare(
  config: StoreConfig,
  rows: int,
  data_dir: Path,
  datasets: Sequence[str],
  workers: int | None,
  modules: Sequence[str],
) -> tuple[Path, tuple[type[FlanJaxError], str] | None]:
  _end_with_parent()
  try:
    for module in modules:
      user_modules.import_module(module)
    directory = prepare(config, rows, data_dir, workers).directory
    for name in datasets:
      load_records(dataset_spec(name), data_dir)
  except FlanJaxError as error:
    # Some errors take more than a message to make, and could not be sent.
    kind = type(error) if type(error).__init__ is FlanJaxError.__init__ else FlanJaxError
    return data_dir, (kind, str(error))
  return directory, None


def _end_with_parent() -> None:
  """Where Linux offers it: nobody is left preparing when the launch was killed."""
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
