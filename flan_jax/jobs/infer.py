"""`flan-jax infer`: answer the prompts of a file or of a mixture, and go on where it was stopped."""

import dataclasses
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from flan_jax.data.atomic import claimed_file, write_whole
from flan_jax.data.encode import Dropped, Encoder
from flan_jax.errors import ConfigError, EvaluationError, FlanJaxError, RecordError
from flan_jax.evaluation import OptionScores, RankRequest, row_lengths_up_to, score_options
from flan_jax.inference import GREEDY, Engine, News, Sampling, Texts
from flan_jax.jobs.mixture_prompts import MixturePrompts, MixtureQuestions
from flan_jax.jobs.models import ModelSource
from flan_jax.jobs.prompt_files import PromptFile, Question
from flan_jax.prompting import Rendering, Turn
from flan_jax.training.partitioning import Layout, MeshConfig, make_layout, make_mesh

_WINDOW = 16  # prompts for each slot that are answered before the next ones are looked at
_RANKED_TOKENS = 128  # of each slot, in one batch of options that are ranked


def infer(
  model: ModelSource,
  output_file: str,
  *,
  input_file: str | None = None,
  prompts: MixturePrompts | None = None,
  sampling: Sampling = GREEDY,
  stop: Sequence[str] = (),
  max_prompt_tokens: int = 1024,
  batch_size: int = 16,
  format: str | None = None,
  mesh: MeshConfig = MeshConfig(),
) -> None:
  """Writes one JSON line for each prompt, in order: inputs, prediction, finish, tokens, logprob.

  `finish` says why the answer ends ("stop", "length"), `tokens` how long it is, and `logprob` how probable the model
  alone finds it. A prompt that cannot be answered gets {"inputs": ..., "error": ...}, and the others go on. Beside the
  answers stands `<output_file>.about`: what model and settings gave them.

  A line of a mixture also says where the prompt is from (task, template, split, index) and its accepted targets.
  Where the template offers options nothing is written: the most probable one is the prediction and `finish` is
  "ranked"; `options` are told with the `logprobs` of each, end of text included, and `logprobs_without_end`.

  Args:
    input_file: a prompt a line; .jsonl: objects with an `inputs`; .csv: with a column `inputs`; "-": standard input,
      a prompt a line.
    prompts: those of a mixture, in place of a file's.
    output_file: JSON lines. Answers of the same model that are there already are kept, and the rest is added.
    sampling: each prompt has a seed of its own: that of the settings, plus its place.
    stop: texts before which an answer ends.
    batch_size: answers that are written at once; options are ranked in batches of 128 times as many tokens.
    format: "plain" or "chat"; None: the format that the model was tuned in, else plain.
  """
  if batch_size < 1:
    raise ConfigError(f"infer.batch_size={batch_size} must be 1 or more.")
  lengths = {"inputs": max_prompt_tokens, "targets": sampling.max_new_tokens}
  encoder = Encoder(model.vocabulary, model.written_in(format), model.model.layout, lengths)
  asked = _asked(input_file, prompts, encoder)
  window = _WINDOW * batch_size
  sizes = {"max_prompt_tokens": max_prompt_tokens, "batch_size": batch_size}
  settings = dataclasses.asdict(sampling) | {"stop": list(stop), **sizes}
  about = {"model": model.fingerprint, "format": encoder.format.fingerprint, "settings": settings}
  about |= {} if asked.fingerprint is None else {"prompts": asked.fingerprint}
  output = Path(output_file)
  if output_file == "-" or (output.exists() and not output.is_file()):
    raise ConfigError(f"infer.output_file: {output_file} is no file, and answers are added to one.")
  refused = 0
  with claimed_file(output):
    done, questions = _finished(output, iter(asked), json.dumps(about), window)
    answering = _Answering(model, encoder, make_layout(model.model, make_mesh(mesh)), batch_size)
    with (
      output.open("a", encoding="utf-8") as file,
      tqdm(initial=done, desc="infer", unit="prompt", total=asked.total, file=sys.stderr) as bar,
    ):
      for answer in _answers(answering, questions, sampling, stop, window):
        refused += "error" in answer
        file.write(json.dumps(answer, ensure_ascii=False) + "\n")
        file.flush()
        bar.total = asked.total
        bar.update()
  if refused:
    print(
      f"{refused:,} prompts have no answer: each says why in its 'error', in {output}.",
      file=sys.stderr,
    )


