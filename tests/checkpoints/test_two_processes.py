"""Checkpoints of several processes: real ones, that meet over the loopback."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
  import os, resource, signal, sys, time
  import jax, numpy as np
  from flan_jax.checkpoints import Checkpoints
  from flan_jax.errors import CheckpointError, StorageError

  index, address, run, what = int(sys.argv[1]), *sys.argv[2:]
  jax.config.update("jax_num_cpu_devices", 1)
  jax.distributed.initialize(address, 2, index)
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  content = np.random.default_rng(0).random((200, 1000), np.float32)
  kernel = jax.make_array_from_callback(content.shape, split, lambda place: content[place])
  checkpoints = Checkpoints(run, say=lambda text: print(text, flush=True))
  checkpoints.save(1, {"params": {"kernel": kernel}}, {"step": 1})
  checkpoints.wait()
  if what == "refused":
    if index == 1:
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
      checkpoints.save(2, {"params": {"kernel": kernel}}, {"step": 2})
      while True:
        checkpoints.check()
        time.sleep(0.01)
    except StorageError as error:
      print(error, flush=True)
      os._exit(7)
  else:
    checkpoints.save(2, {"params": {"kernel": kernel}}, {"step": 2})
    checkpoints.wait()
    checkpoints.close()
    if index == 0:
      files = checkpoints.directory.glob("2/params/ocdbt.process_1/d/*")
      file = max(files, key=lambda path: path.stat().st_size)
      file.write_bytes(file.read_bytes()[:-1] + b"?")
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    again = Checkpoints(run, say=lambda text: print(text, flush=True))
    abstract = {"params": {"kernel": jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=split)}}
    assert again.restore(abstract)[1]["step"] == 1
    assert again.steps() == [1]
"""


@pytest.fixture
def two(tmp_path):
  """Starts the program in two processes."""
  running = []

  def start(what):
    with socket.socket() as listener:
      listener.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{listener.getsockname()[1]}"
    program = textwrap.dedent(PROGRAM)
    for index in range(2):
      command = [sys.executable, "-c", program, str(index), address, str(tmp_path / "run"), what]
      running.append(
        subprocess.Popen(
          command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ
        )
      )
    return running

  yield start
  for process in running:
    process.kill()
    process.communicate()


@pytest.mark.scale
def test_the_process_whose_write_is_refused_says_so_and_does_not_wait_for_the_other(two, tmp_path):
  _, second = two("refused")
  output, _ = second.communicate(timeout=600)
  assert second.returncode == 7, output
  assert "File too large" in output and "whole: [1]" in output
  assert (tmp_path / "run/1").is_dir() and not (tmp_path / "run/2").exists()


@pytest.mark.scale
def test_damage_that_one_process_finds_is_known_to_both(two):
  for process in two("damaged"):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
