"""Renderings a second on one core: a template of three fields, and every template of the library's own.

promptsource's are measured in promptsource.py.

python benchmarks/rendering.py
"""

import itertools
import statistics
import time
from collections.abc import Callable

from flan_jax.data import dataset_names, dataset_spec
from flan_jax.prompting import Answer, Draw, Template, TurnText

RECORD = {
  "title": "Rivers",
  "passage": "The Rhine is long. " * 30,
  "question": "Is it?",
  "answer": "yes",
}


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


def main() -> None:
  text = TurnText("{title}\n\n{passage}\n\nQuestion: {question}\nAnswer:", "{answer}")
  template = Template("three_fields", [text], long="passage", answer=Answer("answer"))
  draw = Draw("benchmark")
  rate = renderings_per_second(lambda _: template.render(RECORD, draw))
  print(f"three fields           {rate:10,.0f} renderings/s")
  rate = renderings_per_second(lambda i: template.render(RECORD, Draw("benchmark", i)))
  print(f"three fields, new draw {rate:10,.0f} renderings/s")
  specs = [dataset_spec(name) for name in dataset_names() if not name.startswith("p3_")]
  pairs = [(spec.derive_record(spec.record), t) for spec in specs for t in spec.templates]
  turn = itertools.cycle(pairs)

  def next_one(i: int) -> None:
    record, each = next(turn)
    each.render(record, Draw("benchmark", i))

  print(f"{len(pairs)} templates in turn {renderings_per_second(next_one):12,.0f} renderings/s")


if __name__ == "__main__":
  main()
