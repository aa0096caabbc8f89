"""Packing: nothing lost, nothing too full, and little of a row left empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_jax.data.packing import lower_bound, pack
from flan_jax.errors import ConfigError

CAPACITIES = st.lists(st.integers(1, 60), min_size=1, max_size=3)


@st.composite
def examples(draw):
  capacities = draw(CAPACITIES)
  sizes = st.tuples(*(st.integers(0, capacity) for capacity in capacities))
  return draw(st.lists(sizes, max_size=60)), capacities


@given(examples())
def test_each_example_stands_in_exactly_one_row_and_no_row_overflows(case):
  lengths, capacities = case
  rows = pack(lengths, capacities)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  for row in rows:
    assert row
    assert all(np.sum([lengths[i] for i in row], axis=0) <= capacities)
  assert len(rows) >= lower_bound(lengths, capacities)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_in_one_dimension_it_is_first_fit_decreasing(lengths):
  room = []
  for length in sorted(lengths, reverse=True):
    fitting = [i for i, left in enumerate(room) if left >= length]
    if fitting:
      room[fitting[0]] -= length
    else:
      room.append(50 - length)
  assert len(pack([(length,) for length in lengths], [50])) == len(room)


@pytest.mark.parametrize("seed", range(4))
def test_lognormal_lengths_take_hardly_more_rows_than_their_volume(seed):
  lengths = lognormal(20_000, seed)
  rows = pack(lengths, (1024, 256))
  assert len(rows) <= 1.02 * lower_bound(lengths, (1024, 256))
  windows = [pack(lengths[i : i + 1024], (1024, 256)) for i in range(0, len(lengths), 1024)]
  assert sum(map(len, windows)) <= 1.02 * lower_bound(lengths, (1024, 256))


def test_an_example_larger_than_a_row_is_refused():
  with pytest.raises(ConfigError, match=r"example 1 has \[4, 9\] tokens"):
    pack([(1, 1), (4, 9)], (5, 5))
  with pytest.raises(ConfigError, match="positive"):
    pack([(1, 1)], (5, 0))


def test_no_examples_make_no_rows():
  assert pack([], (5, 5)) == []


def lognormal(count, seed):
  """Lengths such as instruction data has: inputs of about 135 tokens, targets of about 18."""
  rng = np.random.default_rng(seed)
  inputs = np.clip(rng.lognormal(4.6, 0.8, count), 8, 1024)
  targets = np.clip(rng.lognormal(2.5, 0.8, count), 2, 256)
  return np.stack([inputs, targets], axis=1).astype(int)
