"""Evaluation tasks: which examples, under which templates, as prompts ready for a model."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flan_jax.data.encode import Dropped, Encoder, OptionsEncoding, PromptEncoding
from flan_jax.data.library import dataset_spec
from flan_jax.data.records import Records, RecordSplits, content_key, load_records
from flan_jax.errors import ConfigError, EvaluationError, RecordError, UnknownName
from flan_jax.prompting import (
  RANKED_METRICS,
  WRITTEN_METRICS,
  AnyTemplate,
  DatasetSpec,
  DoesNotApply,
  Draw,
  Rendering,
  few_shot,
)

CONTENT_FREE = ("N/A", "", "[MASK]")
"""What stands in place of an example's fields in a prompt without content (Zhao et al. 2021)."""

_STYLE_ATTEMPTS = 16


@dataclass(frozen=True)
class EvaluationTask:
  """A dataset to be scored.

  Args:
    dataset: its name.
    split: whose records are scored.
    templates: their names; () for all that measure by the dataset's own metric and are not turned
      around.
    examples: how many records to draw; None for the whole split. A larger number draws the same
      records and more.
    seed: of that draw, of the options' styles and orders, and of the exemplars.
    shots: exemplars from the training split before each query, never of the query's group or asking the same.
    held_out: the model was not tuned on this dataset.
    trained_cluster: but on others of its cluster.
    overlap: the share of the split that has text in common with what was trained on; None: nobody looked.
    unfit: what to do with an example that no shortening makes fit: "error", or "count" it in the
      report and leave it out under every template.
  """

  dataset: str
  split: str = "test"
  templates: tuple[str, ...] = ()
  examples: int | None = 100
  seed: int = 0
  shots: int = 0
  held_out: bool = False
  trained_cluster: bool = False
  overlap: float | None = None
  unfit: Literal["error", "count"] = "error"

  def __post_init__(self) -> None:
    if self.examples is not None and self.examples < 1:
      raise ConfigError(f"{self.dataset}: examples={self.examples}; at least one must be scored.")
    if self.shots < 0:
      raise ConfigError(f"{self.dataset}: shots={self.shots}; a prompt has 0 or more exemplars.")
    if self.unfit not in ("error", "count"):
      raise ConfigError(f"{self.dataset}: unfit={self.unfit!r} is neither 'error' nor 'count'.")


@dataclass(frozen=True)
class Prompt:
  """One example under one template, as ids.

  Attributes:
    index: of the record in its split.
    inputs: the prompt as text.
    labels: what each option is counted under: the label's name, or the position from 1.
    ends: how many of each option's last tokens only end the turn.
    content_free: the same prompt with each of `CONTENT_FREE` in place of the example's fields, where
      that was asked for.
  """

  index: int
  inputs: str
  input_ids: tuple[int, ...]
  golds: tuple[str, ...]
  style: str
  options: tuple[str, ...] = ()
  labels: tuple[str, ...] = ()
  option_ids: tuple[tuple[int, ...], ...] = ()
  ends: tuple[int, ...] = ()
  content_free: tuple["Prompt", ...] = ()


@dataclass(frozen=True)
class PreparedTemplate:
  """The prompts of one template, in the order of the task's indices, for which it need not be.

  Attributes:
    metrics: the one that the template is judged by, and others to be told beside it.
  """

  name: str
  metrics: tuple[str, ...]
  unseen: bool
  fixed_labels: bool
  prompts: tuple[Prompt, ...]

  @cached_property
  def fingerprint(self) -> str:
    """SHA-256 of everything a model is given and what is right; not of the metrics, which need no
    new run.
    """
    digest = hashlib.sha256()
    for prompt in self.prompts:
      digest.update(json.dumps(asdict(prompt), ensure_ascii=False).encode("utf-8", "replace"))
    return digest.hexdigest()


