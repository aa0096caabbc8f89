"""Mixtures: which datasets are trained on, how often each is drawn, which clusters are held out.

Nothing is registered by importing the library. Asking for a name imports the modules of
`flan_jax.mixtures`; a dataset file is read when its dataset is asked for. A user adds to both:

```python
from flan_jax.data import register_mixture, register_templates

register_templates("my_templates")  # <cluster>/<dataset>.yaml
register_mixture("mine", {"mini_short": None, "faq": 2.0})
```

Wherever a mixture is named, "mini without topic, stress" is the one that trains on neither cluster.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flan_jax.data.library import dataset_files, dataset_spec, import_library
from flan_jax.data.records import load_records
from flan_jax.data.texts import CLUSTER, registered_texts
from flan_jax.errors import ConfigError, SourceError, UnknownName
from flan_jax.prompting import DatasetSpec

WITHOUT = " without "
"""Between the name of a mixture and the clusters that are left out of it."""

Weight = float | str | None
"""Of a member: None takes its rate as it is, a number multiplies it, "30%" fixes its share."""


@dataclass(frozen=True)
class Mixture:
  """Datasets and other mixtures, and how often each is drawn.

  A dataset's rate is min(training examples, max_examples, rate_cap) ** (1 / temperature): in
  proportion to its size up to a cap, as FLAN mixes (Wei et al. 2022, section 2.1), the cap applied
  before the temperature as in SeqIO. A mixture within a mixture keeps its own settings, and its
  rate is the sum of its datasets' rates.

  Attributes:
    name: how the mixture is asked for.
    datasets: dataset, text or mixture -> weight. None takes the rate as it is, a number multiplies it,
      a text such as "30%" fixes the member's share of this mixture and leaves the rest to the others.
    max_examples: at most so many training examples of a dataset are used, drawn by hash.
    rate_cap: examples beyond it do not raise a dataset's rate.
    temperature: above 1 evens the rates out.
    hold_out: clusters that are kept out of training wherever they stand, also in mixtures within this one.
    together: clusters that give each other away; with one of such a group all of it is held out.
  """

  name: str
  datasets: Mapping[str, Weight]
  max_examples: int = 30_000
  rate_cap: int = 3_000
  temperature: float = 1.0
  hold_out: tuple[str, ...] = ()
  together: tuple[tuple[str, ...], ...] = ()

  def __post_init__(self):
    if not self.datasets:
      raise ConfigError(f"the mixture {self.name!r} has no datasets.")
    for setting in ("max_examples", "rate_cap", "temperature"):
      value = getattr(self, setting)
      if not value > 0:
        raise ConfigError(f"the mixture {self.name!r}: {setting} is {value}; it must be above 0.")
    for member, weight in self.datasets.items():
      _multiplier_and_share(self.name, member, weight)

  def rate(self, examples: int) -> float:
    """The rate of a dataset with so many training examples."""
    return min(examples, self.max_examples, self.rate_cap) ** (1.0 / self.temperature)


@dataclass(frozen=True)
class MixtureTask:
  """One dataset of a mixture, or a raw text.

  Attributes:
    name: of the dataset or text.
    cluster: its task cluster; "raw_text".
    held_out: kept out of training; its rate and share are then 0.
    available: records in the split that is trained on; of a text, those of its datasets.
    examples: how many of them training uses: the first ones of the split, whose order is hashed.
    cap: examples beyond it did not raise the rate.
    rate: how often it is drawn, against the other rates.
    share: the rate as a fraction of the sum of all.
    missing: why its records cannot be had; its rate and share are then 0.
  """

  name: str
  cluster: str
  held_out: bool
  available: int
  examples: int
  cap: int
  rate: float
  share: float
  missing: str = ""


@dataclass(frozen=True)
class TaskDescription:
  """What is printed about a dataset before a run.

  Attributes:
    task: the dataset's place in the mixture.
    passes: expected passes over its examples.
    templates: names of the templates that training draws; of a text, its objective.
    unseen: names of the templates kept for evaluation.
    licence: of the data.
  """

  task: MixtureTask
  passes: float
  templates: tuple[str, ...]
  unseen: tuple[str, ...]
  licence: str


_mixtures: dict[str, Mixture] = {}


def register_mixture(
  name: str,
  datasets: Mapping[str, Weight] | Iterable[str],
  *,
  max_examples: int = 30_000,
  rate_cap: int = 3_000,
  temperature: float = 1.0,
  hold_out: Iterable[str] = (),
  together: Iterable[Iterable[str]] = (),
) -> Mixture:
  """Defines a mixture; see `Mixture` for the arguments. The names are looked up when it is used.

  Raises:
    ConfigError: another mixture has this name, or a setting is out of range.
  """
  if not isinstance(datasets, Mapping):
    datasets = dict.fromkeys(_names(datasets, "datasets"))
  if WITHOUT in name:
    raise ConfigError(
      f"the mixture name {name!r} has {WITHOUT!r} in it, which leaves clusters out."
    )
  mixture = Mixture(
    name,
    dict(datasets),
    max_examples,
    rate_cap,
    temperature,
    _names(hold_out, "hold_out"),
    tuple(_names(group, "together") for group in together),
  )
  if _mixtures.setdefault(name, mixture) != mixture:
    raise ConfigError(f"a mixture named {name!r} is registered already, with other settings.")
  return mixture


def leave_out(mixture: Mixture | str, *clusters: str) -> Mixture:
  """A mixture with more of its clusters held out, and with each those that give it away.

  Its name, "flan2021 without entailment", can be asked for like any other.

  Raises:
    UnknownName: the mixture has no such cluster.
  """
  mixture = _mixture(mixture)
  known = {_cluster(name) for name, _ in _clusters_held_out(mixture)}
  for cluster in clusters:
    if cluster not in known:
      raise UnknownName("cluster", cluster, known, f"It is to be left out of {mixture.name}.")
  name = f"{mixture.name}{WITHOUT}{', '.join(clusters)}"
  return replace(mixture, name=name, hold_out=(*mixture.hold_out, *clusters))


def get_mixture(name: str) -> Mixture:
  """The mixture of this name; a dataset's or text's name gives the mixture of that alone.

  Raises:
    UnknownName: there is neither.
  """
  name, without, clusters = name.partition(WITHOUT)
  if without:
    return leave_out(name, *re.split(r"\s*,\s*", clusters.strip()))
  if name not in known_names():
    hint = "A user's own are known once their module is imported."
    raise UnknownName("mixture", name, known_names(), hint)
  return _mixtures[name] if name in _mixtures else Mixture(name, {name: None})


def is_known(name: str) -> bool:
  """Whether `get_mixture` takes it, be its clusters right or wrong."""
  return name.partition(WITHOUT)[0] in known_names()


def known_names() -> list[str]:
  """What `get_mixture` takes, before clusters are left out: mixtures, datasets, texts."""
  return sorted({*mixture_names(), *dataset_files(), *registered_texts()})


def mixture_names() -> list[str]:
  """Every mixture that is known."""
  import_library()
  return sorted(_mixtures)


def training_datasets(mixture: Mixture | str) -> list[str]:
  """The names of the datasets that are trained on, without looking at their data."""
  return [
    name
    for name, held_out in _clusters_held_out(_mixture(mixture))
    if not held_out and name not in registered_texts()
  ]


def held_out_datasets(mixture: Mixture | str) -> list[str]:
  """The names of the datasets in held-out clusters, without looking at their data."""
  return [name for name, held_out in _clusters_held_out(_mixture(mixture)) if held_out]


def training_tasks(
  mixture: Mixture | str, data_dir: Path | str, split: str = "train", strict: bool = False
) -> list[MixtureTask]:
  """The datasets that are trained on, with their rates. Builds the records that are not there.

  Args:
    split: another one has the datasets that have such a split, at the rates that they are trained at.
    strict: see `mixture_tasks`; else those that cannot be had are there with a share of 0.

  Raises:
    UnknownName: none of them has the split; see also `mixture_tasks`.
  """
  tasks = [task for task in mixture_tasks(mixture, data_dir, strict) if not task.held_out]
  if split == "train":
    return tasks
  sizes = {task.name: _size(task.name, split, data_dir) for task in tasks if not task.missing}
  tasks = [task for task in tasks if sizes.get(task.name)]
  total = sum(task.rate for task in tasks)
  if not total:
    known = {split for name in sizes for split in _splits(name)}
    raise UnknownName(
      "split", split, known, f"They are those of the mixture {_mixture(mixture).name}."
    )
  return [
    replace(
      task,
      available=sizes[task.name],
      examples=min(sizes[task.name], task.examples),
      share=task.rate / total,
    )
    for task in tasks
  ]


def held_out_tasks(mixture: Mixture | str, data_dir: Path | str) -> list[MixtureTask]:
  """The datasets in held-out clusters. Builds the records that are not there."""
  return [task for task in mixture_tasks(mixture, data_dir) if task.held_out]


def mixture_tasks(
  mixture: Mixture | str, data_dir: Path | str, strict: bool = False
) -> list[MixtureTask]:
  """Every dataset of a mixture, those held out last. Builds the records that are not there.

  Args:
    strict: a dataset whose records cannot be had is an error; else it is told as missing.

  Raises:
    UnknownName: a member or a held-out cluster is unknown.
    ConfigError: nothing is left to train on, or the shares that are fixed leave nothing.
    SourceError: strict, and records cannot be had; or none of what is trained on can be.
  """
  mixture = _mixture(mixture)
  held = dict(_clusters_held_out(mixture))
  sizes: dict[str, int] = {}
  missing: dict[str, str] = {}
  for name in held:
    try:
      sizes[name] = _size(name, "train", data_dir)
    except SourceError as error:
      if strict:
        raise
      sizes[name], missing[name] = 0, str(error)
  trained = {name for name, held_out in held.items() if not held_out}
  for name in trained - missing.keys():
    if not sizes[name]:
      raise ConfigError(f"{name} is trained on and has no train split.")
  if trained and trained <= missing.keys():
    raise SourceError(
      f"nothing of the mixture {mixture.name!r} can be had. {missing[min(trained)]}"
    )
  leaves = _rates(mixture, sizes, trained - missing.keys())
  total = sum(leaf.rate for leaf in leaves.values())
  if not total > 0:
    raise ConfigError(
      f"the mixture {mixture.name!r} has nothing to train on: every cluster is held out."
    )
  tasks = []
  for name in sorted(held, key=lambda name: held[name]):
    leaf = leaves.get(name, _Leaf(0.0, mixture.max_examples, mixture.rate_cap))
    tasks.append(
      MixtureTask(
        name=name,
        cluster=_cluster(name),
        held_out=held[name],
        available=sizes[name],
        examples=min(sizes[name], leaf.max_examples) if name in dataset_files() else sizes[name],
        cap=leaf.cap,
        rate=leaf.rate,
        share=leaf.rate / total,
        missing=missing.get(name, ""),
      )
    )
  return tasks


def describe(
  mixture: Mixture | str, data_dir: Path | str, draws: int = 0, strict: bool = False
) -> list[TaskDescription]:
  """What a run of so many draws will see of each dataset, those held out last; see `mixture_tasks`."""
  rows = []
  for task in mixture_tasks(mixture, data_dir, strict):
    text = registered_texts().get(task.name)
    specs = _specs(task.name)
    templates = [template for spec in specs for template in spec.templates if not text]
    rows.append(
      TaskDescription(
        task=task,
        passes=draws * task.share / task.examples if task.examples else 0.0,
        templates=(text.objective.name,)
        if text
        else tuple(template.name for template in templates if not template.unseen),
        unseen=tuple(template.name for template in templates if template.unseen),
        licence="; ".join(dict.fromkeys(spec.licence for spec in specs)),
      )
    )
  return rows


@dataclass(frozen=True)
class _Leaf:
  """A dataset's rate, and the settings of the mixture that it stands in."""

  rate: float
  max_examples: int
  cap: int


