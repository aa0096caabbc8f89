"""Whether the processes of a run are about to do the same, asked before anything is compiled."""

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from flan_jax.errors import ConfigError
from flan_jax.jobs.gin_files import read_statements
from flan_jax.jobs.processes import NAMES, AgreedError, is_first
from flan_jax.training import peers

_SHOWN = 20


def check_launch(files: Sequence[str], bindings: Sequence[str], patience: float) -> None:
  """Raises ConfigError where processes differ in code, JAX, devices or settings, or one does not come."""
  if not NAMES:
    return
  settings = {
    f"{s.scope}/{s.name}" if s.scope else s.name: repr((s.value, *s.references, *s.macros))
    for s in read_statements(files, bindings)
  }
  devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
  facts = {
    "flan-jax": importlib.metadata.version("flan-jax"),
    "the code of flan-jax": _code(),
    "jax": jax.__version__,
    "jaxlib": importlib.metadata.version("jaxlib"),
    "devices": devices,
  }
  check_same("launch", {**facts, **settings}, patience)


def check_same(name: str, facts: Mapping[str, str], patience: float = 24 * 3600) -> None:
  """Compares what every process says of itself with what process 0 says.

  Args:
    name: of this meeting of the processes; not used for another one.
    patience: seconds to wait for the slowest.

  Raises:
    AgreedError: in all, with who differs and in which facts.
    ConfigError: one did not come in time.
  """
  if not NAMES:
    return
  index = jax.process_index()
  if is_first():
    peers.tell_all(f"{name} facts", json.dumps(facts))
  try:
    first = json.loads(peers.heard(f"{name} facts", patience))
    peers.tell(f"{name} differs", index, json.dumps(_differences(first, facts)))
    peers.meet(name, patience)
  except RuntimeError as error:
    there = peers.told(f"{name} differs")
    absent = ", ".join(each for i, each in enumerate(NAMES) if i not in there)
    raise ConfigError(
      f"{absent or NAMES[0]} did not come to the check of the {name} within {patience:.0f} s ({error})."
    ) from None
  told = {i: json.loads(text) for i, text in sorted(peers.told(f"{name} differs").items())}
  lines = [f"{NAMES[i]}: {each}" for i, differences in told.items() for each in differences]
  if lines:
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    raise AgreedError(
      "\n  ".join(
        (
          f"the processes of this run would not do the same; {NAMES[0]} is what they are held against:",
          *lines[:_SHOWN],
          *more,
          "Launch all with the same code, files and settings, on the same devices.",
        )
      )
    )


def _differences(first: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
  return [
    f"{name} is {_short(own.get(name))}, not {_short(first.get(name))}"
    for name in sorted({*first, *own})
    if own.get(name) != first.get(name)
  ]


def _short(value: str | None) -> str:
  return "not set" if value is None else value if len(value) <= 60 else f"{value[:57]}..."


@functools.cache
def _code() -> str:
  """Of every module of the library, the user's own not included."""
  root, digest = Path(__file__).parents[1], hashlib.sha256()
  # Parts of it are links where it is not installed.
  folders = os.walk(root, followlinks=True)
  for path in sorted(Path(at, file) for at, _, files in folders for file in files):
    if path.suffix == ".py":
      digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
  return digest.hexdigest()[:12]
