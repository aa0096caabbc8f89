"""Microseconds that an example takes in promptsource's templates: promptsource's `apply`, and ours.

  python benchmarks/promptsource.py

`apply` compiles a template's Jinja anew each time; ours is compiled when it is read, which no clock sees.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from figures import Figure, tell

from flan_jax.errors import RecordError
from flan_jax.prompting import Draw
from flan_jax.prompting.promptsource import read_promptsource

sys.path.append(str(Path(__file__).parents[1] / "tests" / "prompting"))
import promptsource_examples
import promptsource_itself


def microseconds(render: Callable[[int], object], count: int) -> float:
  """Of this process, a call that is not the first."""
  render(0)
  started = time.process_time()
  for i in range(count):
    render(i)
  return (time.process_time() - started) / count * 1e6


def pairs(folder: Path) -> Iterator[tuple]:
  """Each template, read by promptsource and by us, and a record that it is for."""
  more = promptsource_examples.raw_records()
  for path in sorted(folder.glob("**/templates.yaml")):
    theirs = yaml.load(path.read_text(), yaml.FullLoader)["templates"].values()
    jinjas = [jinja for t in theirs for jinja in (t.jinja, t.answer_choices) if jinja]
    name = str(path.parent.relative_to(folder))
    records = [*more.get(name, ()), *promptsource_examples.examples(jinjas, 4)]
    for their, our in zip(theirs, read_promptsource(path), strict=True):
      for record in records:
        try:
          our.render(record, Draw(0))
        except RecordError:
          continue
        yield their, our, record
        break


def main() -> None:
  with tempfile.TemporaryDirectory() as directory:
    _, folder = promptsource_itself.load(Path(directory))
    times = []
    for their, our, record in pairs(folder):
      draws = map(Draw, itertools.count())
      times.append(
        (
          microseconds(lambda _, t=their, r=record: t.apply(r), 3),
          microseconds(lambda _, t=our, r=record, d=draws: t.render(r, next(d)), 50),
        )
      )
  theirs, ours = map(statistics.mean, zip(*times, strict=True))
  tell(
    Figure(
      f"rendering promptsource's {len(times):,} templates, against its own `apply`, which compiles them each time",
      f"{ours:,.1f} us of processor time against {theirs:,.0f}",
      theirs / ours,
      50,
    )
  )


if __name__ == "__main__":
  main()
