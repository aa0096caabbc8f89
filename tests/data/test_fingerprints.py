"""The fingerprint of a store changes exactly when something that decides its rows does."""

import dataclasses
import json
import linecache
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from flan_jax.data import library
from flan_jax.data.library import register_templates
from flan_jax.data.mixtures import Mixture
from flan_jax.data.objectives import PrefixLM, SpanCorruption
from flan_jax.data.prepare import describe, prepare
from flan_jax.data.store import StoreConfig
from flan_jax.data.texts import register_text
from flan_jax.prompting.derive import derive_function
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

DATASET = """\
cluster: support
description: A customer's message; which team should get it?
source: {files: {all: tickets.jsonl}, format: jsonl}
splits: {train: 0.5, validation: 0.25, test: 0.25}
group: customer
derive: ticket_fields:tidy
fields: {text: long, queue: text}
answer: {field: queue, choices: {billing: billing, technical: technical}}
metrics: [accuracy]
licence: CC0-1.0
citation: Nobody (2020)
url: https://example.org
record: {text: "The invoice is wrong.", queue: billing, customer: a, kind: x}
templates:
  - name: which_team
    input: |-
      Which team answers this?
      {text}
      {options}
    target: "{answer}"
  - name: forward
    input: "{text} Forward to:"
    target: "{answer}"
    choices: {billing: money, technical: machines}
  - name: kept_back
    input: "{text} Who?"
    target: "{answer}"
    unseen: true
"""
DERIVE = """\
PREFIX = "Ticket: "


def tidy(record):
  return {**record, "text": PREFIX + _stripped(record["text"])}


def _stripped(text):
  return text.strip()
"""


class Project:
  """A user's folder with a dataset, a derive function and a mixture."""

  def __init__(self, folder: Path):
    self.folder, self.home = folder, folder / "home"
    self.mixture = Mixture("mine", {"tickets": None, "others": None}, rate_cap=10)
    self.config = StoreConfig(
      self.mixture,
      ByteVocabulary(extra_ids=4),
      PlainFormat(),
      "encoder_decoder",
      {"inputs": 96, "targets": 32},
      window=32,
    )
    (folder / "support").mkdir()
    for name in ("tickets", "others"):
      self.dataset(name).write_text(DATASET.replace("tickets.jsonl", f"{name}.jsonl"))
      queues = ("billing", "technical")
      rows = [
        {"text": f"{name} {i} ", "queue": queues[i % 2], "customer": str(i), "kind": "x"}
        for i in range(40)
      ]
      self.records(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ticket_fields.py").write_text(DERIVE)

  def dataset(self, name="tickets"):
    return self.folder / "support" / f"{name}.yaml"

  def records(self, name="tickets"):
    return self.folder / "support" / f"{name}.jsonl"

  def edit(self, old, new, path=None):
    path = path or self.dataset()
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))

  def edit_derive(self, old, new):
    self.edit(old, new, self.folder / "ticket_fields.py")

  def change(self, **settings):
    self.config = dataclasses.replace(self.config, **settings)

  def mix(self, **settings):
    self.change(mixture=dataclasses.replace(self.mixture, **settings))

  def reorder(self):
    """The same file with its keys, and those of its templates, in another order."""
    about = yaml.safe_load(DATASET)
    for section in (about, about["source"], about["answer"], *about["templates"]):
      for key in reversed(list(section)):
        section[key] = section.pop(key)
    self.dataset().write_text(yaml.safe_dump(about, sort_keys=False))

  def add_record(self):
    with self.records().open("a") as file:
      file.write(
        json.dumps({"text": "new", "queue": "billing", "customer": "new", "kind": "x"}) + "\n"
      )

  def move(self):
    """The files lie in another folder, which the dataset file names."""
    elsewhere = self.folder / "elsewhere"
    elsewhere.mkdir()
    shutil.move(self.records(), elsewhere)
    self.edit("tickets.jsonl", str(elsewhere / "tickets.jsonl"))

  def fingerprint(self, data_dir=None):
    """As another process would tell it."""
    sys.modules.pop("ticket_fields", None)
    derive_function.cache_clear()
    library._read.cache_clear()
    linecache.checkcache()
    library._template_folders[:] = []
    register_templates(self.folder)
    return describe(self.config, data_dir or self.home)["fingerprint"]


