"""Mixtures: which datasets are trained on, how often each is drawn, which clusters are held out.

Nothing is registered by importing the library. Asking for a name imports the modules of
`flan_jax.mixtures`; a dataset file is read when its dataset is asked for. A user adds to both:

```python
from flan_jax.data import register_mixture, register_templates

register_templates("my_templates")  # <cluster>/<dataset>.yaml
register_mixture("mine", {"mini_short": None, "faq": 2.0})
```
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import flan_jax
from flan_jax.data.records import RecordCounts, RecordSplits, load_records
from flan_jax.errors import ConfigError, UnknownName
from flan_jax.prompting import DatasetSpec, read_dataset

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
    datasets: dataset or mixture -> weight. None takes the rate as it is, a number multiplies it,
      a text such as "30%" fixes the member's share of this mixture and leaves the rest to the others.
    max_examples: at most so many training examples of a dataset are used, drawn by hash.
    rate_cap: examples beyond it do not raise a dataset's rate.
    temperature: above 1 evens the rates out.
    hold_out: clusters that are kept out of training wherever they stand, also in mixtures within this one.
  """

  name: str
  datasets: Mapping[str, Weight]
  max_examples: int = 30_000
  rate_cap: int = 3_000
  temperature: float = 1.0
  hold_out: tuple[str, ...] = ()

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
  """One dataset of a mixture.

  Attributes:
    name: of the dataset.
    cluster: its task cluster.
    held_out: kept out of training; its rate and share are then 0.
    available: records in its training split.
    examples: how many of them training uses: the first ones of the split, whose order is hashed.
    cap: examples beyond it did not raise the rate.
    rate: how often it is drawn, against the other rates.
    share: the rate as a fraction of the sum of all.
  """

  name: str
  cluster: str
  held_out: bool
  available: int
  examples: int
  cap: int
  rate: float
  share: float


@dataclass(frozen=True)
class TaskDescription:
  """What is printed about a dataset before a run.

  Attributes:
    task: the dataset's place in the mixture.
    passes: expected passes over its examples.
    templates: names of the templates that training draws.
    unseen: names of the templates kept for evaluation.
    licence: of the data.
    counts: what became of its raw records.
  """

  task: MixtureTask
  passes: float
  templates: tuple[str, ...]
  unseen: tuple[str, ...]
  licence: str
  counts: RecordCounts


_mixtures: dict[str, Mixture] = {}
_template_folders: list[Path] = []


def register_mixture(
  name: str,
  datasets: Mapping[str, Weight] | Iterable[str],
  *,
  max_examples: int = 30_000,
  rate_cap: int = 3_000,
  temperature: float = 1.0,
  hold_out: Iterable[str] = (),
) -> Mixture:
  """Defines a mixture; see `Mixture` for the arguments. The names are looked up when it is used.

  Raises:
    ConfigError: another mixture has this name, or a setting is out of range.
  """
  if not isinstance(datasets, Mapping):
    datasets = dict.fromkeys(_names(datasets, "datasets"))
  mixture = Mixture(
    name, dict(datasets), max_examples, rate_cap, temperature, _names(hold_out, "hold_out")
  )
  if _mixtures.setdefault(name, mixture) != mixture:
    raise ConfigError(f"a mixture named {name!r} is registered already, with other settings.")
  return mixture


def register_templates(directory: Path | str) -> None:
  """Makes known the dataset files `directory/<cluster>/<dataset>.yaml`. None is read yet.

  Raises:
    ConfigError: there is no such folder, no file in it, or a dataset of that name elsewhere.
  """
  directory = Path(directory).expanduser().resolve()
  if directory in _template_folders:
    return
  files = _dataset_files(directory)
  if not files:
    raise ConfigError(f"{directory} holds no dataset file; expected <cluster>/<dataset>.yaml.")
  known = _all_files()
  for name, path in files.items():
    if name in known:
      raise ConfigError(f"the dataset {name!r} is described twice: {known[name]} and {path}.")
  _template_folders.append(directory)


def get_mixture(name: str) -> Mixture:
  """The mixture of this name; a dataset's name gives the mixture of that dataset alone.

  Raises:
    UnknownName: there is neither.
  """
  if name not in _mixtures:
    _import_library()
  if name in _mixtures:
    return _mixtures[name]
  files = _all_files()
  if name in files:
    return Mixture(name, {name: None})
  raise UnknownName(
    "mixture", name, [*_mixtures, *files], "A user's own are known once their module is imported."
  )


def mixture_names() -> list[str]:
  """Every mixture that is known."""
  _import_library()
  return sorted(_mixtures)


def dataset_names() -> list[str]:
  """Every dataset that has a file."""
  return sorted(_all_files())


def dataset_spec(name: str) -> DatasetSpec:
  """The dataset of this name, its file read and checked.

  Raises:
    UnknownName: no file has this name.
    TemplateError: the file is wrong.
  """
  files = _all_files()
  if name not in files:
    raise UnknownName("dataset", name, files, "`flan-jax templates` lists them.")
  path = files[name]
  return _read(path, path.stat().st_mtime_ns)


