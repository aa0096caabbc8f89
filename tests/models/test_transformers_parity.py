"""Logits and greedy continuations equal those of transformers with the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from flan_jax.inference import generate
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch", reason="the oracle needs torch")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

VOCABULARY = 96


def llama(kv_heads: int, tied: bool):
  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=VOCABULARY,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=kv_heads,
      head_dim=16,
      tie_word_embeddings=tied,
      rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
      initializer_range=0.2,
    )
  ).eval()
  weights = {name: w.detach().numpy() for name, w in theirs.state_dict().items()}
  ours = DecoderConfig(
    VOCABULARY, 32, 2, 4, kv_heads, 16, 48, 1000.0, norm_eps=1e-6, tied_embeddings=tied
  )
  names = {
    "attention_norm/scale": "input_layernorm",
    "attention/query/kernel": "self_attn.q_proj",
    "attention/key/kernel": "self_attn.k_proj",
    "attention/value/kernel": "self_attn.v_proj",
    "attention/out/kernel": "self_attn.o_proj",
    "mlp_norm/scale": "post_attention_layernorm",
    "mlp/gate/kernel": "mlp.gate_proj",
    "mlp/up/kernel": "mlp.up_proj",
    "mlp/down/kernel": "mlp.down_proj",
  }
  params = {
    "embed": {"embedding": weights["model.embed_tokens.weight"]},
    "layers": stacked(weights, "model.layers.{}.", names, 2),
    "norm": {"scale": weights["model.norm.weight"]},
  }
  if not tied:
    params["unembed"] = {"kernel": weights["lm_head.weight"].T}
  return theirs, build_model(ours), params


def t5(version: str):
  torch.manual_seed(0)
  first = version == "1.0"
  theirs = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=VOCABULARY,
      d_model=32,
      d_kv=8,
      d_ff=48,
      num_layers=2,
      num_decoder_layers=3,
      num_heads=4,
      feed_forward_proj="relu" if first else "gated-gelu",
      tie_word_embeddings=first,
    )
  ).eval()
  if not first:
    # transformers ties them whatever it is told, without T5 1.0's scale.
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 32))
  with torch.no_grad():
    for name, weight in theirs.named_parameters():
      if "relative_attention_bias" in name:
        weight.mul_(5.0)  # as large as in a trained model
  weights = {name: w.detach().numpy() for name, w in theirs.state_dict().items()}
  ours = EncoderDecoderConfig(
    VOCABULARY,
    32,
    4,
    8,
    2,
    3,
    48,
    mlp_activations=("relu",) if first else ("gelu", "linear"),
    tied_embeddings=first,
  )
  params = {
    "embed": {"embedding": weights["shared.weight"]},
    "encoder": t5_stack(weights, "encoder", 2, first),
    "decoder": t5_stack(weights, "decoder", 3, first),
  }
  if not first:
    params["unembed"] = {"kernel": weights["lm_head.weight"].T}
  return theirs, build_model(ours), params


def t5_stack(weights: dict, side: str, layers: int, first: bool) -> dict:
  names = {}

  def attention(ours: str, theirs: str) -> None:
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    names.update({f"{ours}/{part}/kernel": f"{theirs}.{name}" for part, name in parts.items()})

  if side == "encoder":
    attention("attention", "0.SelfAttention")
    names |= {"attention_norm/scale": "0.layer_norm", "mlp_norm/scale": "1.layer_norm"}
  else:
    attention("self_attention", "0.SelfAttention")
    attention("cross_attention", "1.EncDecAttention")
    names |= {"self_attention_norm/scale": "0.layer_norm"}
    names |= {"cross_attention_norm/scale": "1.layer_norm", "mlp_norm/scale": "2.layer_norm"}
  feed = f"{1 if side == 'encoder' else 2}.DenseReluDense"
  if first:
    names |= {"mlp/up/kernel": f"{feed}.wi", "mlp/down/kernel": f"{feed}.wo"}
  else:
    names |= {"mlp/gate/kernel": f"{feed}.wi_0", "mlp/up/kernel": f"{feed}.wi_1"}
    names |= {"mlp/down/kernel": f"{feed}.wo"}
  bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  return {
    "layers": stacked(weights, f"{side}.block.{{}}.layer.", names, layers),
    "norm": {"scale": weights[f"{side}.final_layer_norm.weight"]},
    "relative_bias": {"embedding": weights[bias]},
  }


def stacked(weights: dict, prefix: str, names: dict[str, str], layers: int) -> dict:
  tree: dict = {}
  for path, name in names.items():
    parts = [weights[f"{prefix.format(i)}{name}.weight"] for i in range(layers)]
    *folders, leaf = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = np.stack([part.T if leaf == "kernel" else part for part in parts])
  return tree


def tokens(*shape: int) -> np.ndarray:
  return np.random.default_rng(1).integers(2, VOCABULARY, shape)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_decoder_logits_equal_those_of_llama(kv_heads, tied):
  theirs, ours, params = llama(kv_heads, tied)
  ids = tokens(2, 150)
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  logits = ours.logits(params, {"decoder_input_tokens": jnp.asarray(ids, jnp.int32)})
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("source, target", [(9, 5), (200, 170)])
def test_encoder_decoder_logits_equal_those_of_t5(version, source, target):
  theirs, ours, params = t5(version)
  inputs, targets = tokens(2, source), tokens(2, target)
  real = np.arange(source)[None] < np.array([[source], [source - 4]])
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(inputs),
      attention_mask=torch.tensor(real.astype(np.int64)),
      decoder_input_ids=torch.tensor(targets),
    ).logits.numpy()
  batch = {
    "encoder_input_tokens": jnp.asarray(inputs, jnp.int32),
    "encoder_segment_ids": jnp.asarray(real, jnp.int32),
    "decoder_input_tokens": jnp.asarray(targets, jnp.int32),
  }
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(ours.logits(params, batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_greedy_generation_equals_that_of_transformers(family):
  theirs, ours, params = llama(2, False) if family == "llama" else t5("1.1")
  prompts = [tokens(length).tolist() for length in (3, 11, 40)]
  end = 5
  answers = generate(ours, params, prompts, 12, eos_ids=(end,), batch_size=2)
  options = {"do_sample": False, "use_cache": False, "eos_token_id": end, "pad_token_id": 0}
  for prompt, answer in zip(prompts, answers, strict=True):
    with torch.no_grad():
      ids = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=12,
        **options,
        **({} if family == "llama" else {"decoder_start_token_id": 0}),
      )[0].tolist()
    expected = ids[len(prompt) :] if family == "llama" else ids[1:]
    assert answer == [token for token in expected if token != end]
