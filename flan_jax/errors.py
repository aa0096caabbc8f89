"""Mistakes that a user can mend, one exception type per kind.

Every message names the thing that is wrong, where it stands, the nearest valid names, and what to do.
The command line prints the message alone, without a traceback, and exits with status 2.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class FlanJaxError(Exception):
  """A mistake that the user can mend."""


class ConfigError(FlanJaxError):
  """A setting that cannot be obeyed."""


class TemplateError(FlanJaxError):
  """A dataset file or one of its templates is wrong."""


class RecordError(FlanJaxError):
  """A record of a source cannot be read or does not have the declared fields."""


class SourceError(FlanJaxError):
  """The records of a dataset cannot be had where they should come from."""


class ArchiveError(SourceError):
  """A downloaded archive is not the one that was asked for."""


class NetworkError(SourceError):
  """Something has to be downloaded and cannot be."""


class VocabularyError(FlanJaxError):
  """A vocabulary does not fit the model or the text."""


class CheckpointError(FlanJaxError):
  """A checkpoint is missing, torn, or belongs to another model."""


class MeshError(FlanJaxError):
  """A mesh does not divide the devices or the batch."""


class StorageError(FlanJaxError):
  """The disk refused a write."""


class TrainingError(FlanJaxError):
  """Training goes nowhere: its steps are skipped."""


class EvaluationError(FlanJaxError):
  """An evaluation that was asked for cannot be scored."""


class UnknownName(FlanJaxError):
  """A name that nothing is registered under.

  Args:
    kind: what the name should have been, such as "mixture" or "template".
    name: the name that was given.
    known: every valid name.
    hint: what to do about it, one sentence.
  """

  def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = ""):
    self.kind, self.name, self.known = kind, name, sorted(set(known))
    super().__init__(
      " ".join(filter(None, [f"unknown {kind} {name!r}.", self._suggestion(), hint]))
    )

  def _suggestion(self) -> str:
    close = nearest(self.name, self.known)
    if close:
      return "Did you mean " + " or ".join(map(repr, close)) + "?"
    if not self.known:
      return f"No {self.kind} is known."
    shown = ", ".join(self.known[:12])
    return f"Known: {shown}{', ...' if len(self.known) > 12 else ''}."


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
  """Where what was found is not what is wanted, as "seed: 1, not 0"."""
  return [
    f"{name}: {found.get(name)!r}, not {value!r}"
    for name, value in wanted.items()
    if found.get(name) != value
  ]


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
  """The valid names that look most like `name`, best first; empty when none is close."""
  return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)
