"""Where archives, records and prepared stores are kept between runs."""

import os
from pathlib import Path


def data_home() -> Path:
  """The folder named by FLAN_JAX_HOME, else `~/.cache/flan_jax`."""
  return Path(os.environ.get("FLAN_JAX_HOME") or Path.home() / ".cache" / "flan_jax").expanduser()
