"""Scores a checkpoint on prepared tasks, and goes on where it was stopped."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flan_jax.data.atomic import write_whole
from flan_jax.data.batches import START_ID
from flan_jax.data.encode import Encoder
from flan_jax.errors import UnknownName
from flan_jax.evaluation.rank_classification import (
  CONVENTIONS,
  OptionScores,
  RankRequest,
  row_lengths_up_to,
  score_options,
)
from flan_jax.evaluation.results import Evaluation, ScoredExample, TaskResult, TemplateResult
from flan_jax.evaluation.tasks import RANKED, PreparedTask, PreparedTemplate, Prompt
from flan_jax.inference import generate
from flan_jax.models import LanguageModel, Params
from flan_jax.training.partitioning import Layout

SCORER_VERSION = 1
"""Part of every result's key; raised whenever the same prompts come to get other scores."""

_GROUP_BATCHES = 16

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
  """How far an evaluation is, in prompts.

  Attributes:
    task: the task that is being scored, or was just finished.
    reused: prompts among `done` whose results an earlier run had left.
  """

  task: str
  done: int
  total: int
  reused: int


def evaluate(
  model: LanguageModel,
  params: Params,
  tasks: Sequence[PreparedTask],
  encoder: Encoder,
  *,
  checkpoint: str,
  fingerprint: str,
  format_name: str = "plain",
  scoring: str = "t0",
  out_dir: Path | str | None = None,
  resume: bool = True,
  row_lengths: Sequence[int] | None = None,
  batch_tokens: int = 2048,
  layout: Layout | None = None,
  progress: Callable[[Progress], object] | None = None,
) -> Evaluation:
  """Score every example of every template of every task.

  Finished templates are kept in `out_dir/scores`, one file each, under a key of the checkpoint, the
  prompts, the format and the scorer; the same call again reads them. All conventions but pmi are
  computed from the same sums, so another `scoring` needs no new run.

  Args:
    tasks: prepared with the same `encoder`.
    checkpoint: what a person calls it.
    fingerprint: of the checkpoint's parameters; two checkpoints never share one.
    format_name: what a person calls the encoder's format.
    scoring: the primary convention, one of `rank_classification.CONVENTIONS`.
    out_dir: None keeps nothing.
    resume: False scores everything again.
    row_lengths, batch_tokens: see `score_options`; row lengths default to 128 and its doubles, up
      to what the encoder's rows need.
    layout: the mesh that the parameters lie on.

  Raises:
    EvaluationError: a prompt that cannot be scored, or scores that are not finite.
    StorageError: the disk refused.
  """
  if scoring not in CONVENTIONS:
    raise UnknownName("scoring convention", scoring, CONVENTIONS)
  started = time.monotonic()
  unasked = scoring == "pmi"
  runner = _Runner(model, params, encoder, row_lengths, batch_tokens, layout, unasked)
  store = _Store(
    Path(out_dir) if out_dir is not None else None,
    resume,
    (
      SCORER_VERSION,
      fingerprint,
      encoder.format.fingerprint,
      encoder.vocabulary.fingerprint,
      encoder.lengths["targets"],
      *(["unasked"] if unasked else []),
    ),
  )
  meter = _Meter(progress, sum(len(t.prompts) for task in tasks for t in task.templates))
  results = tuple(_task_result(task, runner, store, meter) for task in tasks)
  return Evaluation(
    checkpoint,
    format_name,
    scoring,
    results,
    {"checkpoint": fingerprint, "format": encoder.format.fingerprint},
    time.monotonic() - started,
  )


class _Meter:
  """Counts prompts for whoever watches."""

  def __init__(self, progress: Callable[[Progress], object] | None, total: int):
    self._progress, self._total = progress, total
    self._done = self._reused = 0

  def add(self, task: str, prompts: int, reused: bool = False) -> None:
    self._done += prompts
    self._reused += prompts if reused else 0
    if self._progress is not None:
      self._progress(Progress(task, self._done, self._total, self._reused))


class _Store:
  """Finished templates on disk."""

  def __init__(self, out_dir: Path | None, resume: bool, key: Sequence[object]):
    self._directory = out_dir / "scores" if out_dir is not None else None
    self._resume = resume
    self._key = json.dumps(key)

  def read(self, task: str, template: PreparedTemplate) -> TemplateResult | None:
    path = self._path(task, template)
    if path is None or not self._resume or not path.exists():
      return None
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
      examples = tuple(ScoredExample.from_json(json.loads(line)) for line in lines)
    except (ValueError, TypeError, KeyError):
      _LOG.warning("%s is damaged: its template is scored again", path)
      return None
    return _template_result(template, examples)

  def write(self, task: str, template: PreparedTemplate, result: TemplateResult) -> None:
    path = self._path(task, template)
    if path is not None:
      write_whole(path, (json.dumps(e.as_json()) + "\n" for e in result.examples))

  def _path(self, task: str, template: PreparedTemplate) -> Path | None:
    if self._directory is None:
      return None
    digest = hashlib.sha256((self._key + template.fingerprint).encode()).hexdigest()
    return self._directory / f"{task}.{template.name}-{digest[:16]}.jsonl"


