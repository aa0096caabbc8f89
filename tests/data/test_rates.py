"""Rates and shares: closed forms, what SeqIO computes of the same settings, and what is drawn in the end."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flan_jax.data import Mixture, rates, register_mixture, register_templates, training_tasks
from flan_jax.data import mixtures as registry
from flan_jax.data.draws import DrawStream
from flan_jax.errors import NetworkError

NAMES = ("a", "b", "c", "d")
SIZES = st.lists(st.integers(1, 10**7), min_size=len(NAMES), max_size=len(NAMES))
CAPS = st.integers(1, 10**5)
TEMPERATURES = st.floats(0.5, 8.0)
MULTIPLIERS = st.floats(0.01, 100.0)
drawn = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
pytestmark = [
  pytest.mark.usefixtures("own_registry"),
  # TensorFlow's own, when SeqIO imports it.
  pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def tasks_of(make_dataset, monkeypatch, tmp_path):
  """The tasks of a mixture over datasets of any sizes, whose records are never made."""
  for name in NAMES:
    make_dataset(name, 1)
  register_templates(tmp_path / "templates")
  sizes = {}
  monkeypatch.setattr(
    rates,
    "load_records",
    lambda spec, _: SimpleNamespace(counts=SimpleNamespace(kept={"train": sizes[spec.name]})),
  )

  def tasks_of(mixture, examples):
    sizes.update(zip(NAMES, examples, strict=True))
    return {task.name: task for task in training_tasks(mixture, tmp_path)}

  return tasks_of


@pytest.fixture
def seqio_tasks():
  """SeqIO's own tasks of such sizes, in no registry."""
  seqio = pytest.importorskip("seqio")

  def seqio_tasks(examples):
    return [
      seqio.Task(
        name,
        source=seqio.FunctionDataSource(
          lambda split, shuffle_files: None, ["train"], {"train": size}
        ),
        output_features={"targets": seqio.Feature(seqio.PassThroughVocabulary(size=1))},
      )
      for name, size in zip(NAMES, examples, strict=True)
    ]

  return seqio_tasks


@drawn
@given(SIZES, CAPS, CAPS, TEMPERATURES)
def test_a_rate_is_the_capped_size_to_one_over_the_temperature(
  tasks_of, examples, most, cap, temperature
):
  mixture = Mixture("m", dict.fromkeys(NAMES), most, cap, temperature)
  tasks = tasks_of(mixture, examples)
  expected = np.minimum(np.minimum(examples, most), cap) ** (1 / temperature)
  assert [tasks[name].rate for name in NAMES] == pytest.approx(list(expected))
  assert [tasks[name].share for name in NAMES] == pytest.approx(list(expected / expected.sum()))
  assert [tasks[name].examples for name in NAMES] == [min(size, most) for size in examples]


@drawn
@given(SIZES, CAPS, TEMPERATURES, MULTIPLIERS)
def test_rates_are_those_of_seqio(tasks_of, seqio_tasks, examples, cap, temperature, multiplier):
  """SeqIO scales before cap and temperature, a weight multiplies after both: the same rate in other words."""
  import seqio

  mixture = Mixture(
    "m", {"a": multiplier, "b": None, "c": None, "d": None}, 10**7, cap, temperature
  )
  tasks = tasks_of(mixture, examples)
  scaled, *plain = seqio_tasks(examples)
  scale = multiplier**temperature
  assert tasks["a"].rate == pytest.approx(
    seqio.mixing_rate_num_examples(
      scaled, maximum=scale * cap, scale=scale, temperature=temperature
    )
  )
  for task in plain:
    assert tasks[task.name].rate == pytest.approx(
      seqio.mixing_rate_num_examples(task, maximum=cap, temperature=temperature)
    )


