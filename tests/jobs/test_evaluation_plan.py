"""How far what is judged is from what a model was tuned on."""

import json

import pytest

from flan_jax.errors import ConfigError
from flan_jax.evaluation import EvaluationTask
from flan_jax.jobs.evaluation import EvaluationPlan, _placed


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
