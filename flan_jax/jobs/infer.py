"""`flan-jax infer`: answer the prompts of a file or of standard input, and go on where it was stopped."""

import contextlib
import csv
import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
from tqdm import tqdm

from flan_jax.data.atomic import write_whole
from flan_jax.data.encode import Dropped, Encoder
from flan_jax.errors import ConfigError, FlanJaxError, RecordError
from flan_jax.inference import GREEDY, Engine, News, Sampling, Texts
from flan_jax.jobs.models import ModelSource
from flan_jax.prompting import Rendering, Turn
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh

_WINDOW = 16  # prompts for each slot that are answered before the next ones are looked at


def infer(
  model: ModelSource,
  input_file: str,
  output_file: str,
  *,
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

  Args:
    input_file: a prompt a line; .jsonl: objects with an `inputs`; .csv: with a column `inputs`; "-": standard input,
      a prompt a line.
    output_file: JSON lines. Answers of the same model that are there already are kept, and the rest is added.
    sampling: each prompt has a seed of its own: that of the settings, plus its place.
    stop: texts before which an answer ends.
    batch_size: answers that are written at once.
    format: "plain" or "chat"; None: the format that the model was tuned in, else plain.
  """
  if batch_size < 1:
    raise ConfigError(f"infer.batch_size={batch_size} must be 1 or more.")
  lengths = {"inputs": max_prompt_tokens, "targets": sampling.max_new_tokens}
  encoder = Encoder(model.vocabulary, model.written_in(format), model.model.layout, lengths)
  window = _WINDOW * batch_size
  sizes = {"max_prompt_tokens": max_prompt_tokens, "batch_size": batch_size}
  settings = dataclasses.asdict(sampling) | {"stop": list(stop), **sizes}
  about = json.dumps(
    {"model": model.fingerprint, "format": encoder.format.fingerprint, "settings": settings}
  )
  output = Path(output_file)
  done, prompts = _finished(output, _prompts(input_file), about, window)
  layout = make_layout(model.model, make_mesh(mesh))
  texts = Texts(
    Engine(
      model.model,
      model.load(layout, jax.random.key(0)),
      stop_ids=encoder.stop_ids,
      slots=batch_size,
      length=sum(lengths.values()) if model.model.layout == "decoder" else 1 + lengths["targets"],
      source_length=max_prompt_tokens,
      layout=layout,
    ),
    model.vocabulary,
  )
  refused = 0
  with (
    output.open("a", encoding="utf-8") as file,
    tqdm(
      initial=done, desc="infer", unit="prompt", total=_count(input_file), file=sys.stderr
    ) as bar,
  ):
    for answer in _answers(texts, encoder, prompts, sampling, stop, window):
      refused += "error" in answer
      file.write(json.dumps(answer, ensure_ascii=False) + "\n")
      file.flush()
      bar.update()
  if refused:
    print(
      f"{refused:,} prompts have no answer: each says why in its 'error', in {output}.",
      file=sys.stderr,
    )


class _Prompt(NamedTuple):
  """What stands in one place of the input: a text, or why it is none."""

  place: int
  inputs: str
  error: str | None = None


def _answers(
  texts: Texts,
  encoder: Encoder,
  prompts: Iterator[_Prompt],
  sampling: Sampling,
  stop: Sequence[str],
  window: int,
) -> Iterator[dict[str, Any]]:
  """The lines of the output, in the order of the prompts, window by window.

  Where a prompt lies beside others the last bits of its probability are theirs too. A window that is begun again ends
  with the same bytes.
  """
  while members := list(itertools.islice(prompts, window)):
    lines: dict[int, dict[str, Any]] = {}
    asked: dict[int, tuple[_Prompt, list[str]]] = {}
    for prompt in members:
      own = dataclasses.replace(sampling, seed=(sampling.seed + prompt.place) % 2**32)
      try:
        asked[texts.add(_encoded(encoder, prompt), own, stop)] = prompt, []
      except FlanJaxError as error:
        lines[prompt.place] = {"inputs": prompt.inputs, "error": str(error)}
    for prompt in members:
      while prompt.place not in lines:
        for news in texts.step():
          asker, parts = asked[news.number]
          parts.append(news.text)
          if news.finish:
            lines[asker.place] = _line(asker, "".join(parts), news)
      yield lines.pop(prompt.place)


def _line(prompt: _Prompt, text: str, news: News) -> dict[str, Any]:
  if news.finish == "broken":
    return {"inputs": prompt.inputs, "error": "the model's logits were not finite"}
  return {
    "inputs": prompt.inputs,
    "prediction": text.strip(),
    "finish": news.finish,
    "tokens": len(news.tokens),
    "logprob": round(math.fsum(news.logprobs), 3),
  }


def _encoded(encoder: Encoder, prompt: _Prompt) -> list[int]:
  if prompt.error:
    raise RecordError(prompt.error)
  if not prompt.inputs:
    raise RecordError("the prompt is empty")
  rendering = Rendering((Turn(prompt.inputs, ""),), (), (), "none", "prompt")
  encoded = encoder.encode_prompt(lambda limit: rendering)
  if isinstance(encoded, Dropped):
    raise RecordError(
      f"the prompt is longer than infer.max_prompt_tokens={encoder.lengths['inputs']}"
    )
  return encoded.prompt_ids


def _prompts(input_file: str) -> Iterator[_Prompt]:
  """What stands in each place of the input.

  Raises:
    ConfigError: there is no such file, or nothing in it.
  """
  kind, place = Path(input_file).suffix, -1
  with _opened(input_file) as file:
    lines = map(_text, file)
    rows = _csv(lines, input_file) if kind == ".csv" else lines
    for place, row in enumerate(rows):
      if isinstance(row, RecordError):
        yield _Prompt(place, "", str(row))
      elif kind == ".jsonl":
        yield _json(place, row)
      else:
        yield _Prompt(place, row.strip())
  if place < 0:
    raise ConfigError(f"infer.input_file: {input_file} holds no prompt.")


def _opened(input_file: str) -> contextlib.AbstractContextManager[BinaryIO]:
  if input_file == "-":
    return contextlib.nullcontext(sys.stdin.buffer)
  try:
    return Path(input_file).open("rb")
  except (FileNotFoundError, IsADirectoryError):
    raise ConfigError(f"infer.input_file: there is no file {input_file}.") from None


def _text(line: bytes) -> str | RecordError:
  try:
    return line.decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    return RecordError(f"byte {error.start + 1} of the line is not UTF-8")


def _json(place: int, line: str) -> _Prompt:
  try:
    prompt = json.loads(line)["inputs"].strip()
    prompt.encode()
  except UnicodeEncodeError:
    return _Prompt(place, "", "half of a surrogate pair is no text")
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return _Prompt(place, "", 'the line is no JSON object with a text "inputs"')
  return _Prompt(place, prompt)


def _csv(lines: Iterator[str | RecordError], input_file: str) -> Iterator[str | RecordError]:
  """The column `inputs`. A row may go over several lines, so that one line which is no text spoils them all."""

  def readable() -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
      if isinstance(line, RecordError):
        raise RecordError(f"{input_file}:{number}: {line}.")
      yield line

  table = csv.DictReader(readable())
  if "inputs" not in (table.fieldnames or ()):
    raise ConfigError(f"infer.input_file: {input_file} has no column 'inputs'.")
  for row in table:
    yield RecordError("the row has no column 'inputs'") if row["inputs"] is None else row["inputs"]


def _count(input_file: str) -> int | None:
  """Prompts of a file, for the progress bar; None: nobody knows before the end."""
  if input_file == "-" or Path(input_file).suffix == ".csv":
    return None
  with Path(input_file).open("rb") as file:
    return sum(1 for _ in file)


def _finished(
  output: Path, prompts: Iterator[_Prompt], about: str, window: int
) -> tuple[int, Iterator[_Prompt]]:
  """How many prompts are answered already, and the others; cuts off a window that was not finished."""
  beside = output.with_name(f"{output.name}.about")
  if not output.exists():
    write_whole(beside, [about, "\n"])
    return 0, prompts
  mismatch = ConfigError(
    f"{output} holds other answers than this launch gives (another file, model, format or setting): remove it, or "
    "write to another file."
  )
  done = whole = kept = 0
  begun: list[_Prompt] = []
  try:
    if beside.read_text() != f"{about}\n":
      raise mismatch
    with output.open("rb") as lines:
      for line in itertools.takewhile(lambda line: line.endswith(b"\n"), lines):
        begun.append(next(prompts))
        if json.loads(line)["inputs"] != begun[-1].inputs:
          raise mismatch
        whole += len(line)
        if len(begun) == window:
          done, kept, begun = done + window, whole, []
  except (OSError, ValueError, LookupError, TypeError, StopIteration):
    raise mismatch from None
  following = next(prompts, None)
  if following is None:
    done, kept, begun = done + len(begun), whole, []
  os.truncate(output, kept)
  rest = [following] if following else []
  return done, itertools.chain(begun, rest, prompts)
