"""What is different between two locks of mixtures, dataset by dataset, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from flan_jax.data.source_words import in_words

_NOTHING = "nothing"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[str]]:
  """What changed from one lock to another; {} where nothing did.

  Returns:
    Lines by dataset, those of the mixture itself under "". A dataset that only one of the two has gets the
    one line "added, ..." or "removed, ...".
  """
  found = {"": list(_settings(before, after))}
  old, new = before["datasets"], after["datasets"]
  for name in {**old, **new}:
    if name not in old:
      found[name] = [f"added, {_place(new[name])}"]
    elif name not in new:
      found[name] = [f"removed, {_place(old[name])}"]
    else:
      found[name] = list(_dataset(old[name], new[name]))
  if not any(found.values()) and before["hash"] != after["hash"]:
    found[""] = ["the same, written otherwise"]
  return {name: lines for name, lines in found.items() if lines}


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
  apart = ("hash", "datasets")
  old, new = (
    {key: value for key, value in lock.items() if key not in apart} for lock in (before, after)
  )
  yield from _differing(old, new)


def _dataset(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
  """The lines of a dataset that both have, what it is before its place in the mixture."""
  old, new = dict(before), dict(after)
  templates = old.pop("templates", {}), new.pop("templates", {})
  sources = old.pop("source", None), new.pop("source", None)
  shares = old.pop("share"), new.pop("share")
  for each in (old, new):
    del each["passes"]  # follow from the share
  if sources[0] != sources[1]:
    words = [in_words(source) if source else _NOTHING for source in sources]
    yield f"source: {words[0]} -> {words[1]}" + (
      "" if words[0] != words[1] else " (with other settings)"
    )
  yield from _differing(old, new)
  yield from _templates(*templates)
  if shares[0] != shares[1]:
    yield f"share: {shares[0]:.2%} -> {shares[1]:.2%}"


def _templates(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
  reworded = [name for name in before if name in after and before[name] != after[name]]
  for what, names in {
    "added": [name for name in after if name not in before],
    "removed": [name for name in before if name not in after],
    "reworded": reworded,
  }.items():
    if names:
      yield f"templates {what}: {', '.join(names)}"
  yield from _reordered(before, after, "templates")


def _differing(before: Any, after: Any, path: str = "") -> Iterator[str]:
  """Every value that is not the same, under the names that lead to it."""
  if all(value is None or isinstance(value, Mapping) for value in (before, after)):
    old, new = before or {}, after or {}
    for key in {**old, **new}:
      yield from _differing(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    yield from _reordered(old, new, path)
  elif before != after:
    yield f"{path}: {_shown(before)} -> {_shown(after)}"


def _reordered(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> Iterator[str]:
  """Whether the names that both have stand in another order, which decides draws or how options are shown."""
  if [key for key in before if key in after] != [key for key in after if key in before]:
    yield f"{path}: in another order"


def _shown(value: Any) -> str:
  if value is None or value in ("", [], {}):
    return _NOTHING
  if isinstance(value, float | int) and not isinstance(value, bool):
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
  if isinstance(value, list):
    return ", ".join(map(_shown, value))
  text = str(value)
  return text[:12] if len(text) == 64 and text.isalnum() else text


def _place(dataset: Mapping[str, Any]) -> str:
  if dataset["missing"]:
    return "missing"
  if dataset["held_out"]:
    return f"held out with {dataset['cluster']}"
  return f"{dataset['examples']:,} examples, share {dataset['share']:.2%}"
