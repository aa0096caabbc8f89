"""The soak of benchmarks/soak.py, cut short: kills at random moments lose no example and repeat none."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"


@pytest.mark.scale
@pytest.mark.parametrize("layouts", [[], ["--same-layout"]], ids=["any layout", "same layout"])
def test_a_run_that_is_killed_again_and_again_reads_every_row_once(layouts):
  command = [sys.executable, str(SOAK), "--kills", "2", *layouts]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  assert "each read once and in order" in done.stdout
  assert ("the same bits at the end" in done.stdout) == bool(layouts)
