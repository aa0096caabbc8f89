"""A run through the command line: it learns, can be killed, and is judged afterwards."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from flan_jax.jobs.models import tuned

RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")
TRAIN = (sys.executable, "-m", "flan_jax.cli.main", "train", *RECIPE)


def metrics(run_dir):
  return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def digests(flan_jax, run_dir):
  table = json.loads(flan_jax("checkpoints", str(run_dir), "--json").stdout)
  return {row["step"]: row["digest"] for row in table}


def test_a_tiny_t5_learns_and_is_judged_before_and_after(flan_jax, folder):
  done = flan_jax(
    "train",
    *RECIPE,
    "--gin.STEPS=30",
    "--gin.LEARNING_RATE=5e-3",
    "--gin.train.evaluation=@evaluation()",
  )
  losses = [row["loss"] for row in metrics(folder / "runs/tuned")]
  assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
  report = json.loads((folder / "runs/tuned/report.json").read_text())
  (task,) = report["tasks"]
  assert task["name"] == "tickets" and task["n"] == 8
  assert task["before"] is not None and task["after"] is not None
  assert "tickets" in done.stdout and (folder / "runs/tuned/report.html").stat().st_size > 1000
  assert f"{task['after']:.3f}" in (folder / "runs/tuned/report.md").read_text()


def test_a_folder_of_dataset_files_can_be_named_in_place_of_a_module(flan_jax, folder):
  named = ("--templates", "support")
  assert "which" in flan_jax("templates", "tickets", *named).stdout.lower()
  flan_jax("train", *named, "--gin_file=check.gin", "--gin.MIXTURE=tickets", "--gin.STEPS=2")
  assert len(metrics(folder / "runs/tuned")) == 2
  (about,) = (folder.parent / "home").glob("stores/tickets-*")
  shown = flan_jax("rows", str(about), "--dataset", "tickets", "--limit", "1").stdout
  assert "tickets train" in shown


@pytest.mark.slow
def test_a_run_that_diverges_stops_with_a_report_and_debugging_names_the_layer(flan_jax, folder):
  hot = ("--gin.LEARNING_RATE=1e15", "--gin.train.max_bad_steps=2")
  done = flan_jax("train", *RECIPE, *hot, status=2)
  assert "the last of 2 in a row: not finite: " in done.stderr
  (report,) = (folder / "runs/tuned/bad_steps").glob("*/report.txt")
  told = report.read_text()
  assert "gradients that are not finite:\n  " in told
  assert "tickets train " in told and "\n  | " in told and "\n  > " in told
  done = flan_jax("train", *RECIPE, *hot, "--gin.RUN_DIR=runs/looked_into", "--debug", status=2)
  assert "in the forward pass the output of encoder/layers/" in done.stderr


def test_adafactor_at_a_constant_rate(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin_file=optimizers/adafactor.gin", "--gin.LEARNING_RATE=1e-2")
  rows = metrics(folder / "runs/tuned")
  assert [row["learning_rate"] for row in rows] == pytest.approx([1e-2] * 6)
  assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_a_run_with_averages_is_judged_by_them_and_so_is_whoever_opens_it(flan_jax, folder):
  judged = "--gin.train.evaluation=@evaluation()"
  flan_jax("train", *RECIPE, judged, "--gin.LEARNING_RATE=3e-2", "--gin.adamw.ema_decay=0.5")

  def scored(*settings):
    flan_jax("evaluate", *RECIPE, *settings)
    return json.loads((folder / "runs/judged/report.json").read_text())["tasks"][0]["after"]

  trained = json.loads((folder / "runs/tuned/report.json").read_text())["tasks"][0]["after"]
  assert scored() == trained
  predictions = sorted(path.read_text() for path in (folder / "runs/judged").rglob("*.jsonl"))
  scored("--gin.tuned.averages=False")
  assert predictions != sorted(p.read_text() for p in (folder / "runs/judged").rglob("*.jsonl"))


@pytest.mark.slow
def test_a_store_named_by_its_path_gives_the_same_run_or_is_refused(flan_jax, folder):
  flan_jax("train", *RECIPE)
  (store,) = (folder.parent / "home/stores").glob("tickets_only-*")
  named = (f"--gin.data.prepared={store}", "--gin.RUN_DIR=runs/named")
  flan_jax("train", *RECIPE, *named)
  assert digests(flan_jax, "runs/named") == digests(flan_jax, "runs/tuned")
  done = flan_jax("train", *RECIPE, *named, "--gin.data.seed=1", status=2)
  assert "seed: 0, not 1" in done.stderr
  done = flan_jax("train", *RECIPE, *named, "--gin.STEPS=5000", status=2)
  assert "and this run takes 40,000" in done.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_and_repeats_no_row(flan_jax, folder):
  def command(run_dir):  # processes of their own, on the one device that a laptop has
    settings = ("--gin.STEPS=40", "--gin.train.checkpoint_every=5", "--gin.train.keep=20")
    return [*TRAIN, *settings, f"--gin.RUN_DIR={run_dir}"]

  subprocess.run(command("runs/whole"), check=True, capture_output=True)
  process = subprocess.Popen(command("runs/killed"), stderr=subprocess.DEVNULL)
  log = folder / "runs/killed/metrics.jsonl"
  while not log.exists() or len(log.read_text().splitlines()) < 12:
    assert process.poll() is None, "the run ended before it could be killed"
    time.sleep(0.02)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  stopped = max(digests(flan_jax, "runs/killed"))
  done = subprocess.run(command("runs/killed"), check=True, capture_output=True, text=True)
  assert f"going on from step {stopped}" in done.stderr
  assert digests(flan_jax, "runs/killed")[40] == digests(flan_jax, "runs/whole")[40]
  rows = [row["rows"] for row in metrics(folder / "runs/killed")]
  assert rows == [[8 * k, 8 * k + 8] for k in range(40)]


@pytest.fixture
def mixture_with_a_gap(folder):
  """Beside the tickets a dataset whose files are handed out by mail alone."""
  there = (folder / "support/tickets.yaml").read_text()
  source = f'source: {{tfds: "story_cloze/2016:1.0.0", data_dir: "{folder}"}}'
  lines = [source if line.startswith("source:") else line for line in there.splitlines()]
  lines = [
    "splits: {train: validation, test: test}" if line.startswith("splits:") else line
    for line in lines
  ]
  (folder / "support/cloze.yaml").write_text("\n".join(lines) + "\n")
  with (folder / "tasks.py").open("a") as tasks:
    tasks.write('register_mixture("gap", ["tickets", "cloze"])\n')
  return (
    "--gin.MIXTURE=gap",
    "--gin.train.evaluation=@evaluation()",
    "--gin.evaluation.mixture=gap",
  )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_had_is_told_by_the_report_or_stops_a_strict_launch(
  flan_jax, folder, mixture_with_a_gap
):
  flan_jax("train", *RECIPE, *mixture_with_a_gap)
  notes = json.loads((folder / "runs/tuned/report.json").read_text())["notes"]
  for what in ("trained on", "judged"):
    assert any(f"cloze is not {what}: TFDS cannot prepare story_cloze" in note for note in notes)
  (about,) = (folder.parent / "home").glob("stores/*/store.json")
  assert list(json.loads(about.read_text())["missing"]) == ["cloze"]
  for strict in ("data", "evaluation"):
    bindings = (f"--gin.{strict}.strict=True", f"--gin.RUN_DIR=runs/{strict}")
    done = flan_jax("train", *RECIPE, *mixture_with_a_gap, *bindings, status=2)
    assert "flan-jax: TFDS cannot prepare story_cloze" in done.stderr
  found = ("--gin.data.strict=True", f"--gin.data.prepared={about.parent}")
  done = flan_jax("train", *RECIPE, *mixture_with_a_gap, *found, status=2)
  assert "was made without cloze, and data.strict=True wants the whole mixture" in done.stderr
  listed = flan_jax("mixtures", "gap", "--module", "tasks.py").stdout
  assert "cloze is missing: TFDS cannot prepare story_cloze" in listed
  flan_jax("mixtures", "gap", "--module", "tasks.py", "--strict", status=2)


@pytest.mark.slow
def test_a_run_is_judged_and_goes_out_with_its_checkpoints(flan_jax, folder):
  settings = [
    "--gin.STEPS=8",
    "--gin.train.checkpoint_every=2",
    "--gin.train.evaluation=@evaluation()",
    "--gin.train.evaluate_every=4",
    "--gin.train.export=True",
  ]
  flan_jax("train", *RECIPE, *settings)
  run = folder / "runs/tuned"
  judged = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
  assert [line["step"] for line in judged] == [4, 8]
  report = json.loads((run / "report.json").read_text())
  assert judged[-1]["tasks"]["tickets"] == report["tasks"][0]["after"]
  page = (run / "report.html").read_text()
  assert "Judged meanwhile" in page and "Where the time went" in page
  assert report["environment"]["training"]["time"]["attempts"] == 1
  assert json.loads((run / "environment.json").read_text())["versions"]["jax"]
  # Two checkpoints are kept, and so are the folders made of them.
  assert sorted(folder.name for folder in (run / "exported").iterdir()) == ["6", "8"]
  flan_jax(
    "convert",
    *RECIPE,
    "--gin_file=models/tuned.gin",
    "--gin_file=runs/convert.gin",
    "--gin.FOLDER=runs/converted",
  )
  weights = "model.safetensors"
  assert (run / "exported/8" / weights).read_bytes() == (
    folder / "runs/converted" / weights
  ).read_bytes()


@pytest.mark.slow
def test_a_run_that_stops_early_is_reported_and_is_a_phase_that_is_done(flan_jax, folder):
  tickets = folder / "support/tickets.yaml"
  with_validation = "{train: 0.6, validation: 0.2, test: 0.2}"
  tickets.write_text(tickets.read_text().replace("{train: 0.8, test: 0.2}", with_validation))
  settings = [
    "--gin.STEPS=40",
    "--gin.LEARNING_RATE=1.0",  # the loss rises
    "--gin.WARMUP_STEPS=1",
    "--gin.train.checkpoint_every=2",
    "--gin.VALIDATION_BATCHES=1",
    "--gin.train.patience=2",
    "--gin.train.keep_best=1",
    "--gin.train.evaluation=@evaluation()",
  ]
  done = flan_jax("train", *RECIPE, *settings)
  assert "held-out losses in a row" in done.stderr
  steps = len(metrics(folder / "runs/tuned"))
  assert steps < 40
  report = json.loads((folder / "runs/tuned/report.json").read_text())
  assert report["environment"]["training"]["steps"] == steps
  lines = (folder / "runs/tuned/validation.jsonl").read_text().splitlines()
  measured = {line["step"]: line["loss"] for line in map(json.loads, lines) if line["step"]}
  best = min(measured, key=lambda step: measured[step])
  assert tuned("runs/tuned", best="lowest loss").origin == f"runs/tuned, step {best}"
  assert "nothing left to train" in flan_jax("train", *RECIPE, *settings).stderr
