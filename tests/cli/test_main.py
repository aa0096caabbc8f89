"""The command line answers quickly and tells mistakes in one message."""

import subprocess
import sys
from pathlib import Path

from flan_jax.cli.main import main
from flan_jax.data import library

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


def test_the_lint_of_the_templates_names_file_and_line_and_is_status_2(
  tmp_path, capsys, monkeypatch
):
  shipped = Path(__file__).parents[2] / "templates" / "maths" / "asdiv.yaml"
  text = shipped.read_text()
  path = tmp_path / "maths" / "sums.yaml"
  path.parent.mkdir()
  path.write_text(text.replace("In your head, please:", "In your your head, please:"))
  torn = path.with_name("torn.yaml")
  torn.write_text(text.replace("metrics: [", "metric: [", 1))
  register = tmp_path / "my_lint_templates.py"
  register.write_text(
    f"from flan_jax.data import register_templates\nregister_templates({str(tmp_path)!r})\n"
  )
  monkeypatch.setattr(library, "_template_folders", [])
  assert main(["templates", "asdiv", "--lint"]) == 0
  assert main(["templates", "--lint", "--module", str(register)]) == 2
  printed = capsys.readouterr()
  found = printed.out.splitlines()
  assert len(found) == 2
  assert found[0].startswith(f"{path}:") and "template in_your_head: the same word" in found[0]
  assert found[1].startswith(f"{torn}:") and "unknown key 'metric'" in found[1]
  assert printed.err == "flan-jax: findings in the templates: 2\n"


def test_the_templates_are_written_as_a_page_into_a_file_or_a_folder(tmp_path, capsys):
  assert main(["templates", "cb", "--html", str(tmp_path / "cb.html")]) == 0
  assert main(["templates", "cb", "--html", str(tmp_path / "pages")]) == 0
  assert (tmp_path / "cb.html").read_text() == (tmp_path / "pages" / "index.html").read_text()
  assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "pages" / "index.html")
