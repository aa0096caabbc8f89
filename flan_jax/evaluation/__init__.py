"""Zero-shot evaluation: what is scored, how, and what may be said about it afterwards."""

from flan_jax.evaluation.evaluator import Progress, evaluate
from flan_jax.evaluation.html import write_html
from flan_jax.evaluation.rank_classification import (
  CONVENTIONS,
  OptionScores,
  RankRequest,
  row_lengths_up_to,
  score_options,
)
from flan_jax.evaluation.report import Report, build_report, in_short
from flan_jax.evaluation.results import Evaluation, ScoredExample, TaskResult, TemplateResult
from flan_jax.evaluation.table import terminal_table
from flan_jax.evaluation.tasks import (
  EvaluationTask,
  PreparedTask,
  Prompt,
  TaskPrompts,
  prepare_task,
)

__all__ = [
  "CONVENTIONS",
  "Evaluation",
  "EvaluationTask",
  "OptionScores",
  "PreparedTask",
  "Progress",
  "Prompt",
  "RankRequest",
  "Report",
  "ScoredExample",
  "TaskPrompts",
  "TaskResult",
  "TemplateResult",
  "build_report",
  "evaluate",
  "in_short",
  "prepare_task",
  "row_lengths_up_to",
  "score_options",
  "terminal_table",
  "write_html",
]
