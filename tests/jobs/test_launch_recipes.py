"""The recipes of docs/launch: their scripts parse, and what they ask of flan-jax exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from flan_jax.cli import main
from flan_jax.jobs.clusters import ADDRESS, COUNT, INDEX
from flan_jax.jobs.configurables import configurable
from flan_jax.jobs.launch import configure

assert configurable  # the jobs are registered by the import
ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "launch").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def containers(tree) -> list[dict]:
  if isinstance(tree, dict):
    return [*tree.get("containers", []), *(c for v in tree.values() for c in containers(v))]
  return [c for v in tree for c in containers(v)] if isinstance(tree, list) else []


def scripts(page: Path) -> list[str]:
  pods = [c for text in blocks(page, "yaml") for c in containers(yaml.safe_load(text))]
  return [*blocks(page, "bash"), *(script for pod in pods for script in pod.get("args", []))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_parse_and_their_launches_are_accepted(page):
  launches = 0
  for script in scripts(page):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for command in re.findall(
      r"flan-jax (train .*?)(?: \|\|| >|\n|$)", script.replace("\\\n", " ")
    ):
      options, bindings = main._parse(shlex.split(command))
      assert configure(options.command, options.gin_file, bindings)
      launches += 1
  assert launches


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_readme_leads_to_each(page):
  assert f"(docs/launch/{page.name})" in (ROOT / "README.md").read_text()


def test_settings_that_the_pages_name_exist():
  text = "".join(page.read_text() for page in PAGES)
  for flag in re.findall(r"`(--\w+)`", text):
    assert flag in ("--prtemca",) or flag in main._parser().format_help() + _help("train"), flag
  assert configure(
    "train",
    ["recipes/flan_t5.gin"],
    ["INITIAL_CHECKPOINT=x", "watchdog.step_timeout=600.0", "train.checkpoint_every=5"],
  )


def _help(command: str) -> str:
  [jobs] = [a for a in main._parser()._actions if isinstance(a.choices, dict)]
  return jobs.choices[command].format_help()


def test_the_jobset_tells_each_pod_its_place():
  [text] = blocks(ROOT / "docs/launch/jobset.md", "yaml")
  jobset = yaml.safe_load(text)
  [job] = jobset["spec"]["replicatedJobs"]
  spec, name = job["template"]["spec"], jobset["metadata"]["name"]
  [pod] = containers(spec)
  told = {each["name"]: each.get("value") for each in pod["env"]}
  assert set(told) == {ADDRESS, COUNT, INDEX}
  assert int(told[COUNT]) == spec["completions"] == spec["parallelism"]
  assert told[ADDRESS].startswith(f"{name}-{job['name']}-0-0.{name}:")