@dataclass(frozen=True)
class PreparedTask:
  """A task as prompts: the same examples under every template.

  Attributes:
    indices: of the records, ascending.
    unfit: of the drawn records, those that some template could not fit.
  """

  task: EvaluationTask
  cluster: str
  indices: tuple[int, ...]
  unfit: tuple[int, ...]
  templates: tuple[PreparedTemplate, ...]


def draw_examples(dataset: str, size: int, examples: int | None, seed: int) -> list[int]:
  """Which records of a split of `size` are scored: those whose hash with dataset and seed is least.

  A larger number of examples draws the same ones and more.
  """
  if examples is None or examples >= size:
    return list(range(size))
  keys = [Draw("evaluation example", seed, dataset, i).key for i in range(size)]
  return sorted(sorted(range(size), key=keys.__getitem__)[:examples])


def prepare_task(
  task: EvaluationTask,
  encoder: Encoder,
  data_dir: Path | str,
  *,
  spec: DatasetSpec | None = None,
  records: RecordSplits | None = None,
  content_free: bool = False,
) -> PreparedTask:
  """Draw the examples and put them into ids under every template.

  Args:
    spec, records: of the dataset; by default looked up by its name, and built where missing.
    content_free: beside each prompt with options, those without content as well, which the scoring
      convention "contextual" needs.

  Raises:
    UnknownName: no such dataset, split, template or metric.
    EvaluationError: an example that does not fit, a template that is turned around, templates of
      different metrics in one task, fewer exemplars than asked for, or `content_free` for templates
      that read the raw record.
  """
  prompts_of = TaskPrompts(task, encoder, data_dir, spec=spec, records=records)
  spec, drawn = prompts_of.spec, prompts_of.indices
  unfit: set[int] = set()
  prepared = []
  for template in prompts_of.templates:
    prompts = []
    for index in drawn:
      try:
        prompt = prompts_of.prompt(template, index, content_free=content_free)
      except DoesNotApply:
        continue
      if prompt is not None:
        prompts.append(prompt)
      elif task.unfit == "count":
        unfit.add(index)
      else:
        raise EvaluationError(
          f"{spec.name}.{template.name}: example {index} of {task.split} does not fit "
          f"{dict(encoder.lengths)} tokens even without exemplars and with its long field cut. "
          "Allow longer inputs, or set unfit='count' to leave such examples out and count them."
        )
    prepared.append((template, prompts))
  templates = tuple(
    PreparedTemplate(
      template.name,
      _metrics(spec, template, bool(fitting[0].options)),
      template.unseen,
      bool(spec.answer and spec.answer.labels is not None and fitting[0].options),
      fitting,
    )
    for template, prompts in prepared
    if (fitting := tuple(prompt for prompt in prompts if prompt.index not in unfit))
  )
  if not templates:
    raise EvaluationError(f"{spec.name}: none of the {len(drawn)} drawn examples fits.")
  asked = {prompt.index for template in templates for prompt in template.prompts}
  indices = tuple(index for index in drawn if index in asked)
  _check_metrics(spec, templates)
  return PreparedTask(task, spec.cluster, indices, tuple(sorted(unfit)), templates)


