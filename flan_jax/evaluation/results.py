"""What an evaluation found: every example with its prompt, its options and their scores."""

import statistics as of_python
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flan_jax.evaluation import label_metrics, metrics, statistics
from flan_jax.evaluation.label_metrics import LABEL_METRICS
from flan_jax.evaluation.option_scores import CONVENTIONS, OptionScores
from flan_jax.evaluation.text_metrics import TEXT_METRICS, normalised_answer
from flan_jax.prompting import RANKED_METRICS

CALIBRATED = "calibrated_accuracy"
"""Accuracy behind batch calibration, see `metrics.batch_calibrated`."""

COLLAPSED_ABOVE = 0.95
"""A task whose most predicted label has a larger share than this is collapsed."""


@dataclass(frozen=True)
class ScoredExample:
  """One example under one template.

  Attributes:
    index: of the record in its split.
    inputs: the whole prompt as text.
    input_ids: the prompt as the model read it.
    golds: every accepted target text.
    options: the candidate targets in the order shown; () for free text.
    labels: what each option is counted under: the label's name, or the position.
    option_ids: the tokens of each option.
    scores: what each option got; None for free text.
    generated: what the model wrote; None where it ranked options.
    style: how the options were shown.
  """

  index: int
  inputs: str
  input_ids: tuple[int, ...]
  golds: tuple[str, ...]
  options: tuple[str, ...] = ()
  labels: tuple[str, ...] = ()
  option_ids: tuple[tuple[int, ...], ...] = ()
  scores: OptionScores | None = None
  generated: str | None = None
  style: str = "none"

  @property
  def gold_label(self) -> str:
    """The label of the first option that is right."""
    return next(
      label for label, option in zip(self.labels, self.options, strict=True) if option in self.golds
    )

  def as_json(self) -> dict[str, Any]:
    """Everything, as `from_json` reads it."""
    return asdict(self)

  @staticmethod
  def from_json(data: Mapping[str, Any]) -> "ScoredExample":
    """The example that `as_json` wrote."""
    fields = {key: _tuples(value) for key, value in data.items() if key != "scores"}
    scores = data["scores"]
    if scores is not None:
      scores = OptionScores(**{key: _tuples(value) for key, value in scores.items()})
    return ScoredExample(**fields, scores=scores)


