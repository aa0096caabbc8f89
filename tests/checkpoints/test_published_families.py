"""Folders that transformers wrote: the same logits, loss, gradient norm and continuations; and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flan_jax
from flan_jax.checkpoints.hugging_face import write_folder
from flan_jax.checkpoints.safetensors import stored_tensors
from flan_jax.training.losses import SupervisedLoss

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch", reason="the oracle needs torch")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

SMALL = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
ALL_HEADS = HEADS | {"num_key_value_heads": 4}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
GPT = {"vocab_size": 101, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
T5 = {"vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}

DECODERS = {
  "llama": ("Llama", SMALL | HEADS),
  "llama, every head": ("Llama", SMALL | ALL_HEADS | {"tie_word_embeddings": True}),
  "llama 3 scaling": ("Llama", SMALL | HEADS | {"rope_parameters": LLAMA3}),
  "linear scaling": ("Llama", SMALL | HEADS | {"rope_parameters": LINEAR}),
  "llama with biases": ("Llama", SMALL | HEADS | {"attention_bias": True, "mlp_bias": True}),
  "mistral": ("Mistral", SMALL | HEADS | {"sliding_window": 5}),
  "mistral, its window unsaid": ("Mistral", SMALL | HEADS),
  "mistral, no window": ("Mistral", SMALL | HEADS | {"sliding_window": None}),
  "qwen2": ("Qwen2", SMALL | HEADS | {"head_dim": 8, "tie_word_embeddings": True}),
  "qwen2 with a window": (
    "Qwen2",
    SMALL | HEADS | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
  ),
  "qwen3": ("Qwen3", SMALL | HEADS),
  "gemma": ("Gemma", SMALL | HEADS | {"num_key_value_heads": 1}),
  "gemma2": (
    "Gemma2",
    SMALL | HEADS | {"sliding_window": 5, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
                     "final_logit_softcapping": 3.0},
  ),
  "gemma2, no layer local": (
    "Gemma2", SMALL | HEADS | {"layer_types": ["full_attention"] * SMALL["num_hidden_layers"]}
  ),
  "gemma3": (
    "Gemma3",
    SMALL | HEADS | {"num_hidden_layers": 8, "sliding_window": 5, "query_pre_attn_scalar": 24},
  ),
  "gpt2": ("GPT2", GPT),
  "gpt2, untied": ("GPT2", GPT | {"tie_word_embeddings": False, "n_inner": 40}),
  "gptj": ("GPTJ", GPT | {"rotary_dim": 4}),
  "gptj, all turned": ("GPTJ", GPT | {"rotary_dim": 8}),
  "neox": ("GPTNeoX", SMALL | {"num_attention_heads": 4, "rotary_pct": 0.5}),
  "neox, one after the other": (
    "GPTNeoX", SMALL | {"num_attention_heads": 4, "use_parallel_residual": False},
  ),
}  # fmt: skip
PICTURES = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
}
ENCODER_DECODERS = {
  "t5 1.0": ("T5", T5),
  "t5 1.1": ("T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
  "ul2": ("T5", T5 | {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
  "byt5": ("T5", T5 | {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 1}),
  "mt5": ("MT5", T5 | {"relative_attention_max_distance": 20}),
}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """Tiny models compile far longer than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=[*DECODERS, *ENCODER_DECODERS])
def both(request, tmp_path):
  """Theirs, as large as trained weights are, and the folder that it was saved to."""
  kind, settings = (DECODERS | ENCODER_DECODERS)[request.param]
  text = "TextConfig" if kind == "Gemma3" else "Config"
  config = getattr(transformers, f"{kind}{text}")(**settings)
  head = {
    "GPT2": "GPT2LMHeadModel",
    "T5": "T5ForConditionalGeneration",
    "MT5": "MT5ForConditionalGeneration",
  }.get(kind, f"{kind}ForCausalLM")
  torch.manual_seed(0)
  config._attn_implementation = "eager"
  theirs = getattr(transformers, head)(config).eval()
  with torch.no_grad():
    for name, weight in theirs.named_parameters():
      weight.copy_(torch.randn_like(weight) * (0.5 if weight.ndim == 1 else 0.2))
      if weight.ndim == 1 and "norm" in name and "bias" not in name and "Gemma" not in kind:
        weight.add_(1.0)
      if "relative_attention_bias" in name:
        weight.mul_(5.0)
  theirs.save_pretrained(tmp_path / "theirs")
  return theirs, tmp_path / "theirs"


def test_the_text_of_a_model_that_also_sees_is_read(tmp_path):
  text = SMALL | HEADS | {"sliding_window": 5, "query_pre_attn_scalar": 24}
  config = transformers.Gemma3Config(
    text_config=text,
    vision_config=PICTURES | {"image_size": 28, "patch_size": 14},
    attn_implementation="eager",
  )
  theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
  theirs.save_pretrained(tmp_path / "theirs")
  inputs = ids(2, 17)
  with torch.no_grad():
    want = theirs(*tensors(inputs)).logits.numpy()
  got = np.asarray(flan_jax.load(tmp_path / "theirs").logits(inputs))
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def ids(rows, length, seed=0):
  return np.random.default_rng(seed).integers(3, 100, (rows, length))


