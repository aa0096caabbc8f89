"""Few-shot exemplars that give their query away."""

from dataclasses import dataclass
from pathlib import Path

from flan_jax.data.compared import SHORTEST, compared
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import Mixture
from flan_jax.data.rates import training_tasks
from flan_jax.data.records import load_records
from flan_jax.data.rendering import DatasetDraws
from flan_jax.data.texts import registered_texts


@dataclass(frozen=True)
class ExemplarOverlap:
  """How many of a dataset's draws have an exemplar like the query.

  Attributes:
    queries: draws that were looked at.
    equal: those with an exemplar whose values are the query's, but for the answer.
    sharing: those with an exemplar that has one value of 8 words or more, but for the answer, in common with it.
    first: training indices of the first such query and its exemplar.
  """

  dataset: str
  queries: int
  equal: int
  sharing: int
  first: tuple[int, int] | None


def exemplar_overlaps(
  mixture: Mixture | str, data_dir: Path | str, shots: int, queries: int = 1000, seed: int = 0
) -> list[ExemplarOverlap]:
  """Looks at the first draws of each dataset of a mixture with so many exemplars. Builds missing records."""
  found = []
  for task in training_tasks(mixture, data_dir):
    spec = None if task.missing or task.name in registered_texts() else dataset_spec(task.name)
    if spec and spec.training_templates():
      records = load_records(spec, data_dir)["train"]
      draws = DatasetDraws(spec, records, task.examples, seed, renderings=1, shots=shots)
      found.append(_of_dataset(draws, min(queries, task.examples)))
  return sorted(found, key=lambda overlap: (-overlap.equal, -overlap.sharing))


def _of_dataset(draws: DatasetDraws, queries: int) -> ExemplarOverlap:
  equal = sharing = 0
  first = None
  for query in range(queries):
    asked, texts = _asked(draws, query)
    exemplars = {index: _asked(draws, index) for index in draws.exemplars(query, epoch=0)}
    same = [index for index, (other, _) in exemplars.items() if other == asked]
    alike = [index for index, (_, others) in exemplars.items() if texts & others]
    equal, sharing = equal + bool(same), sharing + bool(alike)
    if first is None and (same or alike):
      first = query, (same or alike)[0]
  return ExemplarOverlap(draws.spec.name, queries, equal, sharing, first)


def _asked(draws: DatasetDraws, index: int) -> tuple[str, set[str]]:
  """The values of a record but for the answer: as one text, and the long ones."""
  values, asked = compared(draws.spec, draws.records[index])
  fields = draws.spec.asked_fields
  return asked, {
    v.text for v in values if v.length >= SHORTEST and (not fields or v.field in fields)
  }
