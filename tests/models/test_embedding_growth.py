"""New rows of the tables: where they begin, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flan_jax.errors import VocabularyError
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model, grow_embeddings

ROWS = 24
MODELS = {
  "tied": DecoderConfig(ROWS, 16, 1, 2, 1, 8, 16),
  "untied": DecoderConfig(ROWS, 16, 1, 2, 1, 8, 16, tied_embeddings=False),
  "t5": EncoderDecoderConfig(ROWS, 16, 2, 8, 1, 1, 16),
}


@pytest.fixture(params=MODELS)
def config(request):
  return MODELS[request.param]


@pytest.fixture
def params(config):
  return build_model(config).init(jax.random.key(0))


def tables(params):
  """Every table with a row for each token."""
  found = [np.asarray(params["embed"]["embedding"])]
  if "unembed" in params:
    found.append(np.asarray(params["unembed"]["kernel"]).T)
  return found


def test_new_rows_begin_as_the_mean_of_all_or_of_those_that_are_named(params):
  grown = grow_embeddings(params, ROWS + 3, {ROWS: "mean", ROWS + 1: [4, 7]})
  for before, after in zip(tables(params), tables(grown), strict=True):
    np.testing.assert_array_equal(after[:ROWS], before)
    np.testing.assert_allclose(after[ROWS], before.mean(0), atol=1e-6)
    np.testing.assert_allclose(after[ROWS + 1], (before[4] + before[7]) / 2, atol=1e-6)
    np.testing.assert_allclose(after[ROWS + 2], before.mean(0), atol=1e-6)  # padding


def test_spare_rows_are_written_and_not_counted(params):
  grown = grow_embeddings(params, ROWS, {20: "mean", 22: [3]}, known=20)
  for before, after in zip(tables(params), tables(grown), strict=True):
    np.testing.assert_allclose(after[20], before[:20].mean(0), atol=1e-6)
    np.testing.assert_allclose(after[22], before[3], atol=1e-6)
    kept = [*range(20), 21, 23]
    np.testing.assert_array_equal(after[kept], before[kept])


def test_normal_rows_have_the_mean_and_the_spread_of_the_others(params):
  count = 4000
  rows = dict.fromkeys(range(ROWS, ROWS + count), "normal")
  grown = grow_embeddings(params, ROWS + count, rows, key=jax.random.key(1))
  for before, after in zip(tables(params), tables(grown), strict=True):
    error = before.std(0) / np.sqrt(count)
    assert (np.abs(after[ROWS:].mean(0) - before.mean(0)) < 5 * error).all()
    np.testing.assert_allclose(after[ROWS:].std(0), before.std(0), rtol=0.1)


def test_the_model_that_was_grown_says_what_it_said_of_the_old_tokens(config, params):
  size = ROWS + 8
  grown = grow_embeddings(params, size, {ROWS: "mean"})
  larger = build_model(type(config)(**(vars(config) | {"vocab_size": size})))
  assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, larger.init(jax.random.key(0)))
  tokens = jnp.arange(1, 13, dtype=jnp.int32).reshape(2, 6)
  batch = {"decoder_input_tokens": tokens, "encoder_input_tokens": tokens}
  batch |= {"encoder_segment_ids": jnp.ones_like(tokens)}
  before = build_model(config).logits(params, batch)
  after = larger.logits(grown, batch)
  np.testing.assert_allclose(after[..., :ROWS], before, atol=1e-6)
  # A row that is the mean of the others gets the mean of their logits.
  np.testing.assert_allclose(after[..., ROWS], before.mean(-1), atol=1e-5)


def test_bfloat16_tables_stay_so_and_are_averaged_exactly():
  table = jax.random.normal(jax.random.key(0), (ROWS, 16)).astype(jnp.bfloat16)
  grown = grow_embeddings({"embed": {"embedding": table}}, ROWS + 1, {ROWS: "mean"})
  row = grown["embed"]["embedding"][ROWS]
  assert row.dtype == jnp.bfloat16
  expected = jnp.asarray(np.asarray(table, np.float64).mean(0), jnp.bfloat16)
  np.testing.assert_array_equal(np.asarray(row, np.float32), np.asarray(expected, np.float32))


def test_a_table_is_neither_cut_nor_written_beside():
  params = {"embed": {"embedding": jnp.zeros((8, 4))}}
  with pytest.raises(VocabularyError, match="8 rows belong to tokens cannot be cut to 7"):
    grow_embeddings(params, 7, {})
  with pytest.raises(VocabularyError, match=r"rows \[9\] are not in a table of 9"):
    grow_embeddings(params, 9, {9: "mean"})


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tied", [True, False])
def test_the_mean_is_where_transformers_begins(tied):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=ROWS,
      num_attention_heads=2,
      tie_word_embeddings=tied,
      initializer_range=0.2,
      **shape,
    )
  )
  params = {"embed": {"embedding": theirs.get_input_embeddings().weight.detach().numpy()}}
  if not tied:
    params["unembed"] = {"kernel": theirs.lm_head.weight.detach().numpy().T}
  grown = grow_embeddings(params, ROWS + 2, {ROWS: "mean", ROWS + 1: "mean"})
  theirs.resize_token_embeddings(ROWS + 2, mean_resizing=True)
  expected = [theirs.get_input_embeddings().weight, theirs.lm_head.weight]
  # They add noise with a billionth of the covariance.
  for ours, table in zip(tables(grown), expected, strict=False):
    np.testing.assert_allclose(ours, table.detach().numpy(), atol=1e-4)
