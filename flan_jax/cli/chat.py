"""`flan-jax chat`: talk to a model in the terminal."""

import argparse
import io
import sys
from collections.abc import Iterator

from flan_jax.errors import ConfigError
from flan_jax.inference import Sampling
from flan_jax.jobs.assistants import Assistant, open_assistant
from flan_jax.vocabularies.formats import Message

_HELP = "/new begins anew, /quit or Ctrl-D ends, Ctrl-C cuts an answer short"


def show_chat(options: argparse.Namespace) -> None:
  """Answers what is typed, message by message, until the input ends."""
  assistant = open_assistant(options.checkpoint, length=options.length)
  sampling = Sampling(
    options.max_tokens,
    temperature=options.temperature,
    top_p=options.top_p,
    seed=options.seed,
    repetition_penalty=options.repetition_penalty,
  )
  system: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
  told: list[Message] = list(system)
  print(f"{assistant.source.origin}: {_HELP}", file=sys.stderr)
  for line in _lines():
    if line == "/new":
      told = list(system)
      continue
    if line == "/quit":
      return
    if not line:
      continue
    asked: list[Message] = [*told, {"role": "user", "content": line}]
    try:
      asked = assistant.shortened(asked, sampling.max_new_tokens)
      told = [*asked, {"role": "assistant", "content": _answer(assistant, asked, sampling)}]
    except ConfigError as error:  # too long, say: the talk goes on without it
      print(error, file=sys.stderr)


def _lines() -> Iterator[str]:
  if sys.stdin.isatty():
    import readline  # noqa: F401  (history and editing of what is typed)
  if isinstance(sys.stdin, io.TextIOWrapper):
    sys.stdin.reconfigure(errors="surrogateescape")
  while True:
    try:
      line = input("> " if sys.stdin.isatty() else "").strip()
      line.encode()
    except EOFError:
      return
    except UnicodeEncodeError:
      print("The line is not UTF-8, and is left out.", file=sys.stderr)
    except KeyboardInterrupt:
      print(f"\n{_HELP}", file=sys.stderr)
    else:
      yield line


def _answer(assistant: Assistant, told: list[Message], sampling: Sampling) -> str:
  number = assistant.texts.add(assistant.hear(told), sampling)
  parts = []
  try:
    while assistant.texts.busy:
      for news in assistant.texts.step():
        parts.append(news.text)
        print(news.text, end="", flush=True)
        if news.finish == "broken":
          print("(the model's logits are not finite)", file=sys.stderr)
  except KeyboardInterrupt:
    assistant.texts.cancel(number)
  print(flush=True)
  return "".join(parts)
