"""How far what is judged is from what a model was tuned on."""

import json

import pytest

from flan_jax.data import register_templates
from flan_jax.errors import ConfigError, RecordError, SourceError
from flan_jax.evaluation import EvaluationTask
from flan_jax.jobs.evaluation import EvaluationPlan, _placed, available


@pytest.mark.parametrize(
  ("trained_on", "held_out", "trained_cluster"),
  [
    ({}, True, False),  # nothing is known: as the mixture says
    ({"boolq": "reading_comprehension", "xsum": "summarisation"}, False, False),
    ({"narrative_qa": "reading_comprehension", "xsum": "summarisation"}, True, True),
    ({"xsum": "summarisation"}, True, False),
  ],
)
def test_a_task_stands_where_the_tuning_puts_it(trained_on, held_out, trained_cluster):
  placed = _placed(EvaluationTask("boolq", held_out=True), trained_on)
  assert (placed.held_out, placed.trained_cluster) == (held_out, trained_cluster)


def test_what_contamination_found_is_told_beside_the_score(tmp_path):
  path = tmp_path / "found.json"
  path.write_text(
    json.dumps(
      {
        "evaluated": [
          {"dataset": "boolq", "split": "test", "examples": 200, "overlapping": 50},
          {"dataset": "xsum", "split": "validation", "examples": 200, "overlapping": 50},
        ]
      }
    )
  )
  plan = EvaluationPlan(
    "mini", {"inputs": 64, "targets": 8}, tasks={"boolq": (), "xsum": ()}, contamination=str(path)
  )
  assert [(task.dataset, task.overlap) for task in plan.evaluation_tasks()] == [
    ("boolq", 0.25),
    ("xsum", None),
  ]
  path.write_text("[]")
  with pytest.raises(ConfigError, match="is not what `flan-jax contamination --out` writes"):
    plan.evaluation_tasks()


def test_a_dataset_with_a_wrong_record_is_left_out_and_told(folder):
  odd = (folder / "support/tickets.yaml").read_text().replace("tickets.jsonl", "odd.jsonl")
  (folder / "support/odd.yaml").write_text(odd)
  whole = (folder / "support/tickets.jsonl").read_text()
  (folder / "support/odd.jsonl").write_text(whole.replace('"billing"', '"bilking"', 1))
  register_templates(folder)
  tasks = [EvaluationTask("odd"), EvaluationTask("tickets")]
  found, missing = available(tasks, "judged", strict=False)
  assert found == tasks[1:] and "bilking" in missing["odd"]
  with pytest.raises(RecordError, match="bilking"):
    available(tasks, "judged", strict=True)
  with pytest.raises(
    SourceError, match="nothing of what is to be judged can be had. odd: .*bilking"
  ):
    available(tasks[:1], "judged", strict=False)
