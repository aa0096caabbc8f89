"""Options look as their style says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_jax.prompting import STYLES
from flan_jax.prompting.options import letters, show_options

words = st.lists(st.text(min_size=1), min_size=1, max_size=60)


def test_a_list_has_one_dash_a_line():
  assert show_options(["yes", "no"], "list") == "- yes\n- no"


def test_letters_stand_in_brackets_before_their_words():
  assert show_options(["yes", "no"], "letters") == "(A) yes\n(B) no"


def test_inline_options_read_as_a_sentence_does():
  assert show_options(["negative", "neutral", "positive"], "inline") == (
    "negative, neutral or positive"
  )


def test_inline_options_with_commas_of_their_own_are_kept_apart():
  assert show_options(["red, or so", "blue"], "inline") == "red, or so; or blue"


def test_beyond_z_letters_go_on_as_spreadsheet_columns_do():
  labels = letters(703)
  assert [labels[i] for i in (0, 25, 26, 51, 52, 701, 702)] == [
    *("A", "Z", "AA", "AZ", "BA", "ZZ", "AAA")
  ]
  assert len(set(labels)) == 703


@given(words, st.sampled_from(STYLES))
def test_every_option_is_shown(options, style):
  shown = show_options(options, style)
  position = 0
  for option in options:
    position = shown.index(option, position)


def test_an_unknown_style_is_refused():
  with pytest.raises(ValueError, match="unknown style 'bullets'"):
    show_options(["a", "b"], "bullets")