def _asked(
  input_file: str | None, prompts: MixturePrompts | None, encoder: Encoder
) -> PromptFile | MixtureQuestions:
  if input_file is not None and prompts is None:
    return PromptFile(input_file)
  if prompts is not None and input_file is None:
    return prompts.open(encoder)
  both = "both are" if prompts else "neither is"
  raise ConfigError(
    "prompts come from a file, infer.input_file, or from a mixture, infer.prompts = @mixture_prompts(): "
    f"{both} set. Set one, and the other to None."
  )


class _Answering:
  """A model that writes and ranks. What only one of the two needs is made when it is first asked to."""

  def __init__(self, source: ModelSource, encoder: Encoder, layout: Layout, slots: int):
    self._source, self._encoder, self._layout, self._slots = source, encoder, layout, slots

  @functools.cached_property
  def texts(self) -> Texts:
    """Writes the answers."""
    lengths, model = self._encoder.lengths, self._source.model
    engine = Engine(
      model,
      self._source.load(self._layout, jax.random.key(0)),
      stop_ids=self._encoder.stop_ids,
      start_id=self._source.start_id,
      slots=self._slots,
      length=sum(lengths.values()) if model.layout == "decoder" else 1 + lengths["targets"],
      source_length=lengths["inputs"],
      layout=self._layout,
    )
    return Texts(engine, self._source.vocabulary)

  @functools.cached_property
  def _params(self) -> Any:
    return self._source.load(self._layout, jax.random.key(0))

  def rank(self, questions: Sequence[Question]) -> list[OptionScores | EvaluationError]:
    """What the options of each prompt got, or why they got nothing."""
    try:
      return [*self._scores(questions)]
    except EvaluationError as error:
      return [error] if len(questions) == 1 else [self.rank([each])[0] for each in questions]

  def _scores(self, questions: Sequence[Question]) -> list[OptionScores]:
    return score_options(
      self._source.model,
      self._params,
      [_request(question) for question in questions],
      row_lengths=row_lengths_up_to(max(self._encoder.capacities)),
      batch_tokens=_RANKED_TOKENS * self._slots,
      start_id=self._source.start_id,
      layout=self._layout,
    )

  def add(self, question: Question, sampling: Sampling, stop: Sequence[str]) -> int:
    """Has the answer to a prompt written; the number that `texts` knows it by."""
    own = dataclasses.replace(sampling, seed=(sampling.seed + question.place) % 2**32)
    return self.texts.add(self._encoded(question), own, stop)

  def _encoded(self, question: Question) -> Sequence[int]:
    if question.prompt:
      return question.prompt.input_ids
    if not question.inputs:
      raise RecordError("the prompt is empty")
    rendering = Rendering((Turn(question.inputs, ""),), (), (), "none", "prompt")
    encoded = self._encoder.encode_prompt(lambda limit: rendering)
    if isinstance(encoded, Dropped):
      raise RecordError(
        f"the prompt is longer than infer.max_prompt_tokens={self._encoder.lengths['inputs']}"
      )
    return encoded.prompt_ids


def _request(question: Question) -> RankRequest:
  prompt = question.prompt
  assert prompt is not None
  name = "{task}.{template}, example {index}".format(**question.origin)
  return RankRequest(prompt.input_ids, prompt.option_ids, prompt.ends, name=name)


