"""Our own models must trace without any implicit change of dtype."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtype_promotion() -> Iterator[None]:
  with jax.numpy_dtype_promotion("strict"):
    yield


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
  """Tiny models compile far longer than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
