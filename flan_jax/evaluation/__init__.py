"""Zero-shot evaluation: what is scored, how, and what may be said about it afterwards."""

from flan_jax.evaluation.comparison import Compared, compare
from flan_jax.evaluation.evaluator import Progress, evaluate
from flan_jax.evaluation.explanation import Explained, explain
from flan_jax.evaluation.markdown import write_markdown
from flan_jax.evaluation.option_scores import CONVENTIONS, OptionScores, RankRequest
from flan_jax.evaluation.pages.report_page import write_html
from flan_jax.evaluation.rank_classification import row_lengths_up_to, score_options
from flan_jax.evaluation.report import Report, build_report, in_short
from flan_jax.evaluation.results import Evaluation, ScoredExample, TaskResult, TemplateResult
from flan_jax.evaluation.saved import read_evaluations, read_several
from flan_jax.evaluation.table import compared_table, explained_table, terminal_table
from flan_jax.evaluation.tasks import (
  EvaluationTask,
  PreparedTask,
  Prompt,
  TaskPrompts,
  prepare_task,
)

__all__ = [
  "CONVENTIONS",
  "Compared",
  "Evaluation",
  "EvaluationTask",
  "Explained",
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
  "compare",
  "compared_table",
  "evaluate",
  "explain",
  "explained_table",
  "in_short",
  "prepare_task",
  "read_evaluations",
  "read_several",
  "row_lengths_up_to",
  "score_options",
  "terminal_table",
  "write_html",
  "write_markdown",
]
