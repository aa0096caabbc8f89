"""What XLA compiles is kept for the next process."""

import jax

from flan_jax.data.home import data_home


def keep_compiled() -> None:
  """Lets JAX keep it in the data home, unless JAX_COMPILATION_CACHE_DIR names another place.

  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. What takes less than a second to compile is not kept.
  """
  if jax.config.values["jax_compilation_cache_dir"] is None:
    jax.config.update("jax_compilation_cache_dir", str(data_home() / "compiled"))