def _rates(mixture: Mixture, sizes: Mapping[str, int], trained: set[str]) -> dict[str, _Leaf]:
  """The rates of the datasets below a mixture; one that is reached twice has the sum."""
  free: dict[str, dict[str, _Leaf]] = {}
  fixed: dict[str, tuple[float, dict[str, _Leaf]]] = {}
  for member, weight in mixture.datasets.items():
    multiplier, share = _multiplier_and_share(mixture.name, member, weight)
    leaves: dict[str, _Leaf] = {}
    if _is_mixture(member):
      leaves = _rates(get_mixture(member), sizes, trained)
    elif member in trained:
      rate = mixture.rate(sizes[member])
      leaves = {member: _Leaf(rate, mixture.max_examples, mixture.rate_cap)}
    if share is None:
      free[member] = _scaled(leaves, multiplier)
    elif leaves:
      fixed[member] = (share, leaves)
    else:
      raise ConfigError(
        f"the mixture {mixture.name!r} gives {member!r} the share {weight}, but it is held out or cannot be "
        "had."
      )
  total = _total(free)
  rest = 1.0 - sum(share for share, _ in fixed.values())
  if fixed and (rest <= 0 if total else abs(rest) > 1e-9):
    others = f"leave nothing for {', '.join(free)}" if total else "do not make a whole"
    raise ConfigError(
      f"the mixture {mixture.name!r}: the fixed shares add up to {1 - rest:.0%} and {others}."
    )
  # A fixed share is turned into a rate, measured by what the others have in all.
  unit = total / rest if total else 1.0
  groups = list(free.values())
  groups += [
    _scaled(leaves, share * unit / _total({member: leaves}))
    for member, (share, leaves) in fixed.items()
  ]
  return _merged(groups)


