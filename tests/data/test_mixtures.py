"""Mixtures: rates, shares, nesting, held-out clusters, lazy lookup."""

import subprocess
import sys

import pytest

from flan_jax.data import (
  Mixture,
  dataset_spec,
  describe,
  get_mixture,
  held_out_datasets,
  keep_only,
  leave_out,
  mixture_tasks,
  register_mixture,
  register_templates,
  training_datasets,
  training_tasks,
)
from flan_jax.errors import ConfigError, SourceError, UnknownName

pytestmark = pytest.mark.usefixtures("own_registry")
EVERYTHING = {"train": 1.0}


@pytest.fixture
def datasets(make_dataset, tmp_path):
  """Registers datasets of 10, 40 and 60 training examples, the last in a cluster of its own."""
  for name, rows, cluster in (("small", 10, "a"), ("middle", 40, "a"), ("large", 60, "b")):
    make_dataset(name, rows, cluster, splits=EVERYTHING)
  register_templates(tmp_path / "templates")


@pytest.fixture
def rates(datasets, tmp_path):
  def rates(mixture):
    return {task.name: task.rate for task in training_tasks(mixture, tmp_path / "cache")}

  return rates


@pytest.fixture
def shares(datasets, tmp_path):
  def shares(mixture):
    tasks = training_tasks(mixture, tmp_path / "cache")
    return {task.name: pytest.approx(task.share) for task in tasks}

  return shares


def test_rates_follow_the_number_of_examples_up_to_the_cap(rates):
  register_mixture("mine", ["small", "middle", "large"], rate_cap=50)
  assert rates("mine") == {"small": 10, "middle": 40, "large": 50}


def test_fewer_examples_are_used_where_there_are_too_many(datasets, tmp_path):
  mixture = Mixture("mine", {"small": None, "large": None}, max_examples=20)
  small, large = training_tasks(mixture, tmp_path / "cache")
  assert (small.available, small.examples, small.rate) == (10, 10, 10)
  assert (large.available, large.examples, large.rate) == (60, 20, 20)


def test_clusters_are_left_out_by_name_and_with_them_what_gives_them_away(datasets, make_dataset):
  make_dataset("other", 20, "c", splits=EVERYTHING)
  register_mixture("all", ["small", "middle", "large", "other"], together=[("c", "b")])
  for mixture in (leave_out("all", "b"), "all without b"):
    assert training_datasets(mixture) == ["small", "middle"]
    assert held_out_datasets(mixture) == ["large", "other"]
  assert get_mixture("all without b") == leave_out("all", "b")
  assert training_datasets("all without a") == ["large", "other"]
  assert training_datasets("all without a , c") == []
  with pytest.raises(UnknownName, match="unknown cluster 'd'. .*It is to be left out of all."):
    get_mixture("all without a, d")
  with pytest.raises(UnknownName, match="unknown mixture 'al'. Did you mean 'all'"):
    get_mixture("al without a")
  with pytest.raises(ConfigError, match="'a without b' has ' without ' in it"):
    register_mixture("a without b", ["small"])


@pytest.fixture
def without_cloze(datasets, make_dataset, tmp_path):
  """A mixture of which one dataset has to be asked for by mail; the folder where it would be is empty."""
  source = {"tfds": "story_cloze/2016:1.0.0", "data_dir": str(tmp_path)}
  make_dataset("cloze", source=source, splits={"train": "validation", "test": "test"})
  return register_mixture("three", {"small": None, "cloze": 2.0, "large": None})


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_that_cannot_be_had_stops_nothing_that_does_not_need_it(without_cloze, tmp_path):
  tasks = {task.name: task for task in training_tasks("three", tmp_path / "cache")}
  assert {name: task.share for name, task in tasks.items()} == {
    "small": pytest.approx(1 / 7),
    "cloze": 0,
    "large": pytest.approx(6 / 7),
  }
  assert "TFDS cannot prepare story_cloze/2016:1.0.0: Manual" in tasks["cloze"].missing
  assert [tasks[name].status for name in ("small", "cloze")] == ["prepared", "missing"]
  with pytest.raises(SourceError, match="TFDS cannot prepare story_cloze"):
    training_tasks("three", tmp_path / "cache", strict=True)
  with pytest.raises(SourceError, match="nothing of the mixture 'cloze' can be had. TFDS cannot"):
    training_tasks("cloze", tmp_path / "cache")