@dataclass(frozen=True)
class TemplateResult:
  """All examples of a task under one template.

  Attributes:
    metric: for ranked options "accuracy" or one of `LABEL_METRICS`, else one of `TEXT_METRICS`.
    fixed_labels: every example has the same labels, so that they can be compared between examples.
    unseen: the template was kept out of training.
    also: further metrics, of which the report tells the values as well.
  """

  template: str
  metric: str
  fixed_labels: bool
  examples: tuple[ScoredExample, ...]
  unseen: bool = False
  also: tuple[str, ...] = ()

  def predictions(self, scoring: str) -> list[str]:
    """The chosen option's text, or the generated text, of each example."""
    if self.metric not in RANKED_METRICS:
      return [example.generated or "" for example in self.examples]
    return [
      example.options[chosen]
      for example, chosen in zip(self.examples, self._chosen(scoring), strict=True)
    ]

  def added(self, scoring: str, metric: str) -> np.ndarray:
    """What each example adds to a metric, `[N, S]`, see `statistics.Table`; "calibrated_accuracy" where
    `calibrates`.
    """
    key = (scoring if metric in (*RANKED_METRICS, CALIBRATED) else "", metric)
    if key not in self._added:
      self._added[key] = self._counted(scoring, metric)
    return self._added[key]

  def value_of(self, metric: str) -> statistics.Value:
    """The metric of sums of what `added` says."""
    if metric in LABEL_METRICS:
      labels = sorted(self.examples[0].labels)
      square, measure = (len(labels),) * 2, LABEL_METRICS[metric]
      return lambda sums, count: measure(sums.reshape(*sums.shape[:-1], *square), labels)
    return TEXT_METRICS[metric].value if metric in TEXT_METRICS else statistics.mean

  def alone(self, scoring: str) -> np.ndarray:
    """What each example is worth by itself, `[N]`: 1 for the right option, a text's metric as if
    there were no other.
    """
    if self.metric in RANKED_METRICS:
      return self.added(scoring, "accuracy")[:, 0]
    return self.value_of(self.metric)(self.added(scoring, self.metric), np.ones(len(self.examples)))

  @property
  def ranks(self) -> bool:
    """Whether options are ranked."""
    return self.metric in RANKED_METRICS

  def confidences(self, scoring: str) -> np.ndarray:
    """How sure each choice among options is, `[N]`."""
    known = [example.scores.by(scoring) for example in self.examples if example.scores]
    return np.array([metrics.largest_share(scores) for scores in known])

  def summary(self, scoring: str) -> "TemplateSummary":
    """The numbers of this template."""
    measure, added = self.value_of(self.metric), self.added(scoring, self.metric)
    value = float(measure(added.sum(axis=0), np.array(len(added))))
    if self.metric not in RANKED_METRICS:
      written = [normalised_answer(text) for text in self.predictions(scoring)]
      return TemplateSummary(value, metrics.top_label_share(written))
    labels, golds = self._labels(scoring)
    top_share = metrics.top_label_share(labels)
    if all(example.style == "letters" for example in self.examples):
      # Labels in a drawn order hide a model that always says "A".
      top_share = max(top_share, metrics.top_label_share(self._chosen(scoring)))
    return TemplateSummary(
      value,
      top_share,
      **self._without_looking(golds),
      balanced_accuracy=metrics.balanced_accuracy(golds, labels),
      ece=metrics.reliability(
        self.confidences(scoring), self.added(scoring, "accuracy")[:, 0]
      ).expected_calibration_error,
      **self._without_prior(scoring, golds),
    )

  @cached_property
  def _added(self) -> dict[tuple[str, str], np.ndarray]:
    return {}

  @property
  def calibrates(self) -> bool:
    """Whether a prior of its labels can be told and removed: they are the same in each example."""
    labels = self.examples[0].labels
    return self.metric in RANKED_METRICS and self.fixed_labels and len({*labels}) == len(labels)

  def _counted(self, scoring: str, metric: str) -> np.ndarray:
    if metric == CALIBRATED:
      names, table = self._by_label(scoring)
      chosen = [names[k] for k in metrics.batch_calibrated(table)]
      right = [label == e.gold_label for label, e in zip(chosen, self.examples, strict=True)]
      return np.array(right, np.float64)[:, None]
    if metric in LABEL_METRICS:
      predictions, golds = self._labels(scoring)
      return label_metrics.confusions(golds, predictions, sorted(self.examples[0].labels))
    if metric in RANKED_METRICS:
      right = [
        metrics.chosen_is_gold(example.options, chosen, example.golds)
        for example, chosen in zip(self.examples, self._chosen(scoring), strict=True)
      ]
      return np.array(right, np.float64)[:, None]
    added = TEXT_METRICS[metric].added
    return np.array([added(e.generated or "", e.golds) for e in self.examples], np.float64)

  def _labels(self, scoring: str) -> tuple[list[str], list[str]]:
    """What was chosen, and what is right."""
    chosen = zip(self.examples, self._chosen(scoring), strict=True)
    return [example.labels[k] for example, k in chosen], [e.gold_label for e in self.examples]

  def _without_looking(self, golds: Sequence[str]) -> dict[str, float]:
    """What the most frequent label earns, and a uniform draw on average. Of a confusion matrix the
    latter is taken of the matrix that is drawn on average.
    """
    if self.metric == "accuracy":
      shown = [(e.options, e.golds) for e in self.examples]
      random = metrics.random_guessing(*zip(*shown, strict=True))
      return {"majority": metrics.majority_share(golds), "random": random}
    labels = sorted(self.examples[0].labels)
    counts = np.array([golds.count(label) for label in labels], np.float64)
    always = np.eye(len(labels))[np.argmax(counts)]
    uniform = np.full(len(labels), 1 / len(labels))
    measure = LABEL_METRICS[self.metric]
    return {
      name: float(measure(np.outer(counts, given), labels))
      for name, given in (("majority", always), ("random", uniform))
    }

  def _chosen(self, scoring: str) -> list[int]:
    chosen = []
    for example in self.examples:
      if example.scores is None:
        raise ValueError(f"example {example.index} of {self.template} has no scores")
      chosen.append(metrics.first_maximum(example.scores.by(scoring)))
    return chosen

  def _without_prior(self, scoring: str, golds: Sequence[str]) -> dict[str, float | None]:
    """AUC and calibrated accuracy, which need the same labels in every example."""
    if not self.calibrates:
      return {}
    found: dict[str, float | None] = {CALIBRATED: float(self.added(scoring, CALIBRATED).mean())}
    names, table = self._by_label(scoring)
    if len(names) == 2:
      found["auc"] = metrics.binary_auc(
        [gold == names[1] for gold in golds], table[:, 1] - table[:, 0]
      )
    return found

  def _by_label(self, scoring: str) -> tuple[list[str], np.ndarray]:
    """The labels, sorted, and the score of each in every example, `[N, L]`."""
    names = sorted(self.examples[0].labels)
    table = np.empty((len(self.examples), len(names)))
    for row, example in zip(table, self.examples, strict=True):
      assert example.scores is not None
      scores = dict(zip(example.labels, example.scores.by(scoring), strict=True))
      row[:] = [scores[name] for name in names]
    return names, table