def _scaled(leaves: Mapping[str, _Leaf], factor: float) -> dict[str, _Leaf]:
  return {
    name: _Leaf(leaf.rate * factor, leaf.max_examples, leaf.cap) for name, leaf in leaves.items()
  }


def _total(groups: Mapping[str, Mapping[str, _Leaf]]) -> float:
  return sum(leaf.rate for leaves in groups.values() for leaf in leaves.values())


def _merged(groups: Iterable[Mapping[str, _Leaf]]) -> dict[str, _Leaf]:
  merged: dict[str, _Leaf] = {}
  for leaves in groups:
    for name, leaf in leaves.items():
      other = merged.get(name, _Leaf(0.0, 0, 0))
      merged[name] = _Leaf(
        leaf.rate + other.rate,
        max(leaf.max_examples, other.max_examples),
        max(leaf.cap, other.cap),
      )
  return merged


def _clusters_held_out(mixture: Mixture) -> list[tuple[str, bool]]:
  """Every dataset below a mixture, once, and whether its cluster is held out."""
  names: dict[str, None] = {}
  hold_out: dict[str, str] = {}
  together: list[tuple[str, ...]] = []
  for inner in _below(mixture, ()):
    names.update(dict.fromkeys(name for name in inner.datasets if not _is_mixture(name)))
    hold_out.update(dict.fromkeys(inner.hold_out, inner.name))
    together += inner.together
  clusters = {name: _cluster(name) for name in names}
  for name in clusters.keys() & registered_texts().keys():
    for dataset in registered_texts()[name].datasets:
      if (cluster := dataset_spec(dataset).cluster) in hold_out:
        raise ConfigError(
          f"the text {name!r} is made of {dataset}, whose cluster {cluster!r} is held out of the "
          f"mixture {mixture.name!r}: take it out of one of the two."
        )
  for cluster, holder in hold_out.items():
    if cluster not in clusters.values():
      hint = f"The mixture {holder} holds it out."
      raise UnknownName("cluster", cluster, clusters.values(), hint)
  out = set(hold_out)
  for group in together:
    out.update(group if out & set(group) else ())
  return [(name, cluster in out) for name, cluster in clusters.items()]


