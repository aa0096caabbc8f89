"""Renderings a second: a template of three fields, beside the same in tf.data, and every template of the library's own.

  python benchmarks/rendering.py

The peer is FLAN's formatter: the template's pieces and the fields' tensors in one `tf.strings.join`, mapped over a
dataset in memory, example by example, with as many calls at a time as tf.data finds best and in any order. Both are
warm, and take turns, of which medians are told. Ours renders on every core as
well, a process each, as the store's workers do. promptsource's templates are measured in promptsource.py.
"""

import itertools
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable

from figures import Figure, tell

from flan_jax.data import dataset_names, dataset_spec
from flan_jax.prompting import Answer, Draw, Template, TurnText

RECORD = {
  "title": "Rivers",
  "passage": "The Rhine is long. " * 30,
  "question": "Is it?",
  "answer": "yes",
}
TEXT = TurnText("{title}\n\n{passage}\n\nQuestion: {question}\nAnswer:", "{answer}")
THREE_FIELDS = Template("three_fields", [TEXT], long="passage", answer=Answer("answer"))
COUNT = 200_000
WARM_UP = 40  # Batches, in which tf.data finds its pace.
TURNS = 3


def renderings_per_second(
  render: Callable[[int], object], count: int = 5000, runs: int = 7
) -> float:
  """Median over runs, by the time of this process."""
  rates = []
  for _ in range(runs):
    started = time.process_time()
    for i in range(count):
      render(i)
    rates.append(count / (time.process_time() - started))
  return statistics.median(rates)


def rendered(count: int) -> None:
  for i in range(count):
    THREE_FIELDS.render(RECORD, Draw("benchmark", i))


def on_every_core() -> float:
  """Renderings a second by the clock, the workers' start left out."""
  cores = len(os.sched_getaffinity(0))
  with multiprocessing.get_context("fork").Pool(cores) as pool:
    pool.map(rendered, [100] * cores, 1)
    begun = time.perf_counter()
    pool.map(rendered, [COUNT // cores] * cores, 1)
    return COUNT / (time.perf_counter() - begun)


def in_tf_data() -> float:
  import tensorflow as tf

  def words(pattern: str, example: dict) -> tf.Tensor:
    pieces = [piece for piece in re.split(r"(\{\w+\})", pattern) if piece]
    return tf.strings.join([example[p[1:-1]] if p[0] == "{" else p for p in pieces])

  data = tf.data.Dataset.from_tensors(RECORD).repeat(COUNT + WARM_UP * 1000)
  mapped = data.map(
    lambda example: (words(TEXT.input, example), words(TEXT.target, example)),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  # Batches of them, so that no Python runs for each one.
  options = tf.data.Options()
  options.deterministic = False
  batches = iter(mapped.batch(1000).prefetch(tf.data.AUTOTUNE).with_options(options))
  for _ in range(WARM_UP):
    next(batches)
  begun = time.perf_counter()
  for _ in batches:
    pass
  return COUNT / (time.perf_counter() - begun)


def main() -> None:
  turns = [(on_every_core(), in_tf_data()) for _ in range(TURNS)]
  ours, theirs = (statistics.median(rates) for rates in zip(*turns, strict=True))
  tell(
    Figure(
      "rendering a template of three fields, against FLAN's way in tf.data, example by example",
      f"{ours:,.0f} renderings/s against {theirs:,.0f}, on every core",
      ours / theirs,
      5,
    )
  )
  draw = Draw("benchmark")
  rate = renderings_per_second(lambda _: THREE_FIELDS.render(RECORD, draw))
  print(f"one core, one draw     {rate:10,.0f} renderings/s")
  rate = renderings_per_second(lambda i: THREE_FIELDS.render(RECORD, Draw("benchmark", i)))
  print(f"one core, a new draw   {rate:10,.0f} renderings/s")
  specs = [dataset_spec(name) for name in dataset_names() if not name.startswith("p3_")]
  pairs = [(spec.derive_record(spec.record), t) for spec in specs for t in spec.templates]
  turn = itertools.cycle(pairs)

  def next_one(i: int) -> None:
    record, each = next(turn)
    each.render(record, Draw("benchmark", i))

  print(f"{len(pairs)} templates in turn {renderings_per_second(next_one):12,.0f} renderings/s")


if __name__ == "__main__":
  main()
