"""A small dataset of one's own, a byte-level T5, and a folder to work in."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flan_jax.cli.main import main
from flan_jax.data import library, mixtures
from flan_jax.jobs import user_modules

sys.path.insert(0, str(Path(__file__).parent))
TICKETS = Path(__file__).parent.parent / "tickets"


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A copy of the tickets to work in, with a data home and registries of its own."""
  shutil.copytree(TICKETS, tmp_path / "work")
  monkeypatch.chdir(tmp_path / "work")
  monkeypatch.setenv("FLAN_JAX_HOME", str(tmp_path / "home"))
  mixtures.mixture_names()  # the library's own are registered once, for all tests
  monkeypatch.setattr(library, "_template_folders", [])
  monkeypatch.setattr(library, "_given", {})
  monkeypatch.setattr(mixtures, "_mixtures", dict(mixtures._mixtures))
  monkeypatch.setattr(user_modules, "IMPORTED", [])
  monkeypatch.setattr(user_modules, "WAITING", [])
  return tmp_path / "work"


@dataclass(frozen=True)
class Done:
  stdout: str
  stderr: str


@pytest.fixture
def flan_jax(folder, capsys, monkeypatch):
  """Runs a command as `flan-jax` does, and checks the exit status."""

  def run(*arguments, status=0, **environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert main(arguments) == status
    return Done(*capsys.readouterr())

  return run
