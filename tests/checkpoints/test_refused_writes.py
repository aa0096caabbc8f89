"""Whatever the disk refuses, and wherever: one error at the next step, and what was finished stays."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Which error meets which of the files that a checkpoint is written to, and the renaming of its folder.
REFUSALS = (
  (errno.EIO, "/d/"),
  (errno.ENOSPC, "/d/"),
  (errno.EROFS, "/d/"),
  (errno.EIO, "manifest.ocdbt"),
  (errno.EDQUOT, "_METADATA"),
  (errno.ENOSPC, "meta"),
  (errno.EIO, "sizes.json"),
  (errno.EROFS, "orbax-checkpoint-tmp"),
  (errno.EIO, "run/2"),
)


PROGRAM = """
  import json, os, sys, time
  import numpy as np
  from flan_jax.checkpoints import Checkpoints
  from flan_jax.errors import StorageError

  folder, rule, refusals = sys.argv[1], os.environ["REFUSE_FILE"], json.loads(sys.argv[2])
  kernel = np.random.default_rng(0).random((100, 100), np.float32)
  state, told = {"params": {"kernel": kernel}, "optimizer": {"mu": 2 * kernel}}, []

  def refuses(text):
    # As a whole: the writer's threads read it meanwhile.
    with open(rule + ".new", "w") as file:
      file.write(text)
    os.replace(rule + ".new", rule)

  for number, place in refusals:
    run = f"{folder}/{number}{place.replace('/', '.')}/run"
    checkpoints = Checkpoints(run)
    checkpoints.save(1, state, {"step": 1})
    checkpoints.wait()
    digest = checkpoints.digest(1)
    refuses(f"{number} {place}")
    try:
      checkpoints.save(2, state, {"step": 2})
      for _ in range(500):  # steps of training, none of which waits for the disk
        checkpoints.check()
        time.sleep(0.01)
      outcome = "nobody noticed"
    except StorageError as error:
      outcome = "" if os.strerror(number) in str(error) and "whole: [1]" in str(error) else str(error)
    finally:
      refuses("")
    if outcome or checkpoints.steps() != [1] or checkpoints.digest(1) != digest:
      told.append((place, os.strerror(number), outcome, os.listdir(run)))
  with Checkpoints(run) as again:  # what the last refusal left over is swept away
    again.save(2, state, {"step": 2})
    again.wait()
    print(json.dumps([told, again.digest(2) == digest, sorted(os.listdir(run))]))
"""


@pytest.fixture
def refusing_disk(tmp_path):
  """The environment of a process whose writes are refused as the returned file says."""
  compiler = shutil.which("cc")
  if compiler is None or not sys.platform.startswith("linux"):
    pytest.skip("needs a C compiler on Linux")
  source, library = Path(__file__).with_name("refusing_disk.c"), tmp_path / "refusing.so"
  command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
  subprocess.run(command, check=True)
  rule = tmp_path / "rule"
  rule.write_text("")
  return {**os.environ, "LD_PRELOAD": str(library), "REFUSE_FILE": str(rule)}


def test_every_refusal_is_told_at_a_step_and_costs_no_finished_checkpoint(tmp_path, refusing_disk):
  arguments = (str(tmp_path / "runs"), json.dumps(REFUSALS))
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
    env=refusing_disk,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert json.loads(done.stdout.splitlines()[-1]) == [[], True, ["1", "2"]]
