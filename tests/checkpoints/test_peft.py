"""Adapters that PEFT opens, and adapters that PEFT wrote."""

import json

import jax
import numpy as np
import pytest

import flan_jax
from flan_jax.checkpoints.peft import SETTINGS, write_adapters
from flan_jax.errors import CheckpointError, ConfigError
from flan_jax.models import LoraConfig
from flan_jax.training.lora import Lora

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch", reason="the oracle needs torch")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
peft = pytest.importorskip("peft", reason="the oracle is PEFT")

SMALL = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
GPT = {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {"vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MODELS = {
  "llama": ("LlamaForCausalLM", SMALL | HEADS),
  "gpt2": ("GPT2LMHeadModel", GPT),
  "gptj": ("GPTJForCausalLM", GPT | {"rotary_dim": 4}),
  "neox": ("GPTNeoXForCausalLM", SMALL | {"num_attention_heads": 4}),
  "t5": ("T5ForConditionalGeneration", T5 | {"decoder_start_token_id": 0}),
}
EVERYTHING, SOME = ("*attention*kernel", "*mlp*kernel"), ("*query*kernel|*value*kernel",)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """Tiny models compile far longer than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=MODELS)
def base(request, tmp_path):
  """Their model, and the folder that it was saved to."""
  head, settings = MODELS[request.param]
  config = getattr(transformers, head).config_class(**settings, attn_implementation="eager")
  torch.manual_seed(0)
  theirs = getattr(transformers, head)(config).eval()
  with torch.no_grad():
    for weight in theirs.parameters():
      if weight.ndim > 1:
        weight.copy_(torch.randn_like(weight) * 0.2)
  theirs.save_pretrained(tmp_path / "base")
  return theirs, tmp_path / "base"


def logits_of(theirs, ours):
  """Of both, on the same ids."""
  ids, answers = (np.random.default_rng(n).integers(3, 100, (2, 9 + n)) for n in (0, 1))
  second = [answers] if ours.model.layout == "encoder_decoder" else []
  more = {"decoder_input_ids": torch.tensor(answers)} if second else {}
  with torch.no_grad():
    want = theirs(torch.tensor(ids), **more).logits.numpy()
  return np.asarray(ours.logits(ids, None, *second)), want


@pytest.mark.parametrize("magnitudes", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("patterns", [EVERYTHING, SOME], ids=["everything", "some"])
def test_peft_opens_what_we_write(base, tmp_path, patterns, magnitudes):
  theirs, folder = base
  ours = flan_jax.load(folder)
  plain, _ = logits_of(theirs, ours)
  config = LoraConfig(3, 6.0, 0.1, magnitudes, patterns, magnitudes)
  lora = Lora(ours.model, config)
  adapters = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
    lora.init(jax.random.key(0)),
  )
  write_adapters(tmp_path / "out", ours.model, config, adapters, ours.params, str(folder))
  merged = flan_jax.load(folder, adapters=tmp_path / "out")
  got = logits_of(peft.PeftModel.from_pretrained(theirs, tmp_path / "out").eval(), merged)
  np.testing.assert_allclose(*got, atol=1e-4, rtol=1e-4)
  own = ours.model.logits(lora.merge(ours.params, adapters), _batch_of(ours.model.layout))
  np.testing.assert_allclose(own, got[1], atol=1e-4, rtol=1e-4)
  assert np.abs(got[1] - plain).max() > 1e-2


def _batch_of(layout):
  ids, answers = (np.random.default_rng(n).integers(3, 100, (2, 9 + n)) for n in (0, 1))
  if layout == "decoder":
    return {"decoder_input_tokens": ids}
  return {"encoder_input_tokens": ids, "decoder_input_tokens": answers}


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_what_peft_wrote_is_opened(base, tmp_path, settings):
  theirs, folder = base
  about = peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", **settings)
  adapted = peft.get_peft_model(theirs, about).eval()
  with torch.no_grad():
    for name, weight in adapted.named_parameters():
      if "lora_" in name:
        weight.add_(torch.randn_like(weight) * 0.1)
  adapted.save_pretrained(tmp_path / "adapters")
  merged = flan_jax.load(folder, adapters=tmp_path / "adapters")
  np.testing.assert_allclose(*logits_of(adapted, merged), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"peft_type": "IA3"}, "type 'IA3'; LORA is read"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* is not supported"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' is not supported"),
    ({"use_dora": True}, "q_proj: lora_magnitude_vector missing"),
  ],
)
def test_adapters_that_cannot_be_merged_are_one_message(tmp_path, change, words):
  theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **HEADS))
  theirs.save_pretrained(tmp_path / "base")
  about = peft.LoraConfig(r=3, target_modules=["q_proj"])
  peft.get_peft_model(theirs, about).save_pretrained(tmp_path / "adapters")
  path = tmp_path / "adapters" / SETTINGS
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(CheckpointError, match=words):
    flan_jax.load(tmp_path / "base", adapters=tmp_path / "adapters")
  with pytest.raises(CheckpointError, match="holds adapters, not a model"):
    flan_jax.load(tmp_path / "adapters")


def test_adapters_of_another_model_are_named_all_at_once(tmp_path):
  for name, layers in (("base", 1), ("other", 2)):
    config = transformers.LlamaConfig(**SMALL | HEADS | {"num_hidden_layers": layers})
    theirs = transformers.LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path / name)
  about = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"])
  peft.get_peft_model(theirs, about).save_pretrained(tmp_path / "adapters")
  with pytest.raises(
    CheckpointError, match=r"layers\.1\.self_attn\.q_proj(.|\n)*layers\.1.*v_proj"
  ):
    flan_jax.load(tmp_path / "base", adapters=tmp_path / "adapters")
  with pytest.raises(ConfigError, match="are for a folder"):
    flan_jax.load("package:x==1#sha256=0", adapters=tmp_path / "adapters")
