"""Logs of one JSON object a line, whose last line a kill may have left unfinished."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flan_jax.errors import StorageError


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
  """The lines of a log.

  Raises:
    StorageError: another line than the last is damaged.
  """
  lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
  for number, line in enumerate(lines, start=1):
    try:
      if line:
        yield json.loads(line)
    except json.JSONDecodeError:
      if number < len(lines):
        raise StorageError(
          f"{path}:{number} is damaged: mend the line, or move the file away to go on without it."
        ) from None
