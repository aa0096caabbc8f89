"""Makes a store, or asks SeqIO, in a process of its own, where neither JAX nor TensorFlow was loaded before.

This module must import neither: the process that it starts reads it first.
"""

import logging
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from flan_jax.data import seqio_stream
from flan_jax.data.library import Registered, dataset_spec, register_again, registered
from flan_jax.data.mixtures import is_known
from flan_jax.data.prepare import prepare
from flan_jax.data.records import load_records
from flan_jax.data.store import Store, StoreConfig
from flan_jax.errors import FlanJaxError, SourceError
from flan_jax.jobs import user_modules
from flan_jax.jobs.supervision import end_with_parent
from flan_jax.vocabularies import Vocabulary

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)


def prepared_store(
  config: StoreConfig,
  rows: int,
  data_dir: Path,
  *,
  datasets: Sequence[str] = (),
  workers: int | None = None,
  strict: bool = False,
) -> Store:
  """The store of these settings with at least so many rows; what is there already is kept.

  Args:
    datasets: others whose records are to be built as well, for evaluation.
    strict: see `flan_jax.data.prepare.prepare`.

  Raises:
    FlanJaxError: whatever the preparing process ran into.
  """
  directory = _in_own_process(
    _prepare, config.mixture_name, config, rows, data_dir, tuple(datasets), workers, strict
  )
  return Store.open(directory)


def seqio_vocabulary(name: str) -> Vocabulary:
  """The vocabulary that the targets of a SeqIO task or mixture are written in.

  Raises:
    UnknownName: SeqIO has no such task, nor has the T5 library.
    VocabularyError: the task's is no vocabulary of SentencePiece or of bytes.
  """
  return _in_own_process(seqio_stream.task_vocabulary, name, name)


def _in_own_process(function: Callable[..., Result], mixture: str, *arguments: Any) -> Result:
  """A call in a process that knows the user's datasets and modules, and may import what this one must not.

  Args:
    mixture: what it is about; modules that import SeqIO are only imported if it is not known without.
  """
  known = (registered(), tuple(user_modules.IMPORTED), tuple(user_modules.WAITING))
  with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    try:
      result, mistake = pool.submit(_call, function, mixture, arguments, *known).result()
    except BrokenProcessPool:
      raise FlanJaxError(
        "the process that prepares the data was killed; where the system kills, memory has mostly "
        "run out. Finished windows are kept: run the same command again, with fewer workers."
      ) from None
  if mistake is not None:
    raise mistake[0](mistake[1])
  return result


def _call(
  function: Callable[..., Any],
  mixture: str,
  arguments: Sequence[Any],
  datasets: Registered,
  imported: Sequence[str],
  waiting: Sequence[str],
) -> tuple[Any, tuple[type[FlanJaxError], str] | None]:
  end_with_parent()  # nobody is left preparing when the launch was killed
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow tells at length how it was built
  try:
    register_again(datasets)
    for module in imported:
      user_modules.import_module(module)
    user_modules.WAITING[:] = waiting
    if not is_known(mixture):
      user_modules.import_waiting()
    return function(*arguments), None
  except FlanJaxError as error:
    # Some errors take more than a message to make, and could not be sent.
    kind = type(error) if type(error).__init__ is FlanJaxError.__init__ else FlanJaxError
    return None, (kind, str(error))


def _prepare(
  config: StoreConfig,
  rows: int,
  data_dir: Path,
  datasets: Sequence[str],
  workers: int | None,
  strict: bool,
) -> Path:
  directory = prepare(config, rows, data_dir, workers, strict=strict).directory
  for name in datasets:
    try:
      load_records(dataset_spec(name), data_dir)
    except SourceError as error:
      if strict:
        raise
      _LOG.warning("%s cannot be judged: %s", name, error)
  return directory