class TaskPrompts:
  """The prompts of a task one at a time, each made when it is asked for.

  Attributes:
    indices: of the records that are drawn, ascending.
    templates: those that are scored; not each need be for every record.

  Raises:
    UnknownName: no such dataset, split or template.
    EvaluationError: a template that is turned around.
  """

  def __init__(
    self,
    task: EvaluationTask,
    encoder: Encoder,
    data_dir: Path | str,
    *,
    spec: DatasetSpec | None = None,
    records: RecordSplits | None = None,
  ):
    self.task, self._encoder = task, encoder
    self.spec = spec or dataset_spec(task.dataset)
    self._records = load_records(self.spec, data_dir) if records is None else records
    self._split = self._records[task.split]
    self.indices = draw_examples(self.spec.name, len(self._split), task.examples, task.seed)
    self.templates = _templates(task, self.spec)

  def prompt(
    self, template: AnyTemplate, index: int, *, content_free: bool = False
  ) -> Prompt | None:
    """One record under one template as ids; None where it does not fit.

    Raises:
      DoesNotApply: the template is not for this record.
      EvaluationError: fewer exemplars than asked for, or a raw record to be left without content.
    """
    make = _with_content_free if content_free else _encode
    return make(self._renderer(template), self._encoder, index)

  def text(self, template: AnyTemplate, index: int) -> str:
    """The prompt as it would be if all of it fitted, without exemplars."""
    return _text(self._encoder, self._renderer(template).query(index))

  @property
  def fingerprint(self) -> str:
    """SHA-256 of records, templates and draws: all that decides the prompts but how they are encoded."""
    words = [(template.name, template.words) for template in self.templates]
    parts = (asdict(self.task), self._records.fingerprint, self.spec.fingerprint, words)
    return hashlib.sha256(json.dumps(parts, default=str).encode("utf-8", "replace")).hexdigest()

  def _renderer(self, template: AnyTemplate) -> "_Renderer":
    return _Renderer(self.task, self.spec, template, self._split, self._records)


class _Renderer:
  """Renders one template of a task on any example."""

  def __init__(
    self,
    task: EvaluationTask,
    spec: DatasetSpec,
    template: AnyTemplate,
    split: Records,
    records: RecordSplits,
  ):
    self._task, self._spec, self._template = task, spec, template
    self._split = split
    self._train = records["train"] if task.shots else None

  def query(self, index: int, limit: int | None = None, content: str | None = None) -> Rendering:
    """The example itself, or with `content` in place of its fields: the same options in the same
    order and style.
    """
    record = self._split[index]
    if content is not None:
      record = self._emptied(record, content)
    return self._template.render(record, self._draw(index), limit)

  def exemplars(self, index: int) -> list[Rendering]:
    """As many as asked for, of other groups than the query's and asking something else."""
    if self._train is None:
      return []
    group, draw = self._split.group(index), self._draw(index).fork("exemplars")
    asked = content_key(self._split[index], self._spec.asked_fields)
    chosen: list[int] = []
    for candidate in _without_end(draw, len(self._train)):
      if candidate in chosen or self._train.group(candidate) == group:
        continue
      if content_key(self._train[candidate], self._spec.asked_fields) != asked:
        chosen.append(candidate)
      if len(chosen) == self._task.shots:
        break
    else:
      raise EvaluationError(
        f"{self._spec.name}: {self._task.shots} exemplars were asked for and its training split "
        f"has only {len(chosen)} records of other groups than example {index} that ask something else."
      )
    style = self.query(index).style
    return [
      self._exemplar(self._train[i], draw.fork("exemplar", rank), style)
      for rank, i in enumerate(chosen)
    ]

  def labels(self, index: int, rendering: Rendering) -> tuple[str, ...]:
    """What each option stands for. A record whose answer is another label shows which one it is."""
    answer = self._spec.answer
    if answer is None or answer.labels is None or not rendering.options:
      return tuple(str(k) for k in range(1, len(rendering.options) + 1))
    found = [""] * len(rendering.options)
    for label in answer.labels:
      relabelled = {**self._split[index], answer.field: label}
      other = self._template.render(relabelled, self._draw(index))
      found[other.options.index(other.golds[0])] = label
    return tuple(found)

  def _exemplar(self, record: Mapping[str, Any], draw: Draw, style: str) -> Rendering:
    """The options shown as the query shows them, in an order of their own."""
    for attempt in range(_STYLE_ATTEMPTS):
      shown = self._template.render(record, draw.fork(attempt))
      if shown.style == style:
        break
    return shown

  def _emptied(self, record: Mapping[str, Any], content: str) -> dict[str, Any]:
    answer = self._spec.answer
    if answer is None:
      raise EvaluationError(
        f"{self._spec.name}: its templates read the raw record, so that no prompt without content "
        "can be made of it. Use another scoring convention than contextual."
      )
    kinds = self._spec.fields
    return {
      name: content if kinds.get(name, "list") != "list" and name != answer.field else value
      for name, value in record.items()
    }

  def _draw(self, index: int) -> Draw:
    return Draw("evaluation", self._task.seed, self._spec.name, self._task.split, index)


