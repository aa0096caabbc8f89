"""`flan-jax mixtures`: what is in a mixture, its lock, and what differs between two."""

import json

import pytest

MINE = ("--module", "tasks.py")


@pytest.fixture
def mixtures(flan_jax):
  """Runs `flan-jax mixtures` with the tickets known."""
  return lambda *arguments, **keywords: flan_jax("mixtures", *arguments, *MINE, **keywords)


def test_a_mixture_is_printed_dataset_by_dataset(mixtures):
  header, row = mixtures("tickets_only").stdout.splitlines()[2:]
  assert header.split()[:5] == ["dataset", "cluster", "available", "used", "cap"]
  assert row.split()[:2] == ["tickets", "support"] and "100.0%" in row
  assert row.endswith("files tickets.jsonl") and "inputs" not in header


def test_lengths_are_told_where_there_is_a_vocabulary(mixtures):
  wide = ("--lengths", "inputs=400,targets=30")
  header, row, _, note = mixtures(
    "tickets_only", "--vocabulary", "bytes", *wide
  ).stdout.splitlines()[2:]
  assert header.split()[8:12] == ["inputs", "targets", "shortened", "dropped"]
  assert float(row.split()[8]) > 50 and note.startswith("lengths in tokens")


def test_everything_is_told_to_machines_under_the_same_keys(mixtures):
  plain = json.loads(mixtures("tickets_only", "--json", "--draws", "50").stdout)
  long = json.loads(mixtures("tickets_only", "--json", "--vocabulary", "bytes").stdout)
  (one,), (other,) = plain["datasets"], long["datasets"]
  assert plain.keys() == long.keys() and one.keys() == other.keys()
  assert (plain["lengths"], one["inputs"]) == (None, None)
  assert long["lengths"] == {"inputs": 1024, "targets": 256} and other["inputs"] > 50
  assert one["passes"] == pytest.approx(50 / one["examples"])
  assert (one["status"], one["source"], one["missing"]) == ("prepared", "files tickets.jsonl", "")
  assert "mini" in json.loads(mixtures("--json").stdout)


def test_a_lock_is_written_and_compared_with_what_the_mixture_is_later(mixtures, folder):
  said = mixtures("tickets_only", "--lock", "mixture.lock").stdout
  lock = json.loads((folder / "mixture.lock").read_text())
  assert said == f"mixture.lock: tickets_only, sha256 {lock['hash']}\n"
  assert "nothing is different" in mixtures("diff", "mixture.lock", "tickets_only").stdout
  assert json.loads(mixtures("diff", "mixture.lock", "tickets_only", "--json").stdout) == {}
  path = folder / "support" / "tickets.yaml"
  path.write_text(path.read_text() + "licence: CC0-1.0\n")
  told = mixtures("diff", "mixture.lock", "tickets_only").stdout
  assert told.endswith("\n\ntickets\n  licence: nothing -> CC0-1.0\n")
  assert "  mixture: tickets_only -> tickets" in mixtures("diff", "tickets_only", "tickets").stdout


@pytest.mark.parametrize(
  ("words", "complaint"),
  [
    (("mini", "without", "topic"), 'write "mini without topic" in quotes'),
    (("diff", "mini"), "diff A B` takes two"),
    (("diff", "mini", "minni"), "unknown mixture 'minni'. Did you mean 'mini'"),
    (("diff", "nowhere.lock", "mini"), "there is no lock nowhere.lock"),
    (("diff", "tasks.py", "mini"), "tasks.py is torn, or no lock"),
    (
      ("tickets_only", "--lengths", "inputs=1,targets=1"),
      "--lengths would be ignored here without",
    ),
    (("tickets_only", "--lock", "a", "--draws", "0"), "--draws would be ignored"),
    (("--lock", "a"), "--lock would be ignored"),
    (("tickets_only", "--vocabulary", "none.model"), "there is no none.model"),
    (("tickets_only", "--vocabulary", "support"), "support holds no vocabulary"),
    (
      ("tickets_only", "--vocabulary", "bytes", "--lengths", "inputs=5"),
      "they name the tokens of 'inputs' and 'targets'",
    ),
  ],
)
def test_what_cannot_be_obeyed_is_refused(mixtures, words, complaint):
  assert complaint in mixtures(*words, status=2).stderr
