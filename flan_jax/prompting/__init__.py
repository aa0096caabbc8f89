"""From records to words: dataset files, templates, answer options, few-shot prompts. Pure Python."""

from flan_jax.prompting.answers import Answer
from flan_jax.prompting.dataset_file import given_dataset, read_dataset
from flan_jax.prompting.dataset_spec import DatasetSpec
from flan_jax.prompting.draw import Draw
from flan_jax.prompting.few_shot import few_shot, fewer_shots
from flan_jax.prompting.gallery import gallery
from flan_jax.prompting.options import STYLES
from flan_jax.prompting.promptsource import AnyTemplate, DoesNotApply
from flan_jax.prompting.template import Rendering, Template, Turn, TurnText
from flan_jax.prompting.template_section import RANKED_METRICS, WRITTEN_METRICS

__all__ = [
  "RANKED_METRICS",
  "STYLES",
  "WRITTEN_METRICS",
  "Answer",
  "AnyTemplate",
  "DatasetSpec",
  "DoesNotApply",
  "Draw",
  "Rendering",
  "Template",
  "Turn",
  "TurnText",
  "few_shot",
  "fewer_shots",
  "gallery",
  "given_dataset",
  "read_dataset",
]
