"""A function run in forked processes, one call after the other.

Forked, not spawned, so that what a user registered in this process is known there. That is safe only
while no library with threads of its own is loaded: JAX and TensorFlow must not have been imported.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from flan_jax.errors import ConfigError, FlanJaxError, UnknownName

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADED = ("jax", "tensorflow", "torch")
_PARENT_CHECK_S = 2.0


def can_fork() -> bool:
  """Whether nothing is loaded that forking could break."""
  return not any(name in sys.modules for name in _THREADED)


class ForkedWorkers(Generic[Item, Result]):
  """Processes that each wait for an item, call the function and send back what it returns.

  Args:
    function: called in the workers; it and what it refers to are as they were when they were forked.
    count: processes.

  Raises:
    ConfigError: JAX or TensorFlow was imported before.
  """

  def __init__(self, function: Callable[[Item], Result], count: int):
    loaded = [name for name in _THREADED if name in sys.modules]
    if loaded:
      raise ConfigError(
        f"cannot fork {count} workers: {loaded[0]} is loaded in this process and its threads would "
        "not survive. Prepare in a process of its own (`flan-jax prepare`), or with workers=1."
      )
    context = multiprocessing.get_context("fork")
    self._workers: dict[Connection, Any] = {}
    for _ in range(count):
      ours, theirs = context.Pipe()
      process = context.Process(target=_serve, args=(theirs, function), daemon=True)
      process.start()
      theirs.close()
      self._workers[ours] = process

  def results(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """The result of each item as it comes. Items are taken only as workers fall idle.

    Raises:
      FlanJaxError: a worker raised it, or died.
      RuntimeError: a worker raised anything else; the message is its traceback.
    """
    supply = iter(items)
    busy: dict[Connection, Item] = {}
    idle = list(self._workers)
    while True:
      while idle:
        try:
          item = next(supply)
        except StopIteration:
          break
        connection = idle.pop()
        busy[connection] = item
        self._send(connection, item)
      if not busy:
        return
      for ready in wait(list(busy)):
        assert isinstance(ready, Connection)
        result = self._receive(ready, busy[ready])
        idle.append(ready)
        yield busy.pop(ready), result

  def close(self) -> None:
    """Ends the processes, whatever they are doing."""
    for connection, process in self._workers.items():
      connection.close()
      process.terminate()
    for process in self._workers.values():
      process.join()
    self._workers = {}

  def __enter__(self) -> "ForkedWorkers[Item, Result]":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def _send(self, connection: Connection, item: Item) -> None:
    try:
      connection.send(item)
    except OSError:
      self._died(connection, item)

  def _receive(self, connection: Connection, item: Item) -> Result:
    try:
      kind, content = connection.recv()
    except (EOFError, OSError):
      self._died(connection, item)
    if kind is None:
      return content
    raise kind(content)

  def _died(self, connection: Connection, item: Item) -> Any:
    process = self._workers[connection]
    process.join(timeout=5)
    code = process.exitcode
    if code is not None and code < 0:
      how = f"was killed by {signal.Signals(-code).name}"
    else:
      how = f"ended with exit code {code}"
    raise FlanJaxError(
      f"a worker process {how} at item {item!r}. Where the system kills, memory has mostly run out: "
      "try fewer workers. Finished work is kept: run the same command again to go on."
    )


@contextmanager
def results_of(
  function: Callable[[Item], Result], workers: int
) -> Iterator[Callable[[Iterable[Item]], Iterator[tuple[Item, Result]]]]:
  """How to get results for items: in this process, or in so many others, which end on leaving."""
  if workers <= 1:
    yield lambda items: ((item, function(item)) for item in items)
    return
  with ForkedWorkers(function, workers) as forked:
    yield forked.results


def in_child(function: Callable[[], Result]) -> Result:
  """The result of a call made in a forked process, which may import what this one must not."""
  with ForkedWorkers[None, Result](lambda _: function(), 1) as worker:
    return next(iter(worker.results([None])))[1]


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
  """What a worker does until its parent is gone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # The tokenizers library would start threads of its own, one set for each worker.
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  parent = os.getppid()
  while True:
    # Other workers hold copies of the parent's end of the pipe, so its death does not close it.
    while not connection.poll(_PARENT_CHECK_S):
      if os.getppid() != parent:
        return
    try:
      item = connection.recv()
    except EOFError:
      return
    try:
      answer: tuple[type[Exception] | None, Any] = None, function(item)
    except FlanJaxError as error:
      answer = _kind(error), str(error)
    except Exception:
      answer = RuntimeError, traceback.format_exc()
    connection.send(answer)


def _kind(error: FlanJaxError) -> type[FlanJaxError]:
  """The nearest class of `flan_jax.errors` that can be made again from its message alone."""
  ancestors = [kind for kind in type(error).__mro__ if kind.__module__ == FlanJaxError.__module__]
  return next(kind for kind in ancestors if kind is not UnknownName)