@dataclass(frozen=True)
class TemplateSummary:
  """The numbers of one template; None where the notion does not apply.

  Attributes:
    value: the metric.
    top_label_share: of the examples, the share with the most predicted label (or written text).
    majority: the metric of always giving the most frequent label.
    random: the metric of a uniform draw among the options.
    ece: expected calibration error of the softmax over the options' scores.
  """

  value: float
  top_label_share: float
  majority: float | None = None
  random: float | None = None
  balanced_accuracy: float | None = None
  calibrated_accuracy: float | None = None
  auc: float | None = None
  ece: float | None = None

  @property
  def collapsed(self) -> bool:
    return self.top_label_share > COLLAPSED_ABOVE


@dataclass(frozen=True)
class TaskResult:
  """One dataset, scored on the same examples under each of its templates.

  Attributes:
    unfit: indices of drawn examples that no row was long enough for under some template; they are
      left out under all of them.
    trained_cluster: held out itself, while other datasets of its cluster were trained on.
    overlap: the share of its split that has text in common with what was trained on; None: nobody looked.
  """

  name: str
  cluster: str
  held_out: bool
  split: str
  seed: int
  shots: int
  indices: tuple[int, ...]
  unfit: tuple[int, ...]
  templates: tuple[TemplateResult, ...]
  trained_cluster: bool = False
  overlap: float | None = None

  @property
  def metric(self) -> str:
    return self.templates[0].metric

  @property
  def conventions(self) -> tuple[str, ...]:
    """The scoring conventions that the scores allow; none where the model wrote free text."""
    scores = [example.scores for template in self.templates for example in template.examples]
    if any(score is None for score in scores):
      return ()
    known = [score for score in scores if score is not None]
    missing = {
      "pmi": any(not score.unasked for score in known),
      "contextual": any(not score.content_free for score in known),
    }
    return tuple(name for name in CONVENTIONS if not missing.get(name))

  def at(self, indices: Collection[int]) -> "TaskResult":
    """The same at only those examples whose index is among `indices`."""
    templates = tuple(
      replace(t, examples=tuple(e for e in t.examples if e.index in indices))
      for t in self.templates
    )
    kept = tuple(index for index in self.indices if index in indices)
    return replace(self, templates=templates, indices=kept)

  @property
  def also(self) -> tuple[str, ...]:
    """Further metrics that all its templates have."""
    return tuple(
      name for name in self.templates[0].also if all(name in t.also for t in self.templates)
    )

  def table(self, scoring: str, metric: str | None = None) -> statistics.Table:
    """What each example adds under each template; by default to the task's own metric."""
    metric = metric or self.metric
    column = {index: n for n, index in enumerate(self.indices)}
    added = [template.added(scoring, metric) for template in self.templates]
    table = np.full((len(added), len(column), added[0].shape[1]), np.nan)
    for row, template, values in zip(table, self.templates, added, strict=True):
      row[[column[example.index] for example in template.examples]] = values
    return statistics.Table(table, self.templates[0].value_of(metric))


@dataclass(frozen=True)
class Evaluation:
  """One checkpoint, read in one format, on some tasks.

  Attributes:
    checkpoint: what was scored, as a person would name it.
    format: the prompt format's name, such as "plain" or "chat".
    scoring: the primary convention, fixed before the run.
    fingerprints: of the checkpoint and the format.
    seconds: how long it took, without what was found finished.
  """

  checkpoint: str
  format: str
  scoring: str
  tasks: tuple[TaskResult, ...]
  fingerprints: Mapping[str, str]
  seconds: float = 0.0

  def records(self) -> Iterator[dict[str, Any]]:
    """One dict per example, task and template, for `examples.jsonl`, from which `saved` makes them again."""
    for task in self.tasks:
      for template in task.templates:
        yield from _records(task, template, self.scoring)


def median_of(values: Sequence[float | None]) -> float | None:
  """The median over templates of a number that may not apply to some of them."""
  known = [value for value in values if value is not None]
  return of_python.median(known) if known else None


def _records(task: TaskResult, template: TemplateResult, scoring: str) -> Iterator[dict[str, Any]]:
  values, predictions = template.alone(scoring), template.predictions(scoring)
  for example, value, prediction in zip(template.examples, values, predictions, strict=True):
    yield {
      "task": task.name,
      "template": template.template,
      "index": example.index,
      "inputs": example.inputs,
      "options": list(example.options),
      "input_ids": list(example.input_ids),
      "option_ids": [list(ids) for ids in example.option_ids],
      "scores": list(example.scores.by(scoring)) if example.scores else [],
      "prediction": prediction,
      "target": example.golds[0],
      "targets": list(example.golds),
      "metric": template.metric,
      "value": float(value),
      "labels": list(example.labels),
      "style": example.style,
      "generated": example.generated,
      "sums": example.scores and asdict(example.scores),
    }


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