def tensors(*arrays):
  return [torch.tensor(array) for array in arrays]


def test_logits_are_the_same(both):
  theirs, folder = both
  ours = flan_jax.load(folder)
  inputs = ids(3, 23)
  if ours.model.layout == "decoder":
    for mask in (
      np.ones_like(inputs),
      (np.arange(23)[None, :] < np.array([[23], [9], [15]])).astype(int),
      (np.arange(23)[None, :] >= np.array([[0], [9], [15]])).astype(int),
    ):
      with torch.no_grad():
        want = theirs(*tensors(inputs), attention_mask=torch.tensor(mask)).logits.numpy()
      got = np.asarray(ours.logits(inputs, mask))
      np.testing.assert_allclose(got[mask > 0], want[mask > 0], atol=1e-4, rtol=1e-4)
    return
  inputs, targets = ids(3, 200), ids(3, 150, 1)
  mask = (np.arange(200)[None, :] < np.array([[200], [9], [150]])).astype(int)
  with torch.no_grad():
    want = theirs(
      *tensors(inputs), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(targets)
    ).logits.numpy()
  got = np.asarray(ours.logits(inputs, mask, targets))
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_loss_and_norm_of_the_gradient_are_the_same(both):
  theirs, folder = both
  ours = flan_jax.load(folder)
  inputs, targets = ids(2, 17), ids(2, 12, 1)
  if ours.model.layout == "decoder":
    out = theirs(*tensors(inputs), labels=torch.tensor(inputs))
    shifted = np.concatenate([inputs[:, 1:], np.zeros((2, 1), int)], 1)
    weights = np.ones(inputs.shape, np.float32)
    weights[:, -1] = 0
    batch = {"decoder_input_tokens": inputs}
  else:
    out = theirs(*tensors(inputs), labels=torch.tensor(targets))
    shifted, weights = targets, np.ones(targets.shape, np.float32)
    begun = np.concatenate([np.zeros((2, 1), int), targets[:, :-1]], 1)
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": begun}
  batch |= {"decoder_target_tokens": shifted, "decoder_loss_weights": weights}
  out.loss.backward()
  want = torch.sqrt(sum((p.grad**2).sum() for p in theirs.parameters() if p.grad is not None))

  def mean(params):
    term = SupervisedLoss(ours.model).sums(params, batch).terms["cross_entropy"]
    return term.sum / term.weight

  loss, gradient = jax.value_and_grad(mean)(ours.params)
  norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
  np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-4)
  np.testing.assert_allclose(norm, want.item(), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 4])
def test_generation_gives_the_same_tokens(both, beams):
  theirs, folder = both
  ours = flan_jax.load(folder)
  prompts = [ids(1, length, seed=length)[0] for length in (11, 4, 7)]
  settings = {"num_beams": beams, "max_new_tokens": 9, "do_sample": False}
  padded = np.full((3, 11), 5)
  for row, prompt in zip(padded, prompts, strict=True):
    row[: len(prompt)] = prompt
  mask = np.arange(11)[None, :] < np.array([[11], [4], [7]])
  settings_ = {"max_new_tokens": 9, "num_beams": beams, "eos_ids": [7, 8]}
  got = ours.generate(prompts, **settings_)
  assert got == ours.generate(padded, attention_mask=mask.astype(int), **settings_)
  for prompt, answer in zip(prompts, got, strict=True):
    given = torch.tensor(prompt[None])
    with torch.no_grad():
      out = theirs.generate(
        given,
        attention_mask=torch.ones_like(given),
        eos_token_id=[7, 8],
        pad_token_id=0,
        **settings,
      )[0].tolist()
    new = out[1:] if ours.model.layout == "encoder_decoder" else out[len(prompt) :]
    ends = [i for i, token in enumerate(new) if token in (7, 8)]
    assert answer == new[: ends[0] if ends else None]


def test_what_came_in_goes_out_again_bit_for_bit(both, tmp_path):
  theirs, folder = both
  ours = flan_jax.load(folder)
  ends = {"stop_ids": (7, 8), "generation": {"max_new_tokens": 5, "do_sample": False}}
  write_folder(tmp_path / "ours", ours.model, ours.params, shard_bytes=20_000, **ends)
  before, after = stored_tensors(folder), stored_tensors(tmp_path / "ours")
  assert before.keys() == after.keys()
  for name in before:
    np.testing.assert_array_equal(before[name].read(), after[name].read())
  again = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
  inputs = torch.tensor(ids(2, 19))
  more = {} if ours.model.layout == "decoder" else {"decoder_input_ids": torch.tensor(ids(2, 9))}
  with torch.no_grad():
    want, got = (model(inputs, **more).logits for model in (theirs, again))
    asked = again.generate(inputs, attention_mask=torch.ones_like(inputs), pad_token_id=0)
  np.testing.assert_array_equal(want, got)
  assert asked.shape[-1] - (inputs.shape[-1] if ours.model.layout == "decoder" else 1) in range(6)
