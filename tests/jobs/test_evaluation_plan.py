"""How far what is judged is from what a model was tuned on."""

import pytest

from flan_jax.evaluation import EvaluationTask
from flan_jax.jobs.evaluation import _placed


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
