"""Models with new control tokens: on any mesh, through training, and opened again."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flan_jax.errors import ConfigError, VocabularyError
from flan_jax.jobs.models import scratch, tuned
from flan_jax.jobs.resized_models import grown, resized
from flan_jax.models import DecoderConfig, EncoderDecoderConfig
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings
from flan_jax.vocabularies import ByteVocabulary, load_vocabulary

TOKENS = {"<care>": "care", "<harm>": None}
BYTES = 259
DECODER = DecoderConfig(BYTES, 16, 1, 4, 2, 8, 16, tied_embeddings=False)
ENCODER_DECODER = EncoderDecoderConfig(BYTES, 16, 4, 8, 1, 1, 16)


def source(rows=BYTES, architecture=DECODER):
  return scratch(dataclasses.replace(architecture, vocab_size=rows), ByteVocabulary())


def loaded(model, mesh=MeshConfig()):
  layout = make_layout(model.model, make_mesh(mesh))
  return model.load(layout, jax.random.key(3)), layout


@pytest.mark.parametrize("architecture", [DECODER, ENCODER_DECODER], ids=["decoder", "t5"])
def test_each_new_row_begins_as_its_words_or_as_all(architecture):
  before, _ = loaded(source(architecture=architecture))
  model = grown(source(architecture=architecture), TOKENS)
  after, _ = loaded(model)
  assert model.vocabulary.encode("<care><harm>") == [BYTES, BYTES + 1]
  for name, leaf in (("embed", "embedding"), ("unembed", "kernel")):
    old, new = (np.asarray(params[name][leaf]) for params in (before, after))
    if name == "unembed":
      old, new = old.T, new.T
    np.testing.assert_array_equal(new[:BYTES], old)
    care = [byte + 3 for byte in b"care"]
    np.testing.assert_allclose(new[BYTES], old[care].mean(0), atol=1e-6)
    np.testing.assert_allclose(new[BYTES + 1], old.mean(0), atol=1e-6)


@pytest.mark.parametrize(("rows", "size"), [(BYTES, 261), (260, 264), (384, 384)])
def test_a_grown_model_is_the_same_on_a_mesh(rows, size):
  model = grown(source(rows), TOKENS, initial="normal")
  assert model.model.config.vocab_size == size
  alone, _ = loaded(model)
  params, layout = loaded(model, MeshConfig(data=1, fsdp=2, tensor=4))
  jax.tree.map(np.testing.assert_array_equal, params["layers"], alone["layers"])
  for name in ("embed", "unembed"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params[name], alone[name]
    )
  wanted = param_shardings(model.model, layout)
  same = jax.tree.map(lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), params, wanted)
  assert all(jax.tree.leaves(same))


def test_a_table_that_is_cut_over_the_mesh_only_once_it_has_grown():
  model = grown(source(), {"<care>": None})
  params, layout = loaded(model, MeshConfig(data=2, tensor=4))
  assert model.model.config.vocab_size == 260 and layout.shards("vocab") == 4
  assert params["embed"]["embedding"].shape == (260, 16)


def test_models_grown_otherwise_are_other_models():
  models = [
    source(),
    grown(source(), TOKENS),
    grown(source(), TOKENS, initial="normal"),
    grown(source(), {"<care>": None, "<harm>": None}),
  ]
  assert len({model.fingerprint for model in models}) == 4


def test_a_padded_table_is_cut_over_a_mesh_and_trimmed_again():
  padded = resized(source(), 264)
  params, layout = loaded(padded, MeshConfig(data=2, tensor=4))
  assert params["embed"]["embedding"].shape == (264, 16) and layout.shards("vocab") == 4
  plain, _ = loaded(source(), MeshConfig())
  trimmed, _ = loaded(resized(padded, 259), MeshConfig())
  jax.tree.map(np.testing.assert_array_equal, trimmed, plain)
  mean = np.asarray(plain["embed"]["embedding"]).mean(axis=0)
  np.testing.assert_allclose(params["embed"]["embedding"][259:], np.tile(mean, (5, 1)), atol=1e-6)
  with pytest.raises(ConfigError, match="rows=258 is less than the 259 tokens"):
    resized(source(), 258)


def test_tokens_that_cannot_be_had():
  with pytest.raises(ConfigError, match="names no token"):
    grown(source(), {})
  with pytest.raises(ConfigError, match="gives '<care>' no words"):
    grown(source(), {"<care>": ""})
  with pytest.raises(VocabularyError, match="'</s>' already"):
    grown(source(), {"</s>": None})
  with pytest.raises(VocabularyError, match="set decoder.vocab_size to 261 or more"):
    scratch(DECODER, ByteVocabulary().grown(list(TOKENS)))


@pytest.mark.slow
def test_a_run_from_a_grown_model_is_opened_again(flan_jax, folder):
  recipe = ("--module=tasks.py", "--gin_file=check.gin")
  growth = (
    "--gin.MODEL=@grown()",
    "--gin.grown.model=@scratch()",
    "--gin.grown.tokens={'<care>': 'care', '<harm>': None}",
    "--gin.encoder_decoder.vocab_size=260",
  )
  flan_jax("train", *recipe, *growth)
  assert load_vocabulary(folder / "runs/tuned/vocabulary").added_tokens == ("<care>", "<harm>")
  assert json.loads((folder / "runs/tuned/model.json").read_text())["config"]["vocab_size"] == 264
  assert tuned("runs/tuned").vocabulary.encode("<harm>") == [260]
  (folder / "prompts.txt").write_text("<care> Ticket 3\n")
  flan_jax("infer", *recipe)
  assert len((folder / "runs/answers.jsonl").read_text().splitlines()) == 1
  growth = (*growth[:2], "--gin.grown.tokens={'<care>': None, '<harm>': None}", growth[3])
  done = flan_jax("train", *recipe, *growth, "--gin.STEPS=8", status=2)
  assert "another model" in done.stderr
