"""Models that begin with some of the parameters of another one, and runs that change what changes no number."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from flan_jax.errors import ConfigError
from flan_jax.jobs.models import scratch, tuned
from flan_jax.jobs.transferred_models import transferred
from flan_jax.models import EncoderDecoderConfig
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh
from flan_jax.vocabularies import ByteVocabulary

ARCHITECTURE = EncoderDecoderConfig(384, 32, 2, 16, 2, 2, 64)
RECIPE = ("--module", "tasks.py", "--gin_file=check.gin")


def source(**changes):
  return scratch(dataclasses.replace(ARCHITECTURE, **changes), ByteVocabulary())


def loaded(model, key, mesh=MeshConfig()):
  layout = make_layout(model.model, make_mesh(mesh))
  return jax.tree.map(np.asarray, model.load(layout, jax.random.key(key)))


def test_the_parameters_of_a_run_that_patterns_choose_begin_another_model(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.STEPS=2")
  run = tuned("runs/tuned")
  model = transferred(source(), run, ("encoder/*", "embed/*", "!*norm*"))
  ours = loaded(model, 1, MeshConfig(data=2, fsdp=2, tensor=2))
  fresh, trained = loaded(source(), 1), loaded(run, 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    taken = name.startswith(("encoder/", "embed/")) and "norm" not in name
    expected = dict(jax.tree_util.tree_leaves_with_path(trained if taken else fresh))[path]
    np.testing.assert_array_equal(leaf, expected, err_msg=name)


@pytest.mark.slow
def test_a_run_tuned_with_a_kernel_is_opened_without_it_where_there_is_none(flan_jax, folder):
  flan_jax("train", *RECIPE, "--gin.STEPS=2")
  description = Path("runs/tuned/model.json")
  about = json.loads(description.read_text())
  about["config"] |= {"attention": "flash", "dtype": "bfloat16"}
  description.write_text(json.dumps(about))
  assert tuned("runs/tuned").model.config.attention == "xla"
  assert tuned("runs/tuned", attention="flash").model.config.attention == "flash"


def test_what_does_not_fit_is_told_by_name():
  with pytest.raises(ConfigError, match=r"encoder/.*: \(2, 32, 64\) here, \(2, 32, 48\) there"):
    transferred(source(), source(mlp_dim=48), ("encoder/*",))
  with pytest.raises(ConfigError, match="matches no parameter"):
    transferred(source(), source(), ("encodr/*",))
  other = dataclasses.replace(source(), vocabulary=ByteVocabulary().grown(("<care>",)))
  with pytest.raises(ConfigError, match="the vocabularies differ"):
    transferred(source(), other, ("*",))


@pytest.mark.slow
def test_a_run_goes_on_with_layers_unrolled_and_computed_again(flan_jax, folder):
  save = ("--gin.train.checkpoint_every=3", "--gin.train.keep=None")
  flan_jax("train", *RECIPE, *save, "--gin.RUN_DIR=runs/whole")
  flan_jax("train", *RECIPE, *save, "--gin.STEPS=3", "--gin.linear_schedule.total_steps=6")
  switched = ("--gin.encoder_decoder.scan_layers=False", '--gin.encoder_decoder.remat="full"')
  assert "going on from step 3" in flan_jax("train", *RECIPE, *save, *switched).stderr
  whole, ours = (loaded(tuned(f"runs/{run}"), 0) for run in ("whole", "tuned"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, whole)
