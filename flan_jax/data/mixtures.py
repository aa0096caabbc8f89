"""Mixtures: which datasets are trained on, by which rates, which clusters are held out.

Nothing is registered by importing the library. Asking for a name imports the modules of
`flan_jax.mixtures`; a dataset file is read when its dataset is asked for. A user adds to both:

```python
from flan_jax.data import register_mixture, register_templates

register_templates("my_templates")  # <cluster>/<dataset>.yaml
register_mixture("mine", {"mini_short": None, "faq": 2.0})
```

Wherever a mixture is named, "mini without topic, stress" is the one that trains on neither cluster, and
"mini only topic, stress" the one that trains on nothing else.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flan_jax.data.library import dataset_file, dataset_files, dataset_spec, import_library
from flan_jax.data.texts import CLUSTER, registered_texts
from flan_jax.errors import ConfigError, UnknownName

WITHOUT, ONLY = " without ", " only "
"""Between the name of a mixture and the clusters that are left out of it, or that alone are kept."""

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
    per_template: each template that training draws counts as a dataset of its own, as T0 mixes (Sanh et al. 2022,
      section 5): a dataset's rate is that of its examples times its templates, except that more examples than
      rate_cap share that between the templates.
    hold_out: clusters that are kept out of training wherever they stand, also in mixtures within this one.
    together: clusters that give each other away; with one of such a group all of it is held out.
    only: the clusters that are trained on, and all others held out; () for no such choice.
    groups: other names for clusters, or for several at once, wherever some are chosen by name.
  """

  name: str
  datasets: Mapping[str, Weight]
  max_examples: int = 30_000
  rate_cap: int = 3_000
  temperature: float = 1.0
  hold_out: tuple[str, ...] = ()
  together: tuple[tuple[str, ...], ...] = ()
  per_template: bool = False
  only: tuple[str, ...] = ()
  groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

  def __post_init__(self):
    if not self.datasets:
      raise ConfigError(f"the mixture {self.name!r} has no datasets.")
    for setting in ("max_examples", "rate_cap"):
      value = getattr(self, setting)
      if not isinstance(value, int) or value < 1:
        raise ConfigError(
          f"the mixture {self.name!r}: {setting} is {value!r}; it must be a whole number above 0."
        )
    if not isinstance(self.temperature, int | float) or not 0.1 <= self.temperature < math.inf:
      raise ConfigError(
        f"the mixture {self.name!r}: temperature is {self.temperature!r}; it must be a number of 0.1 or more."
      )
    for member, weight in self.datasets.items():
      multiplier_and_share(self.name, member, weight)

  def rate(self, examples: int, templates: int = 1) -> float:
    """The rate of a dataset with so many training examples and templates that training draws."""
    used = min(examples, self.max_examples)
    if not self.per_template:
      templates, counted = 1, min(used, self.rate_cap)
    else:
      counted = used if used <= self.rate_cap else max(self.rate_cap // templates, 1)
    return templates * counted ** (1.0 / self.temperature)


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
  per_template: bool = False,
  groups: Mapping[str, Iterable[str]] | None = None,
) -> Mixture:
  """Defines a mixture; see `Mixture` for the arguments. The names are looked up when it is used.

  Raises:
    ConfigError: another mixture has this name, or a setting is out of range.
  """
  if not isinstance(datasets, Mapping):
    datasets = dict.fromkeys(_names(datasets, "datasets"))
  for word in (WITHOUT, ONLY):
    if word in name:
      raise ConfigError(f"the mixture name {name!r} has {word!r} in it, which chooses clusters.")
  mixture = Mixture(
    name,
    dict(datasets),
    max_examples,
    rate_cap,
    temperature,
    _names(hold_out, "hold_out"),
    tuple(_names(group, "together") for group in together),
    per_template,
    groups={name: _names(clusters, "groups") for name, clusters in (groups or {}).items()},
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
  mixture = as_mixture(mixture)
  name = f"{mixture.name}{WITHOUT}{', '.join(clusters)}"
  out = _clusters(mixture, clusters, "left out of")
  return replace(mixture, name=name, hold_out=(*mixture.hold_out, *out))


def keep_only(mixture: Mixture | str, *clusters: str) -> Mixture:
  """A mixture of which only some clusters are trained on, to see what their number does.

  Its name, "flan2021 only summarisation, translation", can be asked for like any other. What is
  together with one of them is held out like all others, although it gives something away.

  Raises:
    UnknownName: the mixture has no such cluster.
    ConfigError: only others of its clusters are kept already.
  """
  mixture = as_mixture(mixture)
  chosen = _clusters(mixture, clusters, "kept of")
  kept = tuple(cluster for cluster in chosen if cluster in (mixture.only or chosen))
  if not kept:
    raise ConfigError(f"{mixture.name!r} keeps none of {', '.join(clusters)}.")
  return replace(mixture, name=f"{mixture.name}{ONLY}{', '.join(clusters)}", only=kept)


def get_mixture(name: str) -> Mixture:
  """The mixture of this name; a dataset's or text's name gives the mixture of that alone.

  Raises:
    UnknownName: there is neither.
  """
  # The last choice is made last: "flan2021 only sentiment, topic without topic".
  if choice := re.fullmatch(f"(.*)({WITHOUT}|{ONLY})(.*)", name):
    whole, word, clusters = choice.groups()
    choose = leave_out if word == WITHOUT else keep_only
    return choose(whole, *re.split(r"\s*,\s*", clusters.strip()))
  if name not in known_names():
    hint = "A user's own are known once their module is imported."
    raise UnknownName("mixture", name, known_names(), hint)
  return _mixtures[name] if name in _mixtures else Mixture(name, {name: None})


def is_known(name: str) -> bool:
  """Whether `get_mixture` takes it, be its clusters right or wrong."""
  return re.split(f"{WITHOUT}|{ONLY}", name)[0] in known_names()


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
    for name, held_out in clusters_held_out(as_mixture(mixture))
    if not held_out and name not in registered_texts()
  ]


