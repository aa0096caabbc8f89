"""Draws are the same everywhere, and fair."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_jax.prompting import Draw

parts = st.lists(st.one_of(st.text(), st.integers()), max_size=4)


def test_the_stream_is_splitmix64():
  # First outputs for the seed 1234567, as published with the reference C code.
  draw = Draw()
  draw._state = 1234567
  assert [draw.bits() for _ in range(5)] == [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
  ]


def test_a_key_never_changes_between_releases():
  assert f"{Draw('boolq', 17, 0).key:016x}" == "cecca22dc6aded81"
  assert f"{Draw('boolq', 17, 0).fork('options').key:016x}" == "85c3cdd686001024"


@given(parts)
def test_the_same_names_give_the_same_numbers(names):
  one, other = Draw(*names), Draw(*names)
  assert [one.bits() for _ in range(4)] == [other.bits() for _ in range(4)]


@given(parts, parts)
def test_other_names_give_another_stream(names, others):
  if [(type(name), name) for name in names] != [(type(name), name) for name in others]:
    assert Draw(*names).key != Draw(*others).key


def test_a_number_and_its_digits_are_different_names():
  assert Draw(1).key != Draw("1").key


def test_a_fork_does_not_depend_on_how_far_the_stream_was_read():
  draw = Draw("a")
  before = draw.fork("b").bits()
  draw.bits()
  assert draw.fork("b").bits() == before


@given(st.integers(), st.integers(1, 100))
def test_numbers_stay_below_their_bound(seed, bound):
  assert 0 <= Draw(seed).below(bound) < bound


@given(st.integers(), st.integers(0, 40))
def test_a_shuffle_holds_every_place_once(seed, count):
  assert sorted(Draw(seed).shuffled(count)) == list(range(count))


def test_all_six_orders_of_three_come_equally_often():
  counts = Counter(tuple(Draw("order", i).shuffled(3)) for i in range(6000))
  # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand tries.
  assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5
  assert len(counts) == 6


@pytest.mark.parametrize("bound", [0, -1])
def test_nothing_lies_below_zero(bound):
  with pytest.raises(ValueError, match="cannot draw"):
    Draw().below(bound)


def test_a_draw_is_named_by_strings_and_integers_only():
  with pytest.raises(TypeError, match="named by strings and integers"):
    Draw(1.5)  # type: ignore[arg-type]
