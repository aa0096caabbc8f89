"""Stored examples as lines to read: where each comes from, what is read and what is to be written."""

from collections.abc import Iterable, Iterator

from flan_jax.data.store import Store
from flan_jax.data.windows import Provenance


def told_rows(store: Store, rows: Iterable[int]) -> Iterator[str]:
  """The lines of every example of some rows."""
  for row in rows:
    for place, (provenance, example) in enumerate(
      zip(store.provenance(row), store.row(row), strict=True)
    ):
      yield from told_example(row, place, provenance, *store.texts(example))


def told_example(
  row: int, place: int, provenance: Provenance, read: str, written: str
) -> list[str]:
  """A line about the example, its text behind `|` and `>`, and an empty line."""
  about = f"row {row}, example {place}: {_told(provenance)}"
  return [about, *_quoted("|", read), *_quoted(">", written), ""]


def _told(provenance: Provenance) -> str:
  words = [f"{provenance.dataset} {provenance.split} {provenance.index}"]
  words += [f"template {provenance.template}"] if provenance.template else []
  words += [f"options {provenance.style}"] if provenance.style != "none" else []
  words += [f"epoch {provenance.epoch}", f"seed {provenance.seed}"]
  if provenance.exemplars:
    words.append(f"after {', '.join(map(str, provenance.exemplars))}")
  return "; ".join(words)


def _quoted(mark: str, text: str) -> list[str]:
  return [f"  {mark} {line}".rstrip() for line in text.split("\n")] if text else []
