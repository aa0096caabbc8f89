"""`flan-jax <command>`: thin, and quick to answer, since every command imports only what it needs."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from flan_jax.errors import FlanJaxError
from flan_jax.jobs import user_modules

JOBS = {
  "train": "tune a model on a mixture; the same command again goes on where it was",
  "evaluate": "judge a checkpoint zero-shot on the templates of held-out tasks",
  "prepare": "render, tokenise and pack a mixture into a store, ahead of training",
  "infer": "answer the prompts of a file",
  "convert": "write a model as a folder that transformers and vLLM open",
  "train_vocabulary": "make a SentencePiece vocabulary of what a mixture trains on",
  "schedule": "show the learning rates of recipes side by side; each gin file is one",
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    arguments: the words after `flan-jax`; those of this process when absent.

  Returns:
    The exit status: 0; 2 after a mistake that the user can mend, told in one message; 130 after
    Ctrl-C.
  """
  options, gin_bindings = _parse(list(sys.argv[1:] if arguments is None else arguments))
  # What Orbax logs of a failed write, traceback and all, is raised here as one sentence.
  for library in ("absl", "asyncio"):
    logging.getLogger(library).setLevel(logging.CRITICAL)
  try:
    if options.templates:
      from flan_jax.data.library import register_templates

      for place in options.templates:
        register_templates(place)
    for module in options.module:
      if options.command in JOBS:
        user_modules.register(module)
      else:
        user_modules.import_module(module)
    if options.command in JOBS:
      from flan_jax.jobs.launch import launch
      from flan_jax.jobs.processes import join

      importlib.import_module("flan_jax.jobs.configurables")
      if options.command == "schedule":
        from flan_jax.jobs.schedule import compare_schedules

        print(compare_schedules(options.gin_file, gin_bindings, options.out))
        return 0
      join()
      launch(options.command, options.gin_file, gin_bindings)
    else:
      from flan_jax.cli import inspect

      getattr(inspect, f"show_{options.command}")(options)
  except FlanJaxError as error:
    # Gin adds to every message through which of its configurables it came.
    message = str(error).partition("\n  In call to configurable")[0]
    print(f"flan-jax: {message}", file=sys.stderr)
    return 2
  except BrokenPipeError:  # `flan-jax templates x | head`
    sys.stderr.close()
  except OSError as error:
    while error.filename is None and isinstance(error.__context__, OSError):
      error = error.__context__  # Gin raises a copy that has lost its attributes
    if error.filename is None:
      raise
    print(
      f"flan-jax: {error.filename}: {error.strerror}. Name another place, or make this one usable.",
      file=sys.stderr,
    )
    return 2
  except KeyboardInterrupt:
    print("flan-jax: interrupted; the same command goes on from what is saved", file=sys.stderr)
    return 130
  return 0


def run() -> None:
  """`flan-jax` itself: `main`, and the end of this process."""
  status = main()
  if status == 0:
    sys.exit(0)
  # Threads that a failed write leaves behind would print what they stumble over on the way out.
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
  gin_bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
  rest = [a for a in arguments if not a.startswith("--gin.")]
  options = _parser().parse_args(rest)
  if gin_bindings and options.command not in JOBS:
    _parser().error(f"{options.command} takes no --gin.{gin_bindings[0]}")
  return options, gin_bindings


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="flan-jax", description="Instruction tuning of language models in JAX.", allow_abbrev=False
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, text in JOBS.items():
    job = _command(commands, name, text)
    job.add_argument(
      "--gin_file",
      action="append",
      default=[],
      metavar="FILE",
      help="a gin file; may be repeated, "
      + ("each is shown" if name == "schedule" else "the last one wins"),
    )
    if name == "schedule":
      job.add_argument("--out", metavar="PATH.png", help="draw the curves into this file as well")
    job.epilog = "--gin.NAME=VALUE sets a macro or a binding and wins over the files."
  mixtures = _command(
    commands, "mixtures", "print a mixture task by task; without a name, list all"
  )
  mixtures.add_argument("name", nargs="?")
  mixtures.add_argument(
    "--draws", type=_count, default=10_000, help="examples drawn, for the passes over the data"
  )
  mixtures.add_argument(
    "--strict", action="store_true", help="a dataset that cannot be had is an error"
  )
  templates = _command(commands, "templates", "show each template of a dataset on real examples")
  templates.add_argument("dataset", nargs="?")
  templates.add_argument("--template", help="only this one")
  templates.add_argument("--examples", type=_count, default=1, help="examples per template")
  templates.add_argument("--seed", type=int, default=0)
  rows = _command(
    commands, "rows", "show rows of a prepared store: where each example comes from, and its text"
  )
  rows.add_argument("store", help="a folder, or a URL")
  rows.add_argument("--row", type=_count, action="append", help="this row; may be repeated")
  rows.add_argument("--dataset", help="examples of this dataset only")
  rows.add_argument("--index", type=_count, help="examples of this record only")
  rows.add_argument("--limit", type=_count, default=3, help="so many rows at most")
  rows.add_argument("--json", action="store_true", help="an object a line")
  checkpoints = _command(
    commands, "checkpoints", "list the checkpoints of a run with a digest of their arrays"
  )
  checkpoints.add_argument("directory")
  checkpoints.add_argument("--json", action="store_true")
  return parser


def _count(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
  return int(text)


def _command(commands, name: str, text: str) -> argparse.ArgumentParser:
  parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
  parser.add_argument(
    "--module",
    action="append",
    default=[],
    metavar="NAME",
    help="a module of yours that registers datasets, mixtures or SeqIO tasks",
  )
  parser.add_argument(
    "--templates",
    action="append",
    default=[],
    metavar="PATH",
    help="a dataset file of yours, or a folder of them; may be repeated",
  )
  return parser


if __name__ == "__main__":
  run()