def training_datasets(mixture: Mixture | str) -> list[str]:
  """The names of the datasets that are trained on, without looking at their data."""
  return [name for name, held_out in _clusters_held_out(_mixture(mixture)) if not held_out]


def held_out_datasets(mixture: Mixture | str) -> list[str]:
  """The names of the datasets in held-out clusters, without looking at their data."""
  return [name for name, held_out in _clusters_held_out(_mixture(mixture)) if held_out]


def training_tasks(mixture: Mixture | str, data_dir: Path | str) -> list[MixtureTask]:
  """The datasets that are trained on, with their rates. Builds the records that are missing."""
  return [task for task in mixture_tasks(mixture, data_dir) if not task.held_out]


def held_out_tasks(mixture: Mixture | str, data_dir: Path | str) -> list[MixtureTask]:
  """The datasets in held-out clusters. Builds the records that are missing."""
  return [task for task in mixture_tasks(mixture, data_dir) if task.held_out]


def mixture_tasks(mixture: Mixture | str, data_dir: Path | str) -> list[MixtureTask]:
  """Every dataset of a mixture, those held out last. Builds the records that are missing.

  Raises:
    UnknownName: a member or a held-out cluster is unknown.
    ConfigError: nothing is left to train on, or the shares that are fixed leave nothing.
  """
  mixture = _mixture(mixture)
  held = dict(_clusters_held_out(mixture))
  sizes = {name: _training_size(load_records(dataset_spec(name), data_dir)) for name in held}
  for name, size in sizes.items():
    if not held[name] and not size:
      raise ConfigError(f"{dataset_spec(name).path}: {name} is trained on and has no train split.")
  leaves = _rates(mixture, sizes, {name for name, held_out in held.items() if not held_out})
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
        cluster=dataset_spec(name).cluster,
        held_out=held[name],
        available=sizes[name],
        examples=min(sizes[name], leaf.max_examples),
        cap=leaf.cap,
        rate=leaf.rate,
        share=leaf.rate / total,
      )
    )
  return tasks


def describe(mixture: Mixture | str, data_dir: Path | str, draws: int = 0) -> list[TaskDescription]:
  """What a run of so many draws will see of each dataset, those held out last."""
  rows = []
  for task in mixture_tasks(mixture, data_dir):
    spec = dataset_spec(task.name)
    rows.append(
      TaskDescription(
        task=task,
        passes=draws * task.share / task.examples if task.examples else 0.0,
        templates=tuple(template.name for template in spec.training_templates()),
        unseen=tuple(template.name for template in spec.templates if template.unseen),
        licence=spec.licence,
        counts=load_records(spec, data_dir).counts,
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
        f"the mixture {mixture.name!r} gives {member!r} the share {weight}, but it is held out."
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
  for inner in _below(mixture, ()):
    names.update(dict.fromkeys(name for name in inner.datasets if not _is_mixture(name)))
    hold_out.update(dict.fromkeys(inner.hold_out, inner.name))
  clusters = {name: dataset_spec(name).cluster for name in names}
  for cluster, holder in hold_out.items():
    if cluster not in clusters.values():
      hint = f"The mixture {holder} holds it out."
      raise UnknownName("cluster", cluster, clusters.values(), hint)
  return [(name, cluster in hold_out) for name, cluster in clusters.items()]


def _below(mixture: Mixture, above: tuple[str, ...]) -> Iterator[Mixture]:
  """The mixture and those within it."""
  if mixture.name in above:
    raise ConfigError(f"mixtures contain each other: {' > '.join([*above, mixture.name])}.")
  yield mixture
  for member in mixture.datasets:
    if _is_mixture(member):
      yield from _below(get_mixture(member), (*above, mixture.name))


def _is_mixture(name: str) -> bool:
  _import_library()
  if name in _mixtures:
    if name in _all_files():
      raise ConfigError(f"{name!r} is both a mixture and a dataset ({_all_files()[name]}).")
    return True
  if name not in _all_files():
    raise UnknownName("dataset or mixture", name, [*_all_files(), *_mixtures])
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


def _training_size(splits: RecordSplits) -> int:
  return splits.counts.kept.get("train", 0)


@cache
def _read(path: Path, changed_ns: int) -> DatasetSpec:
  del changed_ns
  return read_dataset(path)


def _all_files() -> dict[str, Path]:
  library = Path(flan_jax.__file__).parent / "templates"
  files: dict[str, Path] = {}
  for folder in (library, *_template_folders):
    files.update(_dataset_files(folder))
  return files


def _dataset_files(directory: Path) -> dict[str, Path]:
  if not directory.is_dir():
    raise ConfigError(f"{directory} is no folder of dataset files.")
  return {path.stem: path for path in sorted(directory.glob("*/*.yaml"))}


@cache
def _import_library() -> None:
  import flan_jax.mixtures

  for module in pkgutil.iter_modules(flan_jax.mixtures.__path__):
    importlib.import_module(f"flan_jax.mixtures.{module.name}")