class _Runner:
  """Runs prompts through the model: ranks options, or lets it write."""

  def __init__(
    self,
    model: LanguageModel,
    params: Params,
    encoder: Encoder,
    row_lengths: Sequence[int] | None,
    batch_tokens: int,
    layout: Layout | None,
    unasked: bool,
  ):
    self._model, self._params, self._encoder = model, params, encoder
    self._unasked = unasked
    self._row_lengths = row_lengths or row_lengths_up_to(max(encoder.capacities))
    self._batch_tokens = batch_tokens
    self._layout = layout

  def groups(self, templates: Sequence[PreparedTemplate]) -> Iterator[list[PreparedTemplate]]:
    """Templates to be run together: enough to fill batches, few enough to lose when stopped."""
    group: list[PreparedTemplate] = []
    tokens = 0
    for template in templates:
      group.append(template)
      tokens += sum(len(prompt.input_ids) for prompt in template.prompts)
      if tokens >= _GROUP_BATCHES * self._batch_tokens:
        yield group
        group, tokens = [], 0
    if group:
      yield group

  def rank(
    self, task: str, templates: Sequence[PreparedTemplate], progress: Callable[[int], object]
  ) -> list[list[ScoredExample]]:
    """The templates' prompts in the same rows."""
    requests = [
      RankRequest(
        prompt.input_ids,
        prompt.option_ids,
        prompt.ends,
        tuple(len(option.encode()) for option in prompt.options),
        f"{task}.{template.name}, example {prompt.index}",
      )
      for template in templates
      for prompt in template.prompts
    ]
    found = self._score(requests, progress)
    if self._unasked:
      nothing = (self._encoder.nothing_asked,)
      again = self._score([replace(r, prompt_ids=nothing) for r in requests], None)
      found = [replace(s, unasked=u.without_end) for s, u in zip(found, again, strict=True)]
    scores = iter(found)
    return [[_scored(p, scores=next(scores)) for p in t.prompts] for t in templates]

  def _score(
    self, requests: Sequence[RankRequest], progress: Callable[[int], object] | None
  ) -> list[OptionScores]:
    return score_options(
      self._model,
      self._params,
      requests,
      row_lengths=self._row_lengths,
      batch_tokens=self._batch_tokens,
      start_id=START_ID,
      layout=self._layout,
      progress=progress,
    )

  def write(
    self, templates: Sequence[PreparedTemplate], progress: Callable[[int], object]
  ) -> list[list[ScoredExample]]:
    """Greedy decoding of at most as many tokens as the encoder allows a target."""
    written = []
    for template in templates:
      ids = generate(
        self._model,
        self._params,
        [prompt.input_ids for prompt in template.prompts],
        max_new_tokens=self._encoder.lengths["targets"],
        eos_ids=self._encoder.stop_ids,
        start_id=START_ID,
        layout=self._layout,
      )
      texts = [self._encoder.vocabulary.decode(row).strip() for row in ids]
      written.append(
        [_scored(p, generated=text) for p, text in zip(template.prompts, texts, strict=True)]
      )
      progress(len(texts))
    return written


def _task_result(
  prepared: PreparedTask, runner: _Runner, store: _Store, meter: _Meter
) -> TaskResult:
  task = prepared.task
  results: dict[str, TemplateResult] = {}
  for template in prepared.templates:
    found = store.read(task.dataset, template)
    if found is not None:
      results[template.name] = found
      meter.add(task.dataset, len(template.prompts), reused=True)
  missing = [template for template in prepared.templates if template.name not in results]
  if missing:

    def progress(prompts: int) -> None:
      meter.add(task.dataset, prompts)

    for group in runner.groups(missing):
      if group[0].metric == RANKED:
        scored = runner.rank(task.dataset, group, progress)
      else:
        scored = runner.write(group, progress)
      for template, examples in zip(group, scored, strict=True):
        results[template.name] = _template_result(template, tuple(examples))
        store.write(task.dataset, template, results[template.name])
  return TaskResult(
    task.dataset,
    prepared.cluster,
    task.held_out,
    task.split,
    task.seed,
    task.shots,
    prepared.indices,
    prepared.unfit,
    tuple(results[template.name] for template in prepared.templates),
  )


def _template_result(
  template: PreparedTemplate, examples: tuple[ScoredExample, ...]
) -> TemplateResult:
  return TemplateResult(
    template.name, template.metric, template.fixed_labels, examples, template.unseen
  )


def _scored(
  prompt: Prompt, scores: OptionScores | None = None, generated: str | None = None
) -> ScoredExample:
  return ScoredExample(
    index=prompt.index,
    inputs=prompt.inputs,
    input_ids=prompt.input_ids,
    golds=prompt.golds,
    options=prompt.options,
    labels=prompt.labels,
    option_ids=prompt.option_ids,
    scores=scores,
    generated=generated,
    style=prompt.style,
  )
