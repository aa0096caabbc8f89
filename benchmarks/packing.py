"""Packing beside SeqIO's, on the same lengths: examples a second, rows, and how full they are.

    python benchmarks/packing.py [--examples 20000] [--window 1024] [--without_seqio]

The lengths are lognormal: inputs of about 135 tokens into 1024, targets of about 18 into 256.
`rows over bound` divides by the least number of rows that any packing could need.
"""

import argparse
import time

import numpy as np

from flan_jax.data.packing import lower_bound, pack

CAPACITIES = (1024, 256)


def lognormal_lengths(count: int, seed: int = 0) -> np.ndarray:
  """[count, 2] lengths of inputs and targets."""
  rng = np.random.default_rng(seed)
  inputs = np.clip(rng.lognormal(4.6, 0.8, count), 8, CAPACITIES[0])
  targets = np.clip(rng.lognormal(2.5, 0.8, count), 2, CAPACITIES[1])
  return np.stack([inputs, targets], axis=1).astype(int)


def packed_here(lengths: np.ndarray, window: int) -> int:
  """Rows when windows of so many examples are packed one by one."""
  parts = [lengths[i : i + window] for i in range(0, len(lengths), window)]
  return sum(len(pack(part, CAPACITIES)) for part in parts)


def packed_by_seqio(lengths: np.ndarray) -> int:
  """Rows of SeqIO's `trim_and_pack_dataset`; the examples are made before, as ones."""
  import seqio
  import tensorflow as tf

  inputs = tf.RaggedTensor.from_row_lengths(tf.ones(lengths[:, 0].sum(), tf.int32), lengths[:, 0])
  targets = tf.RaggedTensor.from_row_lengths(tf.ones(lengths[:, 1].sum(), tf.int32), lengths[:, 1])
  dataset = tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})
  dataset = dataset.map(lambda x: {name: tf.ensure_shape(x[name], [None]) for name in x})
  packed = seqio.trim_and_pack_dataset(
    dataset, dict(zip(("inputs", "targets"), CAPACITIES, strict=True))
  )
  return sum(1 for _ in packed.prefetch(8))


def report(name: str, lengths: np.ndarray, rows: int, seconds: float) -> float:
  """Prints one line; returns the examples a second."""
  speed = len(lengths) / seconds
  bound = lower_bound(lengths, CAPACITIES)
  fill = lengths.sum(axis=0) / np.array(CAPACITIES) / rows
  print(
    f"{name:28} {speed:10,.0f} examples/s  {rows:6,} rows  {rows / bound:6.3f} rows over bound  "
    f"inputs {fill[0]:.1%} full  targets {fill[1]:.1%} full"
  )
  return speed


def timed(function, *args) -> tuple[int, float]:
  start = time.perf_counter()
  rows = function(*args)
  return rows, time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--examples", type=int, default=20_000)
  parser.add_argument("--window", type=int, default=1024)
  parser.add_argument("--without_seqio", action="store_true")
  settings = parser.parse_args()
  lengths = lognormal_lengths(settings.examples)
  ours = report(
    f"flan-jax, windows of {settings.window}",
    lengths,
    *timed(packed_here, lengths, settings.window),
  )
  report("flan-jax, one window", lengths, *timed(packed_here, lengths, len(lengths)))
  if not settings.without_seqio:
    packed_by_seqio(lengths[:600])  # traces TensorFlow's graph
    theirs = report("SeqIO trim_and_pack", lengths, *timed(packed_by_seqio, lengths))
    print(f"ratio {ours / theirs:.0f}")


if __name__ == "__main__":
  main()
