"""`flan-jax <command>`: thin, and quick to answer, since every command imports only what it needs."""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from flan_jax.errors import ConfigError, FlanJaxError
from flan_jax.jobs import supervision, user_modules

JOBS = {
  "train": "tune a model on a mixture; the same command again goes on where it was",
  "evaluate": "judge a checkpoint zero-shot on the templates of held-out tasks",
  "follow": "judge the checkpoints of a run as they come, beside it",
  "prepare": "render, tokenise and pack a mixture into a store, ahead of training",
  "infer": "answer the prompts of a file or a mixture",
  "convert": "write a model as a folder that transformers and vLLM open",
  "train_vocabulary": "make a SentencePiece vocabulary of what a mixture trains on",
  "schedule": "show the learning rates of recipes side by side; each gin file is one",
}

_CHECKPOINT = "the folder of a run, or a published model: a folder, a GGUF file, a package"

_REPORT = "where `flan-jax evaluate`, or a run with an evaluation, left its report"

_HOMES = {
  "mixtures": "mixtures",
  "contamination": "contamination",
  "templates": "inspect",
  "rows": "inspect",
  "checkpoints": "inspect",
  "compare": "compare",
  "explain": "compare",
  "plan": "plan",
  "chat": "chat",
  "serve": "serve",
  "lm-eval": "lm_eval",
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
    if options.command in (*JOBS, "chat", "serve", "lm-eval"):
      from flan_jax.jobs.compiled import keep_compiled

      keep_compiled()
    if options.command in JOBS:
      from flan_jax.jobs.clusters import find_place
      from flan_jax.jobs.launch import launch
      from flan_jax.jobs.preflight import check_launch
      from flan_jax.jobs.processes import Timeouts, joined

      importlib.import_module("flan_jax.jobs.configurables")
      if options.command == "schedule":
        from flan_jax.jobs.schedule import compare_schedules

        print(compare_schedules(options.gin_file, gin_bindings, options.out))
        return 0
      if options.local_processes and not supervision.supervised():
        raise ConfigError("--local_processes is for the command `flan-jax`, and for Linux.")
      timeouts = Timeouts(*(getattr(options, f"{name}_timeout") for name in Timeouts._fields))
      place = find_place(options.coordinator, options.processes, options.process, timeouts[0])
      with _ended_by_sigterm(options.command), joined(place, timeouts):
        check_launch(options.gin_file, gin_bindings, timeouts.initialization)
        launch(options.command, options.gin_file, gin_bindings)
    else:
      room = importlib.import_module(f"flan_jax.cli.{_HOMES[options.command]}")
      getattr(room, f"show_{options.command.replace('-', '_')}")(options)
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
    goes_on = "; the same command goes on from what is saved" if options.command in JOBS else ""
    print(f"flan-jax: interrupted{goes_on}", file=sys.stderr)
    return 130
  return 0


def _ended_by_sigterm(command: str) -> contextlib.AbstractContextManager:
  """A launch of training may be stopped at any moment, and that is no failure."""
  if command != "train":
    return contextlib.nullcontext()
  from flan_jax.training.termination import ended_by_sigterm

  return ended_by_sigterm()


def run() -> None:
  """`flan-jax` itself: `main` in a child of this process, which says how it died, and the end of both."""
  options, _ = _parse(sys.argv[1:])
  if options.command in JOBS and options.command != "schedule" and supervision.possible():
    environments = supervision.local_processes(options.local_processes)
    ended = supervision.supervise(environments, options.heartbeat_timeout)
    if ended is not None:
      # A launch of training that has not come to its own handler yet has nothing to save.
      os._exit(0 if options.command == "train" and ended == 128 + signal.SIGTERM else ended)
  try:
    status = main()
  except Exception:
    traceback.print_exc()
    status = 1
  if status == 0:
    sys.exit(0)
  # Threads that a failed write leaves behind would print what they stumble over on the way out, and processes of a
  # run would wait for each other.
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
  if arguments[:1] == ["lm-eval"]:
    # The harness has a parser of its own.
    options = _parser().parse_args(arguments[:1])
    options.words = arguments[1:]
    return options, []
  gin_bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
  rest = [a for a in arguments if not a.startswith("--gin.")]
  options = _parser().parse_args(rest)
  if getattr(options, "debug", False):
    gin_bindings.append("train.debug=True")
  if getattr(options, "local_processes", None) is not None:
    own = (options.coordinator, options.processes, options.process)
    if options.local_processes < 1 or own != (None, None, None):
      _parser().error(
        "--local_processes N starts all N of a run: 1 or more, and none on other hosts"
      )
  if options.command == "plan":
    options.gin_bindings = gin_bindings
  elif gin_bindings and options.command not in JOBS:
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
    if name != "schedule":
      _add_processes(job)
    if name == "schedule":
      job.add_argument("--out", metavar="PATH.png", help="draw the curves into this file as well")
    if name == "train":
      job.add_argument(
        "--debug",
        action="store_true",
        help="stop at the first step that is not finite, and say in which layer and parameter that began",
      )
    job.epilog = "--gin.NAME=VALUE sets a macro or a binding and wins over the files."
  _add_plan(commands)
  _add_mixtures(commands)
  templates = _command(commands, "templates", "show each template of a dataset on real examples")
  templates.add_argument("dataset", nargs="?")
  instead = templates.add_mutually_exclusive_group()
  instead.add_argument("--template", help="only this one")
  instead.add_argument(
    "--lint", action="store_true", help="say what is wrong with the texts, of all datasets or one"
  )
  instead.add_argument(
    "--html", metavar="PATH", help="write a web page of all datasets, or one: a file or its folder"
  )
  templates.add_argument("--examples", type=_count, default=1, help="examples per template")
  templates.add_argument("--seed", type=int, default=0)
  overlaps = _command(
    commands, "contamination", "find what a mixture trains on in what is evaluated"
  )
  overlaps.add_argument("--train", required=True, metavar="MIXTURE")
  overlaps.add_argument("--eval", metavar="MIXTURE", help="without, what the first one holds out")
  overlaps.add_argument("--examples", type=_count, default=3, help="shown of each pair of datasets")
  overlaps.add_argument(
    "--few_shot", type=_count, default=0, metavar="N", help="look at prompts of N exemplars as well"
  )
  overlaps.add_argument("--json", action="store_true")
  overlaps.add_argument("--out", metavar="FILE", help="write everything into this file, as JSON")
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
  _add_reports(commands)
  _add_talks(commands)
  return parser


def _add_reports(commands) -> None:
  compared = _command(
    commands,
    "compare",
    "set the reports of several checkpoints side by side, with paired differences",
  )
  compared.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER", help=_REPORT)
  explained = _command(
    commands, "explain", "split what tuning changed: prompt format, label prior, discrimination"
  )
  explained.add_argument("report", metavar="FOLDER", help=_REPORT)
  explained.add_argument(
    "after", nargs="?", metavar="FOLDER", help="the same of a later checkpoint"
  )
  explained.add_argument(
    "--native", metavar="FOLDER", help="the same of the first checkpoint in its own chat format"
  )
  for command in (compared, explained):
    command.add_argument("--json", action="store_true")
    command.add_argument("--out", metavar="PATH.html", help="write a web page as well")


def _add_talks(commands) -> None:
  chat = _command(commands, "chat", "talk to a model in the terminal")
  chat.add_argument("checkpoint", help=_CHECKPOINT)
  chat.add_argument("--system", metavar="TEXT", help="what the model is told before all")
  chat.add_argument("--max_tokens", type=_count, default=512, help="of an answer")
  chat.add_argument("--temperature", type=float, default=0.7, help="0: the most probable words")
  chat.add_argument("--top_p", type=float, default=1.0)
  chat.add_argument("--repetition_penalty", type=float, default=1.0)
  chat.add_argument("--seed", type=_count, default=0)
  chat.add_argument(
    "--length",
    type=_count,
    default=2048,
    help="tokens that the talk may have before its oldest turns go",
  )
  serve = _command(commands, "serve", "answer over HTTP, as OpenAI's API does, and from a web page")
  serve.add_argument(
    "checkpoints",
    nargs="+",
    metavar="[NAME=]CHECKPOINT",
    help=f"{_CHECKPOINT}; several stand side by side",
  )
  serve.add_argument("--host", default="127.0.0.1", help="this machine alone, unless given")
  serve.add_argument("--port", type=_count, default=8000)
  serve.add_argument("--slots", type=_count, default=16, help="answers that are written at once")
  serve.add_argument(
    "--length", type=_count, default=2048, help="tokens of a prompt with its answer"
  )
  serve.add_argument("--max_tokens", type=_count, default=256, help="where a request does not say")
  serve.add_argument(
    "--max_requests", type=_count, default=1024, help="answers that may wait; 429 beyond"
  )
  serve.add_argument(
    "--timeout", type=float, default=600.0, metavar="S", help="of a request; 600 s"
  )
  serve.add_argument("--mesh", default="", metavar="AXIS=N,...", help="such as tensor=4")
  _command(
    commands,
    "lm-eval",
    "judge a model by EleutherAI's harness; --model_args path=CHECKPOINT, and what else its own lm-eval takes",
  )


def _add_processes(job: argparse.ArgumentParser) -> None:
  group = job.add_argument_group(
    "several processes", "docs/launch/ tells which of these a cluster says of itself"
  )
  group.add_argument("--local_processes", type=_count, metavar="N", help="start N on this machine")
  group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
  group.add_argument("--processes", type=_count, metavar="N", help="of the run, on all hosts")
  group.add_argument("--process", type=_count, metavar="I", help="this one, from 0")
  for name, seconds, text in (
    ("initialization", 300, "until all have arrived"),
    ("heartbeat", 100, "without a sign of life until one counts as lost"),
    ("shutdown", 300, "that one which is done waits for the others"),
  ):
    group.add_argument(
      f"--{name}_timeout", type=_seconds, default=seconds, metavar="S", help=f"{text}; {seconds} s"
    )


def _add_plan(commands) -> None:
  plan = _command(
    commands,
    "plan",
    "tell memory, arithmetic and traffic of a training step on devices that need not be there",
  )
  plan.add_argument(
    "--gin_file", action="append", default=[], metavar="FILE", help="as of `flan-jax train`"
  )
  plan.add_argument(
    "--devices",
    default="1",
    metavar="KIND-N",
    help="v4-8, v5e-64, v5p-8, v6e-16, a100-40-8, a100-80-8, h100-8, h200-8; a number alone: CPUs",
  )
  plan.add_argument(
    "--utilisation",
    type=float,
    default=0.4,
    help="part of the devices' peak that a step reaches, for its time; 0.4 unless given",
  )
  plan.add_argument(
    "--example_tokens",
    type=_count,
    metavar="N",
    help="of a packed example on average, which attention stays within; without, a row",
  )
  plan.add_argument(
    "--examples",
    type=_count,
    metavar="N",
    help="of one pass over the data, as `flan-jax mixtures NAME` tells; for the steps of a pass",
  )
  plan.add_argument(
    "--compile", action="store_true", help="ask the compiler as well, which takes minutes"
  )
  plan.add_argument("--json", action="store_true")
  plan.epilog = "--gin.NAME=VALUE sets a macro or a binding and wins over the files."


def _add_mixtures(commands) -> None:
  mixtures = _command(
    commands, "mixtures", "print a mixture dataset by dataset; without a name, list all"
  )
  mixtures.usage = "flan-jax mixtures [options] [NAME | diff A B]"
  mixtures.add_argument(
    "words",
    nargs="*",
    metavar="NAME",
    help="a mixture; or `diff` and two of them, each a name or a file that --lock wrote",
  )
  mixtures.add_argument(
    "--draws", type=_count, help="examples drawn, for the passes over the data; 10,000 unless given"
  )
  mixtures.add_argument(
    "--strict",
    action="store_const",
    const=True,
    help="a dataset that cannot be had is an error",
  )
  mixtures.add_argument(
    "--vocabulary",
    metavar="PLACE",
    help="tell lengths in its tokens: a SentencePiece model, a tokenizer.json, the folder of a model "
    "or a run, a package, or `bytes`",
  )
  mixtures.add_argument(
    "--lengths",
    type=_lengths,
    metavar="inputs=I,targets=T",
    help="tokens of a row, as in data.lengths; 1024 and 256 unless given",
  )
  mixtures.add_argument(
    "--layout",
    choices=("encoder_decoder", "decoder"),
    help="of a row; encoder_decoder unless given",
  )
  mixtures.add_argument(
    "--lock", metavar="FILE", help="write all that decides the mixture, to cite"
  )
  mixtures.add_argument("--json", action="store_const", const=True)


def _lengths(text: str) -> dict[str, int]:
  try:
    pairs = [pair.split("=") for pair in text.split(",")]
    return {name.strip(): int(length) for name, length in pairs}
  except ValueError:
    raise argparse.ArgumentTypeError(f"{text!r} is not like inputs=1024,targets=256") from None


def _seconds(text: str) -> int:
  if _count(text) == 0:
    raise argparse.ArgumentTypeError("0 seconds are no time to wait")
  return int(text)


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
