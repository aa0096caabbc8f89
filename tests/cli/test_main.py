"""The command line answers quickly and tells mistakes in one message."""

import subprocess
import sys

from flan_jax.cli.main import main

HEAVY = ("jax", "tensorflow", "numpy", "seqio", "matplotlib", "orbax")


def test_help_loads_nothing_heavy():
  script = (
    "import sys, contextlib\n"
    "from flan_jax.cli.main import main\n"
    "with contextlib.suppress(SystemExit): main(['--help'])\n"
    f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
  )
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
  assert "train" in done.stdout and "checkpoints" in done.stdout
  assert done.stderr.strip() == "[]"


def test_a_mistake_is_one_message_and_status_2(capsys):
  assert main(["train", "--gin_file=nowhere.gin"]) == 2
  assert capsys.readouterr().err.startswith("flan-jax: no gin file 'nowhere.gin'")


def test_a_module_that_is_not_there_is_named(capsys):
  assert main(["mixtures", "--module", "no_such_module.py"]) == 2
  assert "there is no such file" in capsys.readouterr().err
