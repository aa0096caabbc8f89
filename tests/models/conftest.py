"""Our own models must trace without any implicit change of dtype."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtype_promotion() -> Iterator[None]:
  with jax.numpy_dtype_promotion("strict"):
    yield
