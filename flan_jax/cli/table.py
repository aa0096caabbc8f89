"""A table on the terminal."""

from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """The rows below the header, each column as wide as its widest cell."""
  widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
  for row in [header, *rows]:
    print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