def _below(mixture: Mixture, above: tuple[str, ...]) -> Iterator[Mixture]:
  """The mixture and those within it."""
  if mixture.name in above:
    raise ConfigError(f"mixtures contain each other: {' > '.join([*above, mixture.name])}.")
  yield mixture
  for member in mixture.datasets:
    if _is_mixture(member):
      yield from _below(get_mixture(member), (*above, mixture.name))


def _is_mixture(name: str) -> bool:
  import_library()
  if name in _mixtures:
    if name in dataset_files():
      raise ConfigError(f"{name!r} is both a mixture and a dataset ({dataset_files()[name]}).")
    return True
  members = [*dataset_files(), *registered_texts()]
  if name not in members:
    raise UnknownName("dataset, text or mixture", name, [*members, *_mixtures])
  return False


def _mixture(mixture: Mixture | str) -> Mixture:
  return get_mixture(mixture) if isinstance(mixture, str) else mixture


def _multiplier_and_share(name: str, member: str, weight: Weight) -> tuple[float, float | None]:
  if weight is None:
    return 1.0, None
  if isinstance(weight, str):
    number, sign, rest = weight.partition("%")
    try:
      share = float(number) / 100
    except ValueError:
      share = 0.0
    if sign and not rest.strip() and 0 < share <= 1:
      return 1.0, share
  elif weight > 0:
    return float(weight), None
  raise ConfigError(
    f"the mixture {name!r}: the weight of {member!r} is {weight!r}; it must be None, a number above "
    '0, or a share such as "30%".'
  )


def _names(names: Iterable[str], setting: str) -> tuple[str, ...]:
  if isinstance(names, str):
    raise ConfigError(f"{setting} is {names!r}; it must be a list of names.")
  return tuple(names)


def _size(name: str, split: str, data_dir: Path | str) -> int:
  return sum(load_records(spec, data_dir).counts.kept.get(split, 0) for spec in _specs(name))


def _splits(name: str) -> list[str]:
  return [split for spec in _specs(name) for split in spec.splits]


def _specs(name: str) -> list[DatasetSpec]:
  """What a dataset or a text is made of."""
  text = registered_texts().get(name)
  return [dataset_spec(dataset) for dataset in (text.datasets if text else (name,))]


def _cluster(name: str) -> str:
  return CLUSTER if name in registered_texts() else dataset_spec(name).cluster
