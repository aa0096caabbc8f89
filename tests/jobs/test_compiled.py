"""What is compiled is kept in the data home, where nobody says otherwise."""

import jax
import pytest

from flan_jax.jobs.compiled import keep_compiled


@pytest.fixture
def place():
  before = jax.config.jax_compilation_cache_dir
  yield lambda: jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", before)


def test_it_is_kept_in_the_data_home(place, tmp_path, monkeypatch):
  monkeypatch.setenv("FLAN_JAX_HOME", str(tmp_path))
  jax.config.update("jax_compilation_cache_dir", None)
  keep_compiled()
  assert place() == str(tmp_path / "compiled")


def test_a_place_that_was_named_stays(place):
  jax.config.update("jax_compilation_cache_dir", "/elsewhere")
  keep_compiled()
  assert place() == "/elsewhere"
