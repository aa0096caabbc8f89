"""`flan-jax serve`: models behind HTTP."""

import argparse
import logging
from pathlib import Path

from flan_jax.cli.named_places import named_place
from flan_jax.jobs.assistants import open_assistant
from flan_jax.jobs.serve import Limits, check_names, listening, serve
from flan_jax.training.partitioning import MeshConfig


def show_serve(options: argparse.Namespace) -> None:
  """Opens the models, compiles what requests may need, and answers until it is interrupted."""
  logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
  mesh = MeshConfig.of(options.mesh, "--mesh")
  named = [named_place(word) for word in options.checkpoints]
  check_names([name or Path(path).name for name, path in named])
  listener = listening(options.host, options.port)  # before anything that takes its time
  assistants = []
  for name, path in named:
    assistant = open_assistant(
      path, name=name, slots=options.slots, length=options.length, mesh=mesh
    )
    print(f"{assistant.name}: compiling", flush=True)
    assistant.texts.engine.warm_up()
    assistants.append(assistant)
  limits = Limits(options.max_requests, options.timeout, options.max_tokens)
  serve(assistants, listener, limits=limits)
