"""A vocabulary from the command line: made once, found again, trained with."""

import json

import pytest

from flan_jax.jobs.train_vocabulary import trained_vocabulary
from flan_jax.vocabularies import load_vocabulary

MAKE = (
  "train_vocabulary",
  "--module",
  "tasks.py",
  "--gin_file=runs/train_vocabulary.gin",
  "--gin.MIXTURE=tickets_only",
  "--gin.VOCABULARY=runs/words",
  "--gin.train_vocabulary.size=440",
)


def test_it_is_made_once_and_the_same_again(flan_jax, folder):
  done = flan_jax(*MAKE)
  vocabulary = load_vocabulary(folder / "runs/words")
  assert vocabulary.size == 440 and vocabulary.fingerprint[:16] in done.stdout
  assert "finished before" in flan_jax(*MAKE).stdout
  flan_jax(*MAKE, "--gin.VOCABULARY=runs/again")
  for name in ("sentencepiece.model", "vocabulary.json", "training.json"):
    made, again = (folder / "runs" / place / name for place in ("words", "again"))
    assert made.read_bytes() == again.read_bytes()
  assert sorted(path.name for path in (folder / "runs").iterdir()) == ["again", "words"]


@pytest.mark.slow
def test_a_model_is_trained_with_it(flan_jax, folder):
  flan_jax(*MAKE)
  flan_jax(
    "train",
    "--module=tasks.py",
    "--gin_file=check.gin",
    "--gin.scratch.vocabulary=@saved_vocabulary()",
    "--gin.saved_vocabulary.directory=runs/words",
    "--gin.encoder_decoder.vocab_size=440",
  )
  saved = load_vocabulary(folder / "runs/tuned/vocabulary")
  assert saved.fingerprint == load_vocabulary(folder / "runs/words").fingerprint


@pytest.mark.parametrize(
  ("bindings", "words"),
  [
    (("--gin.train_vocabulary.size=640",), "size: 440, not 640"),
    (("--gin.train_vocabulary.seed=1",), "seed: 0, not 1"),
    (("--gin.VOCABULARY=support",), "support holds something else than a vocabulary"),
    (("--gin.VOCABULARY=",), "train_vocabulary.directory is empty"),
    (("--gin.VOCABULARY=new", "--gin.train_vocabulary.size=90000"), "too short for a vocabulary"),
    (("--gin.VOCABULARY=new", "--gin.MIXTURE=tickets_onyl"), "Did you mean 'tickets_only'"),
    (("--gin.VOCABULARY=new", "--gin.train_vocabulary.model_type=bpee"), "must be 'unigram' or"),
    (("--gin.VOCABULARY=new", "--gin.train_vocabulary.characters=0"), "characters=0 must be 1"),
  ],
)
def test_mistakes_are_told_and_leave_nothing_behind(flan_jax, folder, bindings, words):
  flan_jax(*MAKE)
  before = (folder / "runs/words/training.json").read_text()
  done = flan_jax(*MAKE, *bindings, status=2)
  assert words in done.stderr.splitlines()[-1]
  assert (folder / "runs/words/training.json").read_text() == before
  assert not list(folder.glob("*new*"))


def test_a_module_that_imports_seqio_may_register_the_mixture(flan_jax, folder):
  pytest.importorskip("seqio")
  module = folder / "heavy.py"
  module.write_text("import seqio\n" + (folder / "tasks.py").read_text())
  flan_jax(*[each.replace("tasks.py", "heavy.py") for each in MAKE])
  done = flan_jax(*MAKE, "--gin.VOCABULARY=new", "--gin.MIXTURE=my_seqio_task", status=2)
  assert "SeqIO's tasks have theirs: see @seqio_vocabulary()" in done.stderr


def test_a_mixture_of_the_same_name_that_says_something_else_is_another(flan_jax, folder):
  flan_jax(*MAKE)
  before = trained_vocabulary("tickets_only", size=440)
  assert before.fingerprint == load_vocabulary(folder / "runs/words").fingerprint
  tickets = folder / "support/tickets.jsonl"
  tickets.write_text(tickets.read_text().replace("invoice", "Rechnung"))
  assert trained_vocabulary("tickets_only", size=440).fingerprint != before.fingerprint
  done = flan_jax(*MAKE, status=2)
  assert "made with other settings: mixture_fingerprint:" in done.stderr.splitlines()[-1]


def test_settings_are_kept_beside_it(flan_jax, folder):
  flan_jax(*MAKE, "--gin.train_vocabulary.control_tokens=('<|user|>',)")
  about = json.loads((folder / "runs/words/training.json").read_text())
  assert about["settings"]["control_tokens"] == ["<|user|>"]
  assert about["settings"]["mixture"] == "tickets_only"
  assert load_vocabulary(folder / "runs/words").encode("<|user|>") == [3]
