"""`flan-jax lm-eval`: EleutherAI's harness, by its own command line, with a model of ours."""

import argparse
import sys

from flan_jax.errors import ConfigError
from flan_jax.jobs.lm_eval_model import NAME, register

_COMMANDS = ("run", "ls", "validate")


def show_lm_eval(options: argparse.Namespace) -> None:
  """Hands the words of the command to the harness, which knows the model `flan_jax`.

  Raises:
    ConfigError: lm_eval is not installed, or a word says what is settled here.
  """
  register()
  from lm_eval.__main__ import cli_evaluate

  words, before = list(options.words), sys.argv
  if words and words[0] not in _COMMANDS:
    words.insert(0, "run")
  if words[:1] == ["run"] and not {"-h", "--help"} & set(words):
    words = _of_ours(words)
  sys.argv = ["flan-jax lm-eval", *words]
  try:
    cli_evaluate()
  finally:
    sys.argv = before


def _of_ours(words: list[str]) -> list[str]:
  flags = {word.partition("=")[0] for word in words}
  if flags & {"--model", "-M"}:
    raise ConfigError(
      f"flan-jax lm-eval runs the model {NAME} alone: leave out --model, and say --model_args path=FOLDER."
    )
  if "--device" in flags:
    raise ConfigError(
      "flan-jax lm-eval computes on the devices that JAX finds: leave out --device, and choose with "
      "JAX_PLATFORMS=cpu or --model_args mesh=tensor=4."
    )
  batch = [] if flags & {"--batch_size", "-b", "--config", "-C"} else ["--batch_size", "auto"]
  return [*words, "--model", NAME, *batch]
