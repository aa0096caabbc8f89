"""Packing and laying out as arrays, on the examples of `mini`: examples a second and rows, beside SeqIO's and Grain's.

  python benchmarks/packing.py [--rows 800] [--window 1024] [--peers seqio grain]

Everyone gets the same encoded examples, inputs into 1024 and targets into 256, and gives arrays of tokens, segment ids
and positions in batches of 64 rows. `rows over bound` divides by the least number of rows that any packing could need.
Ours packs windows of so many examples, on one core. SeqIO's is `trim_and_pack_dataset`, Grain's
`FirstFitPackIterDataset` with 64 open rows.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from figures import Figure, examples_of, mini_store, tell

from flan_jax.data import StoredExample
from flan_jax.data.batches import make_features
from flan_jax.data.packing import lower_bound, pack

LENGTHS = {"inputs": 1024, "targets": 256}
CAPACITIES = tuple(LENGTHS.values())
BATCH = 64
TURNS = 3

Examples = Sequence[StoredExample]


def packed_here(examples: Examples, window: int) -> int:
  """Rows, when windows of so many examples are packed one by one."""
  rows: list[list[StoredExample]] = []
  for start in range(0, len(examples), window):
    part = examples[start : start + window]
    rows += ([part[i] for i in row] for row in pack(lengths_of(part), CAPACITIES))
  for start in range(0, len(rows), BATCH):
    make_features(rows[start : start + BATCH], "encoder_decoder", LENGTHS)
  return len(rows)


def packed_by_seqio(examples: Examples) -> int:
  """The examples lie in memory as ragged tensors."""
  import seqio
  import tensorflow as tf

  def ragged(parts: Sequence[np.ndarray]) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_lengths(
      np.concatenate(parts).astype(np.int32), [len(part) for part in parts]
    )

  columns = {
    "inputs": ragged([each.inputs for each in examples]),
    "targets": ragged([each.targets for each in examples]),
  }
  dataset = tf.data.Dataset.from_tensor_slices(columns)
  dataset = dataset.map(lambda x: {name: tf.ensure_shape(x[name], [None]) for name in x})
  packed = seqio.trim_and_pack_dataset(dataset, LENGTHS)
  return sum(len(batch["inputs"]) for batch in packed.batch(BATCH).prefetch(8).as_numpy_iterator())


def packed_by_grain(examples: Examples) -> int:
  import grain

  columns = [
    {"inputs": each.inputs.astype(np.int32), "targets": each.targets.astype(np.int32)}
    for each in examples
  ]
  packed = grain.experimental.FirstFitPackIterDataset(
    grain.MapDataset.source(columns).to_iter_dataset(),
    length_struct=LENGTHS,
    num_packing_bins=BATCH,
  )
  return sum(len(batch["inputs"]) for batch in packed.batch(BATCH, drop_remainder=False))


PEERS: dict[str, tuple[str, Callable[[Examples], int]]] = {
  "seqio": ("SeqIO's trim_and_pack_dataset", packed_by_seqio),
  "grain": ("Grain's FirstFitPackIterDataset", packed_by_grain),
}


def lengths_of(examples: Examples) -> np.ndarray:
  return np.array([(len(each.inputs), len(each.targets)) for each in examples])


def measured(name: str, examples: Examples, function: Callable[[], int]) -> tuple[float, float]:
  """Examples a second, the median of turns, and rows over the bound."""
  seconds = []
  for _ in range(TURNS):
    begun = time.perf_counter()
    rows = function()
    seconds.append(time.perf_counter() - begun)
  pace = len(examples) / statistics.median(seconds)
  lengths = lengths_of(examples)
  over = rows / lower_bound(lengths, CAPACITIES)
  full = lengths.sum(axis=0) / np.array(CAPACITIES) / rows
  print(
    f"{name:32} {pace:10,.0f} examples/s  {rows:6,} rows  {over:6.3f} rows over bound  "
    f"inputs {full[0]:.1%} full  targets {full[1]:.1%} full"
  )
  return pace, over


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=800)
  parser.add_argument("--window", type=int, default=1024)
  parser.add_argument("--peers", nargs="*", default=list(PEERS))
  settings = parser.parse_args()
  examples = examples_of(mini_store("encoder_decoder", settings.rows))
  # As they were drawn: a store has them by row.
  examples = [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]
  print(f"{len(examples):,} examples")
  window = settings.window
  ours, over = measured(
    f"flan-jax, windows of {window}", examples, lambda: packed_here(examples, window)
  )
  tell(
    Figure(
      "rows of packed `mini`, over the fewest that could do",
      f"windows of {window} examples",
      over,
      1.02,
      at_most=True,
    )
  )
  for name in settings.peers:
    peer, function = PEERS[name]
    function(examples[:300])  # what is compiled or imported once
    pace, _ = measured(peer, examples, partial(function, examples))
    if name == "grain":
      tell(
        Figure(
          f"packing `mini`, arrays included, against {peer}",
          f"{ours:,.0f} examples/s against {pace:,.0f}",
          ours / pace,
          20,
        )
      )


if __name__ == "__main__":
  main()
