"""Eight CPU devices for every test, set once before any JAX computation; what is compiled is kept for the next test."""

from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
  "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache/compiled")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