@pytest.fixture
def project(tmp_path, monkeypatch):
  library.import_library()
  monkeypatch.setattr(library, "_template_folders", [])
  monkeypatch.setattr("flan_jax.data.texts._texts", {})
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(
    sys, "dont_write_bytecode", True
  )  # else code of one second and length is taken as the same
  yield Project(tmp_path)
  sys.modules.pop("ticket_fields", None)
  derive_function.cache_clear()


MATTERS = {
  "a word of a template": lambda p: p.edit("Which team", "What team"),
  "the name of a template": lambda p: p.edit("name: forward", "name: send_on"),
  "a style of the options": lambda p: p.edit(
    'target: "{answer}"\n  - name: forward',
    'target: "{answer}"\n    options: letters\n  - name: forward',
  ),
  "one template less": lambda p: p.edit("name: forward\n", "name: forward\n    unseen: true\n"),
  "the order of templates": lambda p: (
    p.edit("name: which_team", "name: X"),
    p.edit("name: forward", "name: which_team"),
    p.edit("name: X", "name: forward"),
  ),
  "the words of a choice": lambda p: p.edit("{billing: billing,", "{billing: invoices,"),
  "a template's own choices": lambda p: p.edit("billing: money", "billing: cash"),
  "the order of the choices": lambda p: p.edit(
    "{billing: billing, technical: technical}", "{technical: technical, billing: billing}"
  ),
  "that choices are shown in any order": lambda p: p.edit(
    "field: queue, choices", "order: shuffled, field: queue, choices"
  ),
  "which field may be shortened": lambda p: p.edit("text: long", "text: text"),
  "a record": lambda p: p.add_record(),
  "a byte of a record": lambda p: p.edit("tickets 7 ", "tickets Z ", p.records()),
  "how much is for training": lambda p: p.edit(
    "{train: 0.5, validation: 0.25,", "{train: 0.25, validation: 0.5,"
  ),
  "what must not be split": lambda p: p.edit("group: customer", "group: text"),
  "what makes a duplicate": lambda p: p.edit(
    "group: customer", "group: customer\nunique: customer"
  ),
  "a balance": lambda p: p.edit("group: customer", "group: customer\nbalance: kind"),
  "code of the derive function": lambda p: p.edit_derive("PREFIX + ", ""),
  "code that it calls": lambda p: p.edit_derive("text.strip()", "text.lstrip()"),
  "a constant that it uses": lambda p: p.edit_derive("Ticket: ", "Mail: "),
  "no derive function": lambda p: p.edit("derive: ticket_fields:tidy\n", ""),
  "seed": lambda p: p.change(seed=1),
  "renderings": lambda p: p.change(renderings=2),
  "few_shot": lambda p: p.change(few_shot=1),
  "few_shot_share": lambda p: p.change(few_shot=1, few_shot_share=0.5),
  "template_choice": lambda p: p.change(template_choice="round_robin"),
  "templates_per_dataset": lambda p: p.change(templates_per_dataset=1),
  "options": lambda p: p.change(options="hidden"),
  "window": lambda p: p.change(window=33),
  "split": lambda p: p.change(split="validation"),
  "shuffle": lambda p: p.change(shuffle=False),
  "lengths": lambda p: p.change(lengths={"inputs": 97, "targets": 32}),
  "layout": lambda p: p.change(layout="decoder"),
  "vocabulary": lambda p: p.change(vocabulary=ByteVocabulary()),
  "format": lambda p: p.change(format=PlainFormat(eos_on_inputs=True)),
  "loss_on": lambda p: p.change(layout="decoder", loss_on="everything"),
  "a cap of the rate": lambda p: (
    p.add_record(),
    p.mix(rate_cap=5, datasets={"tickets": 2.0, "others": None}),
  ),
  "a weight": lambda p: p.mix(datasets={"tickets": 2.0, "others": None}),
  "a fixed share": lambda p: p.mix(datasets={"tickets": "30%", "others": None}),
  "a limit on examples": lambda p: p.mix(max_examples=7),
  "a dataset less": lambda p: p.mix(datasets={"tickets": None}),
}

