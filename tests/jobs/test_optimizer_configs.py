"""The shipped optimizers, as gin makes them."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flan_jax.jobs.configurables  # noqa: F401
from flan_jax.errors import ConfigError
from flan_jax.jobs.launch import CONFIGURABLES, configure
from flan_jax.models import EncoderDecoderConfig, build_model

STEPS, WARMUP, PEAK = 12, 4, 0.1


def optimizer(name, *bindings):
  own = [f"STEPS={STEPS}", f"LEARNING_RATE={PEAK}"]
  own += [f"WARMUP_STEPS={WARMUP}"] if name != "adafactor" else []  # it has none
  files = ("recipes/t5_tiny.gin", f"optimizers/{name}.gin")
  [launched] = configure("train", files, (*own, *bindings))
  with launched:
    chosen = gin.query_parameter("OPTIMIZER/gin.macro.value")
    return CONFIGURABLES[chosen.selector.split(".")[-1]]()


def drawn(seed):
  draw = np.random.default_rng(seed)
  return {
    "attention": {"kernel": draw.normal(size=(6, 4)), "bias": draw.normal(size=4)},
    "embed": {"embedding": draw.normal(size=(9, 6))},
    "norm": {"scale": draw.normal(size=6)},
  }


def bert_by_numpy(params, gradients_at):
  """BERT's `optimization.py` and its clipping, in float64."""
  leaves, structure = jax.tree.flatten(params)
  decays = [0.0 if "norm" in name or "bias" in name else 0.01 for name in paths(params)]
  first, second = [0.0] * len(leaves), [0.0] * len(leaves)
  for step in range(STEPS):
    gradients = jax.tree.leaves(gradients_at(step))
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    rate = PEAK * step / WARMUP if step < WARMUP else PEAK * (1 - step / STEPS)
    for i, gradient in enumerate(gradients):
      clipped = gradient / max(norm, 1.0)
      first[i] = 0.9 * first[i] + 0.1 * clipped
      second[i] = 0.999 * second[i] + 0.001 * clipped**2
      update = first[i] / (np.sqrt(second[i]) + 1e-6) + decays[i] * leaves[i]
      leaves[i] = leaves[i] - rate * update
  return jax.tree.unflatten(structure, leaves)


def paths(params):
  return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def single(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def test_the_recipe_of_bert_is_bert():
  tx = optimizer("bert").make(None)
  params = single(drawn(0))
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(STEPS):
    updates, state = update(single(drawn(100 + step)), state, params)
    params = optax.apply_updates(params, updates)
  want = bert_by_numpy(drawn(0), lambda step: drawn(100 + step))
  for name, ours, theirs in zip(
    paths(want), jax.tree.leaves(params), jax.tree.leaves(want), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6, err_msg=name)


MODEL = build_model(
  EncoderDecoderConfig(
    vocab_size=64,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=16,
  )
)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "bert"])
def test_every_shipped_optimizer_fits_a_model_and_takes_multipliers(name):
  kind = "adamw" if name == "bert" else name
  optimizer(name).transformation(MODEL)
  optimizer(name, f"{kind}.multipliers={{'*embed*': 0.1, '*norm*': 0}}").transformation(MODEL)
  misspelt = optimizer(name, f"{kind}.multipliers={{'*nrom*': 0.1}}")
  with pytest.raises(ConfigError, match=r"'\*nrom\*' matches no parameter"):
    misspelt.transformation(MODEL)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "bert"])
def test_every_shipped_warmup_that_exceeds_the_run_is_refused(name):
  with pytest.raises(ConfigError, match="the warmup of 13 updates is longer"):
    optimizer(name, "WARMUP_STEPS=13")
