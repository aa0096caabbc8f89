"""NAME=PLACE, and places that hold "=" themselves."""

import pytest

from flan_jax.cli.named_places import named_place

ARCHIVE = "package:llm==0.1.2#sha256=" + 64 * "a"


@pytest.mark.parametrize(
  "word, name, place",
  [
    ("runs/a", None, "runs/a"),
    ("tuned=runs/a", "tuned", "runs/a"),
    ("tuned=runs/lr=1e-3", "tuned", "runs/lr=1e-3"),
    ("runs/lr=1e-3", None, "runs/lr=1e-3"),
    (ARCHIVE, None, ARCHIVE),
    (f"base={ARCHIVE}", "base", ARCHIVE),
  ],
)
def test_a_name_stands_before_the_first_sign_that_is_no_part_of_the_place(word, name, place):
  assert named_place(word) == (name, place)


def test_a_folder_that_is_there_is_no_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "lr=1e-3").mkdir()
  assert named_place("lr=1e-3") == (None, "lr=1e-3")