def test_a_number_multiplies_a_rate_and_a_percentage_fixes_a_share(rates, shares):
  assert rates(Mixture("m", {"small": 2.0, "large": None})) == {"small": 20, "large": 60}
  fixed = Mixture("m", {"small": "30%", "middle": None, "large": None})
  assert shares(fixed) == {"small": 0.3, "middle": 0.7 * 0.4, "large": 0.7 * 0.6}
  assert shares(Mixture("m", {"small": "75%", "large": "25%"})) == {"small": 0.75, "large": 0.25}


def test_every_template_counts_where_a_mixture_says_so_and_unseen_ones_never(rates):
  drawn = len(dataset_spec("small").training_templates())
  assert 1 < drawn < len(dataset_spec("small").templates)
  mixture = Mixture(
    "m", {"small": None, "middle": 2.0, "large": None}, rate_cap=40, per_template=True
  )
  shared = 40 // drawn * drawn  # large has 60
  assert rates(mixture) == {"small": 10 * drawn, "middle": 2 * 40 * drawn, "large": shared}


def test_the_share_of_what_is_held_out_goes_to_the_others_in_proportion(shares):
  members = {"small": "20%", "middle": None, "large": "50%"}
  assert shares(Mixture("m", members, hold_out=("b",))) == {"small": 0.4, "middle": 0.6}
  assert shares(Mixture("m", {"small": "20%", "large": None}, hold_out=("b",))) == {"small": 1}


def test_some_clusters_alone_are_kept_by_name(datasets, make_dataset):
  make_dataset("other", 20, "c", splits=EVERYTHING)
  register_mixture("each", ["small", "large", "other"], together=[("a", "b")])
  for mixture in (keep_only("each", "a"), "each only a"):
    assert (training_datasets(mixture), held_out_datasets(mixture)) == (
      ["small"],
      ["large", "other"],
    )
  assert get_mixture("each only a, b") == keep_only("each", "a", "b")
  assert training_datasets("each only a, c without c") == ["small"]
  assert training_datasets("each without c only a, c") == ["small"]
  assert training_datasets("each only a, b, c without a") == ["other"]
  assert training_datasets("each without a only b, c") == ["other"]
  with pytest.raises(ConfigError, match="'each only a' keeps none of b"):
    get_mixture("each only a only b")
  with pytest.raises(UnknownName, match="cluster 'd'.*It is to be kept of each"):
    get_mixture("each only a, d")


def test_a_mixture_within_a_mixture_keeps_its_own_caps(rates, shares):
  register_mixture("inner", ["small", "middle"], rate_cap=5)
  assert rates(Mixture("m", {"inner": 2.0, "large": None})) == {
    "small": 10,
    "middle": 10,
    "large": 60,
  }
  assert shares(Mixture("m", {"inner": "50%", "large": None}))["small"] == 0.25
  assert rates(Mixture("m", {"inner": None, "small": None})) == {"small": 15, "middle": 5}


def test_held_out_clusters_are_kept_out_wherever_they_stand(datasets, tmp_path):
  register_mixture("inner", ["middle", "large"], hold_out=["b"])
  mixture = Mixture("m", {"small": None, "inner": None})
  assert training_datasets(mixture) == ["small", "middle"]
  assert held_out_datasets(mixture) == ["large"]
  tasks = mixture_tasks(mixture, tmp_path / "cache")
  assert [(task.name, task.held_out, task.rate > 0) for task in tasks] == [
    ("small", False, True),
    ("middle", False, True),
    ("large", True, False),
  ]
  assert sum(task.share for task in tasks) == pytest.approx(1)