def _answers(
  answering: _Answering,
  questions: Iterator[Question],
  sampling: Sampling,
  stop: Sequence[str],
  window: int,
) -> Iterator[dict[str, Any]]:
  """The lines of the output, in the order of the prompts, window by window.

  Where a prompt lies beside others the last bits of its probability are theirs too. A window that is begun again ends
  with the same bytes.
  """
  while members := list(itertools.islice(questions, window)):
    lines = {each.place: _line(each, error=each.error) for each in members if each.error}
    lines |= _ranked(answering, members)
    rest = [each for each in members if each.place not in lines]
    texts = (
      answering.texts if rest else None
    )  # an engine that cannot be made is no prompt's mistake
    asked: dict[int, tuple[Question, list[str]]] = {}
    for question in rest:
      try:
        asked[answering.add(question, sampling, stop)] = question, []
      except FlanJaxError as error:
        lines[question.place] = _line(question, error=str(error))
    for question in members:
      while texts and question.place not in lines:
        for news in texts.step():
          asker, parts = asked[news.number]
          parts.append(news.text)
          if news.finish:
            lines[asker.place] = _written(asker, "".join(parts), news)
      yield lines.pop(question.place)


def _ranked(answering: _Answering, members: Sequence[Question]) -> dict[int, dict[str, Any]]:
  """The lines of those prompts that have options, by their places."""
  ranked = [each for each in members if each.prompt and each.prompt.options]
  found = answering.rank(ranked) if ranked else []
  return {
    question.place: _line(question, error=str(scores))
    if isinstance(scores, EvaluationError)
    else _chosen(question, scores)
    for question, scores in zip(ranked, found, strict=True)
  }


def _line(question: Question, **said: Any) -> dict[str, Any]:
  return {"inputs": question.inputs, **question.origin, **said}


def _chosen(question: Question, scores: OptionScores) -> dict[str, Any]:
  best = int(np.argmax(scores.total))
  return _line(
    question,
    prediction=question.origin["options"][best],
    finish="ranked",
    tokens=scores.tokens[best],
    logprob=_rounded(scores.total[best]),
    logprobs=[*map(_rounded, scores.total)],
    logprobs_without_end=[*map(_rounded, scores.without_end)],
  )


def _written(question: Question, text: str, news: News) -> dict[str, Any]:
  if news.finish == "broken":
    return _line(question, error="the model's logits were not finite")
  return _line(
    question,
    prediction=text.strip(),
    finish=news.finish,
    tokens=len(news.tokens),
    logprob=_rounded(math.fsum(news.logprobs)),
  )


def _rounded(logprob: float) -> float:
  return round(logprob, 3)


def _finished(
  output: Path, questions: Iterator[Question], about: str, window: int
) -> tuple[int, Iterator[Question]]:
  """How many prompts are answered already, and the others; cuts off a window that was not finished."""
  beside = output.with_name(f"{output.name}.about")
  if not output.exists():
    write_whole(beside, [about, "\n"])
    return 0, questions
  mismatch = ConfigError(
    f"{output} holds other answers than this launch gives (another file, model, format or setting): remove it, or "
    "write to another file."
  )
  done = whole = kept = 0
  begun: list[Question] = []
  try:
    if beside.read_text() != f"{about}\n":
      raise mismatch
    with output.open("rb") as lines:
      for line in itertools.takewhile(lambda line: line.endswith(b"\n"), lines):
        begun.append(next(questions))
        told = json.loads(line)
        if any(told[key] != value for key, value in _line(begun[-1]).items()):
          raise mismatch
        whole += len(line)
        if len(begun) == window:
          done, kept, begun = done + window, whole, []
  except (OSError, ValueError, LookupError, TypeError, StopIteration):
    raise mismatch from None
  following = next(questions, None)
  if following is None:
    done, kept, begun = done + len(begun), whole, []
  os.truncate(output, kept)
  rest = [following] if following else []
  return done, itertools.chain(begun, rest, questions)