def held_out_datasets(mixture: Mixture | str) -> list[str]:
  """The names of the datasets in held-out clusters, without looking at their data."""
  return [name for name, held_out in clusters_held_out(as_mixture(mixture)) if held_out]


def clusters_held_out(mixture: Mixture) -> list[tuple[str, bool]]:
  """Every dataset below a mixture, once, and whether its cluster is held out."""
  names: dict[str, None] = {}
  hold_out: dict[str, str] = {}
  together: list[tuple[str, ...]] = []
  for inner in mixtures_within(mixture):
    names.update(dict.fromkeys(name for name in inner.datasets if not is_mixture(name)))
    hold_out.update(dict.fromkeys(inner.hold_out, inner.name))
    together += inner.together
  clusters = {name: cluster_of(name) for name in names}
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
  for cluster in {cluster for group in together for cluster in group}:
    if cluster not in clusters.values():
      hint = f"In the mixture {mixture.name} it is to be held out together with others."
      raise UnknownName("cluster", cluster, clusters.values(), hint)
  out = {*hold_out}.union(*(group for group in together if {*hold_out} & {*group}))
  if mixture.only:
    out |= {*clusters.values()} - {*mixture.only}
  return [(name, cluster in out) for name, cluster in clusters.items()]


def _clusters(mixture: Mixture, names: Iterable[str], purpose: str) -> tuple[str, ...]:
  """The clusters that are named, by their own names or by those of groups."""
  clusters = {cluster_of(dataset) for dataset, _ in clusters_held_out(mixture)}
  known: dict[str, tuple[str, ...]] = {cluster: (cluster,) for cluster in clusters}
  for inner in mixtures_within(mixture):
    known |= inner.groups
  for name in names:
    if name not in known:
      raise UnknownName("cluster", name, known, f"It is to be {purpose} {mixture.name}.")
  return tuple(dict.fromkeys(cluster for name in names for cluster in known[name]))


def mixtures_within(mixture: Mixture, above: tuple[str, ...] = ()) -> Iterator[Mixture]:
  """The mixture and those within it, the outer ones first; one may come twice."""
  if mixture.name in above:
    raise ConfigError(f"mixtures contain each other: {' > '.join([*above, mixture.name])}.")
  yield mixture
  for member in mixture.datasets:
    if is_mixture(member):
      yield from mixtures_within(get_mixture(member), (*above, mixture.name))


def is_mixture(name: str) -> bool:
  """Whether a member is a mixture itself."""
  import_library()
  if name in _mixtures:
    if path := dataset_file(name):
      raise ConfigError(f"{name!r} is both a mixture and a dataset ({path}).")
    return True
  if dataset_file(name) is None and name not in registered_texts():
    known = [*dataset_files(), *registered_texts(), *_mixtures]
    raise UnknownName("dataset, text or mixture", name, known)
  return False


def as_mixture(mixture: Mixture | str) -> Mixture:
  """A mixture, or the one of this name."""
  return get_mixture(mixture) if isinstance(mixture, str) else mixture


def multiplier_and_share(name: str, member: str, weight: Weight) -> tuple[float, float | None]:
  """What a weight in the mixture `name` says: a factor of the rate, and a share that is fixed or None."""
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
  elif isinstance(weight, int | float) and 0 < weight < math.inf:
    return float(weight), None
  raise ConfigError(
    f"the mixture {name!r}: the weight of {member!r} is {weight!r}; it must be None, a number above "
    '0, or a share such as "30%".'
  )


def _names(names: Iterable[str], setting: str) -> tuple[str, ...]:
  if isinstance(names, str):
    raise ConfigError(f"{setting} is {names!r}; it must be a list of names.")
  return tuple(names)


def cluster_of(name: str) -> str:
  """The cluster of a dataset; one of its own for raw texts."""
  return CLUSTER if name in registered_texts() else dataset_spec(name).cluster
