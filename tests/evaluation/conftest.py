"""Tiny models of both families."""

import jax
import pytest

from flan_jax.models import DecoderConfig, EncoderDecoderConfig, LanguageModel, build_model

DECODER = DecoderConfig(
  vocab_size=300, emb_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64
)
ENCODER_DECODER = EncoderDecoderConfig(
  vocab_size=300,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  num_encoder_layers=2,
  num_decoder_layers=2,
  mlp_dim=64,
)


@pytest.fixture(scope="session", params=[DECODER, ENCODER_DECODER], ids=["decoder", "t5"])
def tiny(request) -> tuple[LanguageModel, dict]:
  """A model and parameters far from uniform, so that a wrong mask shows."""
  model = build_model(request.param)
  params = model.init(jax.random.key(0))
  return model, jax.tree.map(lambda x: 3.0 * x if x.ndim > 2 else x, params)
