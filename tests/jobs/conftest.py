"""A small dataset of one's own, a byte-level T5, and a folder to work in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TICKETS = Path(__file__).parent.parent / "tickets"


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A copy of the tickets to work in, with a data home of its own."""
  shutil.copytree(TICKETS, tmp_path / "work")
  monkeypatch.chdir(tmp_path / "work")
  monkeypatch.setenv("FLAN_JAX_HOME", str(tmp_path / "home"))
  return tmp_path / "work"


@pytest.fixture
def flan_jax(folder):
  """Runs a command as a user does, in a process of its own; checks the exit status."""

  def run(*arguments, status=0, **environment):
    done = subprocess.run(
      [sys.executable, "-m", "flan_jax.cli.main", *arguments],
      capture_output=True,
      text=True,
      env={**os.environ, **environment},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done

  return run
