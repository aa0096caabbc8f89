"""Eight CPU devices for every test, set once before any JAX computation."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
