"""The prompts of a mixture: its datasets under their templates, as evaluation puts them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flan_jax.data.encode import Encoder
from flan_jax.data.home import data_home
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import get_mixture, held_out_datasets, training_datasets
from flan_jax.errors import ConfigError, EvaluationError, RecordError, UnknownName
from flan_jax.evaluation import EvaluationTask, TaskPrompts
from flan_jax.jobs.evaluation import available, check_tasks
from flan_jax.jobs.prompt_files import Question
from flan_jax.jobs.user_modules import require_own
from flan_jax.prompting import AnyTemplate, DoesNotApply


@dataclass(frozen=True)
class MixturePrompts:
  """Which datasets are asked, under which templates.

  Attributes:
    mixture: a mixture or dataset by any of its names, "mini without topic" too. What it holds out is left out.
    tasks: datasets -> names of templates, () for all that evaluation scores; a dataset that is held out may be named.
      None: every dataset of the mixture.
    split: whose records; None: test, or validation where a dataset has no test split.
    examples: records of each dataset, drawn as evaluation draws them; None: all.
    seed, shots: see `flan_jax.evaluation.EvaluationTask`.
    strict: a dataset whose records cannot be had stops the launch; else it is left out and told.
  """

  mixture: str
  tasks: Mapping[str, Sequence[str]] | None = None
  split: str | None = None
  examples: int | None = None
  seed: int = 0
  shots: int = 0
  strict: bool = False

  def __post_init__(self) -> None:
    check_tasks("mixture_prompts.tasks", self.tasks)

  def open(self, encoder: Encoder) -> "MixtureQuestions":
    """The prompts as ids.

    Raises:
      UnknownName: no such mixture, dataset, split or template.
      ConfigError: the mixture trains on no dataset.
      SourceError: no records can be had; or, where `strict` is set, those of one dataset cannot.
    """
    tasks, missing = available(self._asked(), "asked", self.strict)
    for name, reason in missing.items():
      print(f"{name} is not asked: {reason}", file=sys.stderr)
    return MixtureQuestions([TaskPrompts(task, encoder, data_home()) for task in tasks], encoder)

  def _asked(self) -> list[EvaluationTask]:
    require_own(
      self.mixture,
      "mixture to be asked",
      "Only datasets of ours have templates to ask with: write a SeqIO task's inputs into a file.",
    )
    mixture = get_mixture(self.mixture)
    names, held_out = training_datasets(mixture), held_out_datasets(mixture)
    chosen = dict.fromkeys(names, ()) if self.tasks is None else self.tasks
    for name in chosen:
      if name not in (*names, *held_out):
        raise UnknownName(f"dataset of {mixture.name}", name, [*names, *held_out])
    if not chosen:
      raise ConfigError(
        f"{mixture.name!r} trains on no dataset that could be asked: name some in mixture_prompts.tasks."
      )
    return [
      EvaluationTask(
        name,
        split=self.split or dataset_spec(name).evaluation_split,
        templates=tuple(templates),
        examples=self.examples,
        seed=self.seed,
        shots=self.shots,
        held_out=name in held_out,
      )
      for name, templates in chosen.items()
    ]


class MixtureQuestions:
  """The prompts in order, task by task, template by template; each is made when its turn comes.

  Attributes:
    total: how many there are, as far as is known: templates that are not for every record ask fewer.
    fingerprint: of all that decides them but the encoder.
  """

  def __init__(self, tasks: Sequence[TaskPrompts], encoder: Encoder):
    self._tasks, self._encoder = tasks, encoder
    self.total = sum(len(task.templates) * len(task.indices) for task in tasks)
    self.fingerprint = [task.fingerprint for task in tasks]

  def __iter__(self) -> Iterator[Question]:
    place = 0
    for task in self._tasks:
      for template in task.templates:
        for index in task.indices:
          try:
            question = self._question(task, template, index, place)
          except DoesNotApply:
            self.total -= 1
            continue
          yield question
          place += 1

  def _question(self, task: TaskPrompts, template: AnyTemplate, index: int, place: int) -> Question:
    origin = {
      "task": task.task.dataset,
      "template": template.name,
      "split": task.task.split,
      "index": index,
    }
    text = ""
    try:
      text = task.text(template, index)
      prompt = task.prompt(template, index)
      if prompt is None:
        raise RecordError(self._too_long())
    except DoesNotApply:
      raise
    except (RecordError, EvaluationError) as error:
      return Question(place, text, str(error), origin)
    origin |= {"targets": list(prompt.golds)}
    if prompt.options:
      origin |= {"options": list(prompt.options)}
    return Question(place, prompt.inputs, None, origin, prompt)

  def _too_long(self) -> str:
    lengths = self._encoder.lengths
    return (
      f"the prompt does not fit infer.max_prompt_tokens={lengths['inputs']}, or an option "
      f"sampling.max_new_tokens={lengths['targets']}, even without exemplars and with its long field cut"
    )
