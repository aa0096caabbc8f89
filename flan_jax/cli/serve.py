"""`flan-jax serve`: models behind HTTP."""

import argparse
import logging

from flan_jax.jobs.assistants import open_assistant
from flan_jax.jobs.serve import Limits, serve
from flan_jax.training.partitioning import MeshConfig


def show_serve(options: argparse.Namespace) -> None:
  """Opens the models, compiles what requests may need, and answers until it is interrupted."""
  logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
  mesh = MeshConfig.of(options.mesh, "--mesh")
  assistants = []
  for place in options.checkpoints:
    name, _, path = place.rpartition("=")
    assistant = open_assistant(
      path, name=name or None, slots=options.slots, length=options.length, mesh=mesh
    )
    print(f"{assistant.name}: compiling", flush=True)
    assistant.texts.engine.warm_up()
    assistants.append(assistant)
  limits = Limits(options.max_requests, options.timeout, options.max_tokens)
  serve(assistants, host=options.host, port=options.port, limits=limits)