@drawn
@given(SIZES, st.tuples(CAPS, CAPS), TEMPERATURES, MULTIPLIERS)
def test_a_mixture_within_a_mixture_is_drawn_as_seqio_draws_it(
  tasks_of, seqio_tasks, examples, caps, temperature, multiplier
):
  import seqio

  inner = Mixture("inner", {"b": multiplier, "c": None}, 10**7, caps[0], temperature)
  registry._mixtures["inner"] = inner
  # b is reached twice, by itself and within.
  outer = Mixture("outer", {"inner": multiplier, "a": None, "b": None, "d": None}, 10**7, caps[1])
  tasks = tasks_of(outer, examples)

  def rate(cap, temperature):
    return lambda task: seqio.mixing_rate_num_examples(task, maximum=cap, temperature=temperature)

  a, b, c, d = seqio_tasks(examples)
  own = rate(caps[0], temperature)
  theirs = seqio.Mixture("inner", [(b, lambda task: multiplier * own(task)), (c, own)])
  outside = rate(caps[1], 1.0)
  members = [(theirs, multiplier * theirs.total_rate)]
  mixed = seqio.Mixture("outer", [*members, *((task, outside) for task in (a, b, d))])
  assert {name: task.share for name, task in tasks.items()} == {
    task.name: pytest.approx(mixed.get_rate(task) / mixed.total_rate) for task in mixed.tasks
  }


@drawn
@given(SIZES, st.integers(1, 98), CAPS)
def test_a_fixed_share_is_a_rate_of_seqio_beside_others_that_make_a_whole(
  tasks_of, seqio_tasks, examples, share, cap
):
  import seqio

  registry._mixtures["inner"] = Mixture("inner", {"a": None, "b": None}, rate_cap=cap)
  tasks = tasks_of(Mixture("m", {"inner": f"{share}%", "c": "1%", "d": None}), examples)
  a, b, c, d = seqio_tasks(examples)
  inner = seqio.Mixture(
    "inner",
    [a, b],
    default_rate=lambda task: seqio.mixing_rate_num_examples(task, min(cap, 30_000)),
  )
  mixed = seqio.Mixture("m", [(inner, share), (c, 1), (d, 99 - share)])
  assert {name: task.share for name, task in tasks.items()} == {
    task.name: pytest.approx(mixed.get_rate(task) / 100) for task in mixed.tasks
  }


@drawn
@given(
  st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=60),
  st.integers(0, 2**32),
  st.integers(0, 10**9),
)
def test_ten_thousand_draws_have_the_shares_within_a_thousandth(shares, seed, start):
  """Wherever in the stream they begin: random draws would be off by up to a hundredth."""
  names = [str(i) for i in range(len(shares))]
  stream = DrawStream(names, shares, [100] * len(shares), seed)
  found = np.bincount(stream._tasks(start, 10_000), minlength=len(shares)) / 10_000
  assert np.abs(found - np.array(shares) / sum(shares)).max() < 1e-3


def test_the_stream_of_a_mixture_has_its_shares(tasks_of):
  register_mixture("m", {"a": 3.0, "b": None, "c": "12.5%", "d": None}, temperature=2.0)
  tasks = tasks_of("m", [900, 2_500, 10, 10**6]).values()
  names, shares, sizes = zip(
    *((task.name, task.share, task.examples) for task in tasks), strict=True
  )
  draws = DrawStream(names, shares, sizes, seed=0).draws(0, 10_000)
  found = np.bincount(draws.task, minlength=len(names)) / 10_000
  assert found == pytest.approx(np.array(shares), abs=1e-3)
  rest = 90 + 50 + 3_000**0.5
  assert shares == pytest.approx(
    [0.875 * 90 / rest, 0.875 * 50 / rest, 0.125, 0.875 * 3_000**0.5 / rest]
  )


def test_what_the_network_alone_keeps_away_is_fetchable(tasks_of, monkeypatch, tmp_path):
  sized = rates.load_records

  def offline(spec, data_dir):
    if spec.name == "b":
      raise NetworkError("no network")
    return sized(spec, data_dir)

  monkeypatch.setattr(rates, "load_records", offline)
  tasks = tasks_of(Mixture("m", {"a": None, "b": None}), [5, 5, 5, 5])
  assert {name: task.status for name, task in tasks.items()} == {"a": "prepared", "b": "fetchable"}
