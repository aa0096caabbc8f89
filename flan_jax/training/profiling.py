"""What looks at a run from outside its steps: traces of some of them, and Python's garbage collector."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import jax


class Profile:
  """Traces some steps, for XProf and TensorBoard's profile page.

  `profile/` of the run then holds the trace, and `memory.prof`, what the device's memory held after the last of
  these steps (for `pprof`). On several processes each traces its own devices.

  Args:
    steps: first and last step traced, counted from 1; None: none is.
    directory: of the run.
  """

  def __init__(self, steps: tuple[int, int] | None, directory: Path):
    self._steps = steps
    self._folder = directory / "profile"
    if jax.process_count() > 1:
      self._folder /= str(jax.process_index())
    self._tracing = False

  def before(self, step: int) -> None:
    """Called before each step is dispatched, with its number."""
    if self._steps is not None and step == self._steps[0]:
      jax.profiler.start_trace(self._folder)
      self._tracing = True

  def after(self, step: int, made: object) -> None:
    """Called after each step was dispatched; `made` are arrays that it makes."""
    if self._steps is not None and self._tracing and step >= self._steps[1]:
      jax.block_until_ready(made)
      self.close()
      jax.profiler.save_device_memory_profile(str(self._folder / "memory.prof"))

  def close(self) -> None:
    """Ends a trace that is going on."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()


@contextlib.contextmanager
def collected_at_saves() -> Iterator[None]:
  """Within it Python collects no garbage of its own accord: `gc.collect()` is to be called now and then.

  A collection looks at every object that there is, and on many hosts each would stop all of them at another step.
  """
  was = gc.isenabled()
  gc.collect()
  gc.freeze()
  gc.disable()
  try:
    yield
  finally:
    gc.unfreeze()
    if was:
      gc.enable()