DOES_NOT = {
  "nothing": lambda p: None,
  "a comment": lambda p: p.edit("\nfields:", "\n# what it says\nfields:"),
  "the order of keys": lambda p: p.reorder(),
  "the description": lambda p: p.edit("which team should get it", "who should get it"),
  "licence": lambda p: p.edit("CC0-1.0", "CC-BY-4.0"),
  "citation": lambda p: p.edit("Nobody (2020)", "Somebody (2021)"),
  "url": lambda p: p.edit("example.org", "example.com"),
  "the example of the file": lambda p: p.edit("The invoice is wrong.", "The screen is black."),
  "metrics": lambda p: p.edit("metrics: [accuracy]", "metrics: [accuracy, macro_f1]"),
  "an unseen template": lambda p: p.edit("{text} Who?", "{text} Whose is it?"),
  "another unseen template": lambda p: p.edit(
    "templates:\n",
    'templates:\n  - {name: more, input: "{text}", target: "{answer}", unseen: true}\n',
  ),
  "how a text is wrapped": lambda p: p.edit(
    '"{text} Forward to:"', "|\n      {text} Forward to:\n"
  ),
  "a list of one": lambda p: p.edit("group: customer", "group: [customer]"),
  "what holds anyway": lambda p: p.edit(
    "group: customer", "group: customer\nunique: [text, queue]"
  ),
  "where files lie": lambda p: p.move(),
  "when files were written": lambda p: p.records().touch(),
  "code beside the derive function": lambda p: p.edit_derive(
    "\n\ndef tidy", "\n\nOTHER = 1\n\n\ndef tidy"
  ),
  "a limit beyond what there is": lambda p: p.mix(max_examples=10**6),
  "the name of the mixture": lambda p: p.mix(name="ours"),
}


@pytest.mark.parametrize("name", MATTERS)
def test_what_decides_the_rows_changes_it(project, name):
  if name == "loss_on":
    project.change(layout="decoder")
  before = project.fingerprint()
  MATTERS[name](project)
  assert project.fingerprint() != before


@pytest.mark.parametrize("name", DOES_NOT)
def test_what_does_not_leaves_it(project, name):
  before = project.fingerprint()
  DOES_NOT[name](project)
  assert project.fingerprint() == before


def test_neither_does_the_folder_of_the_project_nor_that_of_the_records(project, tmp_path):
  before = project.fingerprint()
  copied = tmp_path / "copied"
  shutil.copytree(project.folder / "support", copied / "support")
  project.folder = copied
  assert project.fingerprint(tmp_path / "other_home") == before


def test_a_file_that_changes_parts_changes_it(project):
  """Also where the files in their order are the same bytes as before."""
  for number in range(3):
    (project.folder / "support" / f"a{number}.jsonl").write_text(
      project.records().read_text().replace("tickets", f"part {number}")
    )
  project.edit("{all: tickets.jsonl}", "{one: [a*.jsonl], two: [b*.jsonl]}")
  project.edit("{train: 0.5, validation: 0.25, test: 0.25}", "{train: one, test: two}")
  (project.folder / "support" / "a2.jsonl").rename(project.folder / "support" / "b2.jsonl")
  before = project.fingerprint()
  (project.folder / "support" / "a1.jsonl").rename(project.folder / "support" / "b1.jsonl")
  assert project.fingerprint() != before


def test_a_raw_text_follows_its_records_and_objective(project):
  def fingerprint(objective, name):
    register_text(name, ["tickets"], objective, passes=9)
    project.mix(datasets={"others": None, name: None})
    return project.fingerprint()

  project.edit("\nfields:", '\ntext: "{text}"\nfields:')
  first = fingerprint(SpanCorruption(), "lines")
  assert project.fingerprint() == first
  assert fingerprint(PrefixLM(), "others_lines") != first
  project.mix(datasets={"others": None, "lines": None})
  project.edit("Which team", "What team")  # running text has no templates
  assert project.fingerprint() == first
  project.edit("tickets 7 ", "tickets Z ", project.records())
  assert project.fingerprint() != first


def test_a_licence_that_was_put_right_is_told_by_the_store_that_is_there(project):
  project.fingerprint()
  store = prepare(project.config, 3, project.home, workers=1, progress=False)
  project.edit("CC0-1.0", "CC-BY-4.0")
  project.fingerprint()
  again = prepare(project.config, 3, project.home, workers=1, progress=False)
  assert again.directory == store.directory and again.rows == store.rows
  assert {task.name: task.licence for task in again.tasks} == {
    "tickets": "CC-BY-4.0",
    "others": "CC0-1.0",
  }