@pytest.mark.parametrize(
  ("settings", "error", "message"),
  [
    ({"datasets": {"smal": None}}, UnknownName, "dataset, text or mixture 'smal'.*'small'"),
    (
      {"datasets": {"small": None}, "hold_out": ("aa",)},
      UnknownName,
      "cluster 'aa'.*'a'.*m holds it out",
    ),
    (
      {"datasets": {"small": None, "large": None}, "together": (("a", "bb"),)},
      UnknownName,
      "cluster 'bb'.*held out together",
    ),
    ({"datasets": {"small": float("inf")}}, ConfigError, "the weight of 'small' is inf"),
    ({"datasets": {"small": None}, "temperature": 1e-3}, ConfigError, "a number of 0.1 or more"),
    ({"datasets": {"small": None}, "max_examples": "many"}, ConfigError, "a whole number above 0"),
    ({"datasets": {"large": None}, "hold_out": ("b",)}, ConfigError, "nothing to train on"),
    ({"datasets": {"small": "60%", "large": "60%"}}, ConfigError, "120% and do not make a whole"),
    ({"datasets": {"small": "100%", "large": None}}, ConfigError, "leave nothing for large"),
  ],
)
def test_a_mixture_that_cannot_be_mixed_is_refused(datasets, settings, error, message, tmp_path):
  with pytest.raises(error, match=message):
    training_tasks(Mixture(name="m", **settings), tmp_path / "cache")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"datasets": {}}, "has no datasets"),
    ({"datasets": {"a": 0}}, "the weight of 'a' is 0"),
    ({"datasets": {"a": "half"}}, "the weight of 'a' is 'half'"),
    ({"datasets": ["a"], "temperature": 0}, "temperature is 0"),
    ({"datasets": ["a"], "rate_cap": -1}, "rate_cap is -1"),
    ({"datasets": ["a"], "hold_out": "b"}, "must be a list of names"),
  ],
)
def test_settings_out_of_range_are_refused_on_registration(settings, message):
  with pytest.raises(ConfigError, match=message):
    register_mixture("m", **settings)


def test_mixtures_that_contain_each_other_are_refused(datasets, tmp_path):
  register_mixture("x", ["y"])
  register_mixture("y", ["x"])
  with pytest.raises(ConfigError, match="x > y > x"):
    training_tasks("x", tmp_path / "cache")


def test_names_are_defined_once(datasets, make_dataset, tmp_path):
  register_mixture("mine", ["small"])
  register_mixture("mine", ["small"])
  with pytest.raises(ConfigError, match="'mine' is registered already"):
    register_mixture("mine", ["large"])
  other = tmp_path / "other" / "a"
  other.mkdir(parents=True)
  (other / "small.yaml").write_text("")
  with pytest.raises(ConfigError, match="'small' is described twice"):
    register_templates(tmp_path / "other")


def test_unknown_names_name_the_nearest(datasets):
  with pytest.raises(UnknownName, match="mixture 'mnii'.*'mini'"):
    get_mixture("mnii")
  with pytest.raises(UnknownName, match="dataset 'larg'.*'large'"):
    dataset_spec("larg")
  with pytest.raises(ConfigError, match="neither a dataset file nor a folder of them"):
    register_templates("/nowhere/at/all")


def test_a_dataset_is_a_mixture_of_its_own(datasets):
  assert training_datasets("small") == ["small"]


def test_a_description_tells_what_a_run_will_see(datasets, tmp_path):
  mixture = Mixture("m", {"small": None, "middle": None, "large": None}, hold_out=("b",))
  rows = {row.task.name: row for row in describe(mixture, tmp_path / "cache", draws=100)}
  assert rows["small"].passes == pytest.approx(100 * 0.2 / 10)
  assert rows["large"].passes == 0
  assert rows["small"].templates == ("ask", "answer_with")
  assert rows["small"].unseen == ("kept_back",)
  assert rows["small"].licence == "CC0-1.0"
  assert rows["small"].source == "files small.jsonl"


def test_importing_the_library_registers_nothing_and_loads_no_tensorflow():
  code = (
    "import sys, flan_jax.data, flan_jax.data.mixtures as m\n"
    "assert all(callable(getattr(flan_jax.data, name)) for name in flan_jax.data.__all__)\n"
    "assert not m._mixtures, m._mixtures\n"
    "assert 'mini' in m.mixture_names()\n"
    "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'torch', 'jax'} & set(sys.modules)\n"
    "assert not heavy, heavy\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
