"""What is scored zero-shot, and how: the part of a launch that `train` and `evaluate` share."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from flan_jax.data.encode import Encoder, check_layout
from flan_jax.data.home import data_home
from flan_jax.data.library import dataset_spec
from flan_jax.data.mixtures import (
  get_mixture,
  held_out_datasets,
  is_known,
  training_datasets,
)
from flan_jax.data.records import load_records
from flan_jax.errors import ConfigError, RecordError, SourceError, UnknownName
from flan_jax.evaluation import (
  CONVENTIONS,
  Evaluation,
  EvaluationTask,
  PreparedTask,
  Progress,
  evaluate,
  prepare_task,
)
from flan_jax.jobs.models import ModelSource
from flan_jax.jobs.processes import is_first
from flan_jax.jobs.user_modules import require_own
from flan_jax.models import Params
from flan_jax.prompting import Turn
from flan_jax.training.partitioning import Layout
from flan_jax.training.termination import end_if_asked
from flan_jax.vocabularies import Format


@dataclass(frozen=True)
class EvaluationPlan:
  """Which tasks are scored, on which examples, by which convention.

  Attributes:
    mixture: its datasets can be scored; those of its held-out clusters are told apart. Of a model that was tuned
      here it is known what it was tuned on, and that is told instead.
    trained_on: datasets of those clusters that training sees all the same, or others of their cluster.
    tasks: dataset -> names of templates, () for all; None scores every dataset of the mixture.
    lengths: tokens of a prompt, without what a chat template writes around it, and of an answer:
      {"inputs": I, "targets": T}.
    split: whose records are scored; None: test, or validation where a dataset has no test split.
    examples, seed, shots: see `flan_jax.evaluation.EvaluationTask`.
    scoring: the primary convention: t0, lm_eval, lm_eval_norm, per_token, pmi, contextual.
    native_chat: score the untuned model in its own chat format as well.
    batch_tokens: tokens of one forward pass.
    contamination: what `flan-jax contamination --out` wrote, to be told beside the scores.
    strict: a dataset whose records cannot be had, or hold a wrong one, stops the launch; else it is left out and told.
  """

  mixture: str
  lengths: Mapping[str, int]
  tasks: Mapping[str, Sequence[str]] | None = None
  trained_on: Sequence[str] = ()
  split: str | None = None
  examples: int | None = 100
  seed: int = 0
  shots: int = 0
  scoring: str = "t0"
  native_chat: bool = True
  batch_tokens: int = 2048
  contamination: str | None = None
  strict: bool = False

  def __post_init__(self) -> None:
    check_layout("decoder", self.lengths)
    if self.batch_tokens < 1:
      raise ConfigError(f"evaluation.batch_tokens={self.batch_tokens} must be 1 or more.")
    check_tasks("evaluation.tasks", self.tasks)
    if isinstance(self.trained_on, str):
      raise ConfigError(f"evaluation.trained_on: write ({self.trained_on!r},), a list of names.")
    if self.scoring not in CONVENTIONS:
      raise UnknownName("scoring convention", self.scoring, CONVENTIONS)

  def evaluation_tasks(self) -> list[EvaluationTask]:
    """The tasks, those trained on first.

    Raises:
      UnknownName: a task is no dataset of the mixture.
    """
    require_own(
      self.mixture,
      "mixture to be judged on",
      "Models are judged on datasets of ours; a SeqIO task can be trained on only: name another "
      "evaluation.mixture, or train without evaluation.",
    )
    mixture = get_mixture(self.mixture)
    trained, held_out = training_datasets(mixture), held_out_datasets(mixture)
    overlaps = _overlaps(self.contamination) if self.contamination is not None else {}
    split_of = {
      name: self.split or dataset_spec(name).evaluation_split for name in (*trained, *held_out)
    }
    tasks = dict.fromkeys([*trained, *held_out], ()) if self.tasks is None else self.tasks
    for name in (*tasks, *self.trained_on):
      if name not in (*trained, *held_out):
        raise UnknownName(f"dataset of {mixture.name}", name, [*trained, *held_out])
    return [
      EvaluationTask(
        name,
        split=split_of[name],
        templates=tuple(tasks[name]),
        examples=self.examples,
        seed=self.seed,
        shots=self.shots,
        held_out=name in held_out and name not in self.trained_on,
        overlap=overlaps.get((name, split_of[name])),
        unfit="count",
      )
      for name in (*trained, *held_out)
      if name in tasks
    ]

  def check_trained(self, mixture: str) -> None:
    """Raises ConfigError where what would be told as held out is of a cluster that this mixture trains on."""
    trained = training_datasets(mixture) if is_known(mixture) else []
    seen = {dataset_spec(name).cluster: name for name in trained}
    tasks = [task.dataset for task in self.evaluation_tasks() if task.held_out]
    judged = [(name, dataset_spec(name).cluster) for name in tasks]
    both = [name for name, cluster in judged if cluster in seen]
    if both:
      cluster = dict(judged)[both[0]]
      raise ConfigError(
        f"{', '.join(both)} would be judged as held out, and {mixture!r} trains on that cluster ({cluster}: "
        f"{seen[cluster]}): hold it out of data.mixture too, or say so with evaluation.trained_on={both!r}."
      )

  def available(self) -> tuple["EvaluationPlan", dict[str, str]]:
    """The plan without the datasets whose records cannot be had, and why they cannot.

    Raises:
      SourceError, RecordError: nothing is left, or the plan is strict.
    """
    tasks, missing = available(self.evaluation_tasks(), "judged", self.strict)
    return replace(self, tasks={task.dataset: task.templates for task in tasks}), missing

  def encoder(self, source: ModelSource, format: Format) -> Encoder:
    """How prompts become ids for a model. What the format itself writes does not count as prompt."""
    wrapping = "".join(text for text, _ in format.pieces([Turn("", "")], open_end=True))
    room = self.lengths["inputs"] + len(source.vocabulary.encode(wrapping))
    lengths = {"inputs": room, "targets": self.lengths["targets"]}
    return Encoder(source.vocabulary, format, source.model.layout, lengths)

  def prepare(self, encoder: Encoder, trained_on: Mapping[str, str]) -> list[PreparedTask]:
    """The tasks as ids, for a model that was tuned on datasets of those clusters."""
    return [
      prepare_task(
        _placed(task, trained_on), encoder, data_home(), content_free=self.scoring == "contextual"
      )
      for task in self.evaluation_tasks()
    ]

  def run(
    self,
    source: ModelSource,
    params: Params,
    layout: Layout,
    format: Format,
    out_dir: Path | None,
    *,
    label: str,
    fingerprint: str | None = None,
  ) -> Evaluation:
    """Scores a model; what an interrupted run has finished in `out_dir` is not scored again (None: nothing is kept).

    Args:
      label: what the progress bar and the report call this checkpoint.
      fingerprint: of `params`, where they are not what `source.load` gives.
    """
    encoder = self.encoder(source, format)
    tasks = self.prepare(encoder, source.trained_on)
    kind = format.as_dict()["kind"]
    with tqdm(
      desc=f"{label}, {kind}",
      unit="prompt",
      file=sys.stderr,
      dynamic_ncols=True,
      disable=not is_first(),
    ) as bar:

      def show(progress: Progress) -> None:
        end_if_asked()
        bar.total = progress.total
        bar.set_postfix_str(progress.task, refresh=False)
        bar.update(progress.done - bar.n)

      return evaluate(
        source.model,
        params,
        tasks,
        encoder,
        checkpoint=label,
        fingerprint=fingerprint or source.fingerprint,
        format_name=kind,
        scoring=self.scoring,
        out_dir=out_dir,
        batch_tokens=self.batch_tokens,
        layout=layout,
        progress=show,
      )


def check_tasks(setting: str, tasks: Mapping[str, Sequence[str]] | None) -> None:
  """Raises ConfigError unless they are what `EvaluationPlan.tasks` says."""
  if tasks is not None and not tasks:
    raise ConfigError(f"{setting} is empty: name a dataset, or None for all.")
  for name, templates in (tasks or {}).items():
    if isinstance(templates, str):
      raise ConfigError(f"{setting}: write {name!r}: ({templates!r},), a list of names.")


def available(
  tasks: Sequence[EvaluationTask], purpose: str, strict: bool
) -> tuple[list[EvaluationTask], dict[str, str]]:
  """The tasks whose records can be had and are as their dataset's file says, and of the other datasets why not.

  Args:
    purpose: what is to be done to them, said where nothing is left.

  Raises:
    SourceError: nothing is left; or, with `strict`, some cannot be had.
    RecordError: with `strict`, a record is wrong.
  """
  found, missing = list[EvaluationTask](), dict[str, str]()
  for task in tasks:
    try:
      load_records(dataset_spec(task.dataset), data_home())
      found.append(task)
    except (SourceError, RecordError) as error:
      if strict:
        raise
      missing[task.dataset] = str(error)
  if not found:
    name, reason = next(iter(missing.items()))
    raise SourceError(f"nothing of what is to be {purpose} can be had. {name}: {reason}")
  return found, missing


def _overlaps(path: str) -> dict[tuple[str, str], float]:
  """Of each split that was compared, the share that stands in what is trained on."""
  try:
    found = json.loads(Path(path).read_text(encoding="utf-8"))["evaluated"]
    return {
      (each["dataset"], each["split"]): each["overlapping"] / max(each["examples"], 1)
      for each in found
    }
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ConfigError(
      f"evaluation.contamination={path!r} is not what `flan-jax contamination --out` writes ({error!r})."
    ) from error


def _placed(task: EvaluationTask, trained_on: Mapping[str, str]) -> EvaluationTask:
  """How far a task is from what a model was tuned on, where that is known."""
  if not trained_on:
    return task
  held_out = task.dataset not in trained_on
  known_cluster = dataset_spec(task.dataset).cluster in trained_on.values()
  return replace(task, held_out=held_out, trained_cluster=held_out and known_cluster)