def _without_end(draw: Draw, size: int) -> list[int]:
  """A drawn order of the training records; of many only as many as any prompt could need."""
  if size <= 1000:
    return draw.shuffled(size)
  return [draw.below(size) for _ in range(1000)]


def _with_content_free(renderer: _Renderer, encoder: Encoder, index: int) -> Prompt | None:
  prompt = _encode(renderer, encoder, index)
  if prompt is None or not prompt.options:
    return prompt
  found = []
  for content in CONTENT_FREE:
    with contextlib.suppress(RecordError):  # a prompt of one field alone would be empty
      found.append(_encode(renderer, encoder, index, content))
  return replace(prompt, content_free=tuple(free for free in found if free is not None))


def _encode(
  renderer: _Renderer, encoder: Encoder, index: int, content: str | None = None
) -> Prompt | None:
  exemplars = renderer.exemplars(index)

  def render(limit: int | None) -> Rendering:
    return few_shot(renderer.query(index, limit, content), exemplars)

  encoded: OptionsEncoding | PromptEncoding | Dropped
  ranked = bool(renderer.query(index).options)
  encoded = encoder.encode_options(render) if ranked else encoder.encode_prompt(render)
  if isinstance(encoded, Dropped):
    return None
  rendering = encoded.rendering
  prompt = Prompt(
    index,
    _text(encoder, rendering),
    tuple(encoded.prompt_ids),
    rendering.golds,
    rendering.style,
  )
  if isinstance(encoded, PromptEncoding):
    return prompt
  return Prompt(
    **{
      **prompt.__dict__,
      "options": rendering.options,
      "labels": renderer.labels(index, rendering),
      "option_ids": tuple(map(tuple, encoded.option_ids)),
      "ends": tuple(encoded.ends),
    }
  )


def _text(encoder: Encoder, rendering: Rendering) -> str:
  if encoder.layout == "encoder_decoder":
    return encoder.format.encoder_text(rendering.turns)
  return "".join(text for text, _ in encoder.format.pieces(rendering.turns, open_end=True))


def _templates(task: EvaluationTask, spec: DatasetSpec) -> Sequence[AnyTemplate]:
  if task.templates:
    chosen = [spec.template(name) for name in task.templates]
    for template in chosen:
      if template.turned_around:
        raise EvaluationError(
          f"{spec.name}.{template.name} asks for an input given the answer; evaluation does not "
          "score such templates."
        )
    return chosen
  own = spec.metrics[:1]
  chosen = [t for t in spec.evaluation_templates() if t.metrics[:1] == own]
  if not chosen:
    raise EvaluationError(f"{spec.path}: no template of {spec.name} can be evaluated.")
  return chosen


def _metrics(spec: DatasetSpec, template: AnyTemplate, ranked: bool) -> tuple[str, ...]:
  """The template's metrics that are for ranked options, or for written text, whichever it has."""
  if ranked:
    return tuple(name for name in template.metrics if name in RANKED_METRICS) or ("accuracy",)
  names = ["exact_match" if name == "accuracy" else name for name in template.metrics]
  for name in names:
    if name not in WRITTEN_METRICS:
      raise UnknownName("metric", name, WRITTEN_METRICS, f"It stands in {spec.path}.")
  return tuple(dict.fromkeys(names)) or ("exact_match",)


def _check_metrics(spec: DatasetSpec, templates: Sequence[PreparedTemplate]) -> None:
  by_metric: dict[str, list[str]] = {}
  for template in templates:
    by_metric.setdefault(template.metrics[0], []).append(template.name)
  if len(by_metric) > 1:
    kinds = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in by_metric.items())
    raise EvaluationError(
      f"{spec.name}: its templates are measured in different ways ({kinds}). Name the templates of "
      "one metric in each evaluation task."
    )
