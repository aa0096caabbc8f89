"""Scores a checkpoint on prepared tasks, and goes on where it was stopped."""

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flan_jax.data.atomic import write_whole
from flan_jax.data.batches import START_ID
from flan_jax.data.encode import Encoder
from flan_jax.errors import EvaluationError, UnknownName
from flan_jax.evaluation.metrics import log_mean_shares
from flan_jax.evaluation.option_scores import CONVENTIONS, OptionScores, RankRequest
from flan_jax.evaluation.rank_classification import row_lengths_up_to, score_options
from flan_jax.evaluation.results import Evaluation, ScoredExample, TaskResult, TemplateResult
from flan_jax.evaluation.tasks import PreparedTask, PreparedTemplate, Prompt
from flan_jax.inference import Engine, Sampling
from flan_jax.models import LanguageModel, Params
from flan_jax.prompting import RANKED_METRICS
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
  prompts, the format and the scorer; the same call again reads them. All conventions but pmi and
  contextual are computed from the same sums, so another `scoring` needs no new run.

  Args:
    tasks: prepared with the same `encoder`.
    checkpoint: what a person calls it.
    fingerprint: of the checkpoint's parameters; two checkpoints never share one.
    format_name: what a person calls the encoder's format.
    scoring: the primary convention, one of `option_scores.CONVENTIONS`; "contextual" needs
      tasks that were prepared with `content_free`.
    out_dir: None keeps nothing.
    resume: False scores everything again.
    row_lengths, batch_tokens: see `score_options`; row lengths default to `row_lengths_up_to` what the
      encoder's rows need.
    layout: the mesh that the parameters lie on.

  Raises:
    EvaluationError: a prompt that cannot be scored, or scores that are not finite.
    StorageError: the disk refused.
  """
  if scoring not in CONVENTIONS:
    raise UnknownName("scoring convention", scoring, CONVENTIONS)
  if scoring == "contextual":
    _check_content_free(tasks)
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
      examples = tuple(ScoredExample.from_json(_finite(line)) for line in lines)
      if [e.index for e in examples] != [p.index for p in template.prompts]:
        raise ValueError("other examples than the template's")
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


def _finite(line: str) -> Any:
  """A line of JSON in which NaN, which is none, is a mistake."""

  def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")

  return json.loads(line, parse_constant=refuse)


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
      _request(prompt, f"{task}.{template.name}, example {prompt.index}")
      for template in templates
      for prompt in template.prompts
    ]
    found = self._score(requests, progress)
    if self._unasked:
      nothing = (self._encoder.nothing_asked,)
      again = self._score([replace(r, prompt_ids=nothing) for r in requests], None)
      found = [replace(s, unasked=u.without_end) for s, u in zip(found, again, strict=True)]
    shares = self._content_free_shares(task, templates)
    found = [replace(s, content_free=c) for s, c in zip(found, shares, strict=True)]
    scores = iter(found)
    return [[_scored(p, scores=next(scores)) for p in t.prompts] for t in templates]

  def _content_free_shares(
    self, task: str, templates: Sequence[PreparedTemplate]
  ) -> list[tuple[float, ...]]:
    """Of each prompt what `OptionScores.content_free` holds. Many examples have the same prompts
    without content, each of which is scored once.
    """
    prompts = [prompt for template in templates for prompt in template.prompts]
    requests = [
      [_request(free, f"{task} without content") for free in prompt.content_free]
      for prompt in prompts
    ]
    different = list(dict.fromkeys(request for group in requests for request in group))
    if not different:
      return [()] * len(prompts)
    totals = {
      request: score.total
      for request, score in zip(different, self._score(different, None), strict=True)
    }
    return [
      tuple(log_mean_shares(np.array([totals[request] for request in group])).tolist())
      if group
      else ()
      for group in requests
    ]

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
    self,
    task: str,
    templates: Sequence[PreparedTemplate],
    progress: Callable[[int], object],
  ) -> list[list[ScoredExample]]:
    """Greedy decoding of at most as many tokens as the encoder allows a target."""
    written, longest = [], Sampling(self._encoder.lengths["targets"])
    for template in templates:
      found = self._engine.run([prompt.input_ids for prompt in template.prompts], longest)
      for prompt, text in zip(template.prompts, found, strict=True):
        if text.finish == "broken":
          raise EvaluationError(
            f"{task}.{template.name}, example {prompt.index}: the model's logits are not finite. Its parameters or "
            "its input are broken."
          )
      texts = [self._encoder.vocabulary.decode(text.tokens).strip() for text in found]
      written.append(
        [_scored(p, generated=text) for p, text in zip(template.prompts, texts, strict=True)]
      )
      progress(len(texts))
    return written

  @functools.cached_property
  def _engine(self) -> Engine:
    """For the lengths of any prompt and target, so that all templates are written by what is compiled once."""
    inputs, targets = self._encoder.lengths["inputs"], self._encoder.lengths["targets"]
    return Engine(
      self._model,
      self._params,
      stop_ids=self._encoder.stop_ids,
      start_id=START_ID,
      length=inputs + targets if self._model.layout == "decoder" else 1 + targets,
      source_length=inputs,
      layout=self._layout,
    )


def _check_content_free(tasks: Sequence[PreparedTask]) -> None:
  for task in tasks:
    for template in task.templates:
      if any(prompt.options and not prompt.content_free for prompt in template.prompts):
        raise EvaluationError(
          f"{task.task.dataset}.{template.name} was prepared without the prompts that the scoring "
          "convention contextual needs; prepare_task makes them with content_free=True."
        )


def _request(prompt: Prompt, name: str) -> RankRequest:
  lengths = tuple(len(option.encode()) for option in prompt.options)
  return RankRequest(prompt.input_ids, prompt.option_ids, prompt.ends, lengths, name)


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
      if group[0].metrics[0] in RANKED_METRICS:
        scored = runner.rank(task.dataset, group, progress)
      else:
        scored = runner.write(task.dataset, group, progress)
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
    task.trained_cluster,
    task.overlap,
  )


def _template_result(
  template: PreparedTemplate, examples: tuple[ScoredExample, ...]
) -> TemplateResult:
  return TemplateResult(
    template.name,
    template.metrics[0],
    template.fixed_labels,
    examples,
    template.unseen,
    template.metrics[1:],
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
