"""`flan-jax infer`: answer the prompts of a file, greedily, and go on where it was stopped."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from flan_jax.data.atomic import write_whole
from flan_jax.data.encode import Dropped, Encoder
from flan_jax.errors import ConfigError, RecordError
from flan_jax.inference import generate
from flan_jax.jobs.models import ModelSource
from flan_jax.prompting import Rendering, Turn
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh


def infer(
  model: ModelSource,
  input_file: str,
  output_file: str,
  *,
  max_new_tokens: int = 64,
  max_prompt_tokens: int = 1024,
  batch_size: int = 8,
  format: str | None = None,
  mesh: MeshConfig = MeshConfig(),
) -> None:
  """Writes one JSON line for each prompt, in order: {"inputs": ..., "prediction": ...}.

  Beside the answers stands `<output_file>.about`: what model and settings gave them.

  Args:
    input_file: a prompt a line; a file that ends in .jsonl holds objects with an `inputs` field.
    output_file: JSON lines. Answers of the same model that are there already are kept, and the rest
      is added.
    format: "plain" or "chat"; None: the format that the model was tuned in, else plain.
  """
  if batch_size < 1:
    raise ConfigError(f"infer.batch_size={batch_size} must be 1 or more.")
  prompts = list(_prompts(Path(input_file)))
  lengths = {"inputs": max_prompt_tokens, "targets": max_new_tokens}
  encoder = Encoder(model.vocabulary, model.written_in(format), model.model.layout, lengths)
  ids = [_encoded(encoder, prompt, input_file, i) for i, prompt in enumerate(prompts, start=1)]
  layout = make_layout(model.model, make_mesh(mesh))
  output = Path(output_file)
  about = {
    "model": model.fingerprint,
    "format": encoder.format.fingerprint,
    "max_new_tokens": max_new_tokens,
  }
  done = _finished(output, prompts, about)
  params = model.load(layout, jax.random.key(0))
  with (
    output.open("a", encoding="utf-8") as file,
    tqdm(total=len(prompts), initial=done, desc="infer", unit="prompt", file=sys.stderr) as bar,
  ):
    for start in range(done, len(prompts), batch_size):
      chunk = ids[start : start + batch_size]
      answers = generate(
        model.model, params, chunk, max_new_tokens=max_new_tokens, eos_ids=encoder.stop_ids
      )
      for prompt, answer in zip(prompts[start : start + batch_size], answers, strict=True):
        text = model.vocabulary.decode(answer).strip()
        file.write(json.dumps({"inputs": prompt, "prediction": text}, ensure_ascii=False) + "\n")
      file.flush()
      bar.update(len(chunk))


def _prompts(path: Path) -> Iterator[str]:
  try:
    text = path.read_text(encoding="utf-8-sig")
  except (FileNotFoundError, IsADirectoryError):
    raise ConfigError(f"infer.input_file: there is no file {path}.") from None
  except UnicodeDecodeError as error:
    raise RecordError(f"{path}: byte {error.start + 1} is not UTF-8.") from None
  lines = text.removesuffix("\n").split("\n")
  if not text.strip():
    raise ConfigError(f"infer.input_file: {path} holds no prompt.")
  for number, line in enumerate(lines, start=1):
    prompt = line.strip()
    if path.suffix == ".jsonl":
      try:
        prompt = json.loads(line)["inputs"].strip()
      except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecordError(
          f'{path}:{number}: expected a JSON object with a text "inputs".'
        ) from None
    if not prompt:
      raise RecordError(f"{path}:{number}: the prompt is empty.")
    try:
      prompt.encode()
    except UnicodeEncodeError:
      raise RecordError(f"{path}:{number}: half of a surrogate pair is no text.") from None
    yield prompt


def _encoded(encoder: Encoder, prompt: str, path: str, number: int) -> list[int]:
  rendering = Rendering((Turn(prompt, ""),), (), (), "none", "prompt")
  encoded = encoder.encode_prompt(lambda limit: rendering)
  if isinstance(encoded, Dropped):
    raise RecordError(
      f"{path}:{number}: the prompt is longer than max_prompt_tokens={encoder.lengths['inputs']}."
    )
  return encoded.prompt_ids


def _finished(output: Path, prompts: list[str], about: Mapping[str, Any]) -> int:
  """How many of the first prompts are answered already; cuts off a line that was not finished."""
  beside = output.with_name(f"{output.name}.about")
  if not output.exists():
    write_whole(beside, [json.dumps(about), "\n"])
    return 0
  mismatch = ConfigError(
    f"{output} holds other answers than this launch gives (another file, model, format or "
    "max_new_tokens): remove it, or write to another file."
  )
  try:
    same = json.loads(beside.read_text()) == about
    lines = output.read_text(encoding="utf-8").split("\n")[:-1]
    answered = [json.loads(line)["inputs"] for line in lines]
  except (OSError, ValueError, LookupError, TypeError):
    raise mismatch from None
  if not same or answered != prompts[: len(answered)]:
    raise mismatch
  write_whole(output, (line + "\n" for line in lines))
  return len(lines)
