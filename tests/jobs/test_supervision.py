"""A launch under its parent: what it says of a death, what it passes on, and that it leaves nobody behind."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

BEGIN = """
import os, signal, sys, time
from flan_jax.jobs import supervision
def begin(count=None):
  ended = supervision.supervise(supervision.local_processes(count), 100)
  if ended is not None:
    sys.stdout.flush()
    os._exit(ended)
"""


def launch(program: str, **settings) -> subprocess.Popen:
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | settings
  return subprocess.Popen([sys.executable, "-c", BEGIN + textwrap.dedent(program)], **pipes)


def outcome(program: str) -> tuple[int, str, str]:
  process = launch(program)
  stdout, stderr = process.communicate(timeout=60)
  return process.returncode, stdout, stderr.strip()


def test_who_was_killed_is_said_with_when_and_how():
  status, pid, said = outcome("""
    begin()
    supervision.signs.place(0, 1)
    supervision.signs.begun(12)
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
  """)
  assert status == 128 + signal.SIGKILL
  assert re.fullmatch(
    rf"flan-jax: process 0 \(host \S+, pid {pid.strip()}\) died at \S+ \S+, \d+ s after the start, in step 12: "
    r"SIGKILL, by a person or a scheduler; it held \d\.\d GB at most\. Started again, the same command goes on "
    r"from what is saved\.",
    said,
  )


def test_a_death_while_the_system_killed_for_memory_says_so():
  status, _, said = outcome("""
    import pathlib, tempfile
    supervision._VMSTAT = pathlib.Path(tempfile.mkdtemp(), "vmstat")
    supervision._VMSTAT.write_text("nr_free_pages 5\\noom_kill 7\\n")
    begin()
    supervision._VMSTAT.write_text("nr_free_pages 5\\noom_kill 8\\n")
    os.kill(os.getpid(), signal.SIGKILL)
  """)
  assert status == 137 and "for lack of memory" in said and "before its first step" in said


@pytest.mark.parametrize("status", [0, 2, 3, 130])
def test_an_end_that_the_process_has_explained_is_passed_on_in_silence(status):
  assert outcome(f"begin(); print('done'); sys.exit({status})") == (status, "done\n", "")


def test_an_error_and_a_fault_are_told_after_what_they_print():
  status, _, said = outcome("begin(); raise RuntimeError('on purpose')")
  assert status == 1 and "RuntimeError: on purpose" in said.partition("flan-jax:")[0]
  assert said.partition("flan-jax:")[2].count("exit status 1") == 1
  status, _, said = outcome("begin(); os.kill(os.getpid(), signal.SIGSEGV)")
  assert status == 128 + signal.SIGSEGV and "SIGSEGV" in said


def test_sigterm_reaches_the_child_which_may_end_well():
  process = launch("""
    begin()
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
    print("ready", flush=True)
    time.sleep(60)
  """)
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  stdout, stderr = process.communicate(timeout=60)
  assert (process.returncode, stdout, stderr) == (0, "saved\n", "")


def test_a_launch_that_was_suspended_goes_on_and_ends_well():
  process = launch("begin(); print('at work', flush=True); time.sleep(3)")
  assert process.stdout.readline() == "at work\n"
  for _ in range(3):
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.6)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.2)
  assert process.communicate(timeout=60) == ("", "")
  assert process.returncode == 0


def test_ctrl_c_in_a_terminal_interrupts_the_child_once():
  mine, its = pty.openpty()
  process = launch(
    """
    import fcntl, termios
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY)
    begin()
    def note(*_): print("interrupted", flush=True)
    signal.signal(signal.SIGINT, note)
    print("ready", sys.stderr.isatty(), flush=True)
    time.sleep(1)
    time.sleep(1)
    """,
    stdin=its,
    stderr=its,
  )
  assert process.stdout.readline() == "ready True\n"
  os.write(mine, b"\x03")
  stdout, _ = process.communicate(timeout=60)
  assert (process.returncode, stdout) == (0, "interrupted\n")


def test_a_parent_that_is_killed_leaves_nobody_behind():
  process = launch(r"""
    begin(2)
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(600)
  """)
  pids = [int(process.stdout.readline()) for _ in range(2)]
  process.kill()
  process.communicate(timeout=60)
  deadline = time.monotonic() + 30
  while any(alive(pid) for pid in pids):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def alive(pid: int) -> bool:
  with contextlib.suppress(ProcessLookupError, FileNotFoundError):
    os.kill(pid, 0)
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rpartition(")")[2].split()[0] != "Z"
  return False


def test_of_several_processes_the_one_that_died_is_named_and_the_others_are_ended():
  status, stdout, said = outcome(r"""
    supervision._PATIENCE = 0.5
    begin(3)
    index = int(os.environ["JAX_PROCESS_ID"])
    supervision.signs.place(index, 3)
    os.write(1, f"{os.environ['JAX_COORDINATOR_ADDRESS']} {os.environ['JAX_NUM_PROCESSES']}\n".encode())
    if index == 1:
      sys.exit(1)
    time.sleep(600)
  """)
  assert status == 1 and said.count("flan-jax:") == 1 and "process 1 (host" in said
  [place] = set(stdout.splitlines())
  assert re.fullmatch(r"127\.0\.0\.1:\d+ 3", place)


def test_what_native_code_writes_still_comes_out_and_python_keeps_its_stderr():
  status, _, said = outcome("""
    begin()
    supervision.native_errors_to_parent()
    os.write(2, b"from C++\\n")
    print("from Python", file=sys.stderr)
  """)
  assert status == 0 and sorted(said.splitlines()) == ["from C++", "from Python"]
