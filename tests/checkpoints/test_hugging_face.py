"""Folders of Hugging Face's layout without torch: any mesh, half a model, mistakes."""

import dataclasses
import json
import shutil
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

import flan_jax
from flan_jax.checkpoints.hugging_face import open_folder, write_folder
from flan_jax.checkpoints.safetensors import stored_tensors
from flan_jax.errors import CheckpointError, ConfigError, VocabularyError
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings
from flan_jax.vocabularies import BPEVocabulary, ByteVocabulary

CONFIGS = {
  "decoder": DecoderConfig(272, 32, 3, 4, 2, 8, 48, context_length=77),
  "encoder-decoder": EncoderDecoderConfig(272, 32, 4, 8, 2, 3, 48),
}
EACH_FAMILY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def fresh(config, mesh=MeshConfig()):
  model = build_model(config)
  layout = make_layout(model, make_mesh(mesh))
  with layout.active():
    make = jax.jit(model.init, out_shardings=param_shardings(model, layout))
    return model, make(jax.random.key(0))


@pytest.fixture
def folder(tmp_path):
  model, params = fresh(CONFIGS["decoder"])
  write_folder(tmp_path / "model", model, params, ByteVocabulary(extra_ids=8), shard_bytes=30_000)
  return tmp_path / "model"


@EACH_FAMILY
def test_what_was_saved_on_eight_devices_opens_on_one_and_on_any_mesh(config, tmp_path):
  model, params = fresh(config, MeshConfig(fsdp=8))
  write_folder(tmp_path / "model", model, params)
  for mesh, devices in ((MeshConfig(), 1), (MeshConfig(data=2, fsdp=2, tensor=2), 8)):
    layout = make_layout(model, make_mesh(mesh, jax.devices()[:devices]))
    found = open_folder(tmp_path / "model").load(param_shardings(model, layout))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    wanted = param_shardings(model, layout)
    same = jax.tree.map(lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), found, wanted)
    assert all(jax.tree.leaves(same))


@EACH_FAMILY
def test_half_precision_is_a_rounding_of_what_was_there(config, tmp_path):
  model, params = fresh(config)
  write_folder(tmp_path / "half", model, params, dtype="bfloat16")
  loaded = flan_jax.load(tmp_path / "half", dtype="bfloat16")
  jax.tree.map(
    lambda half, whole: np.testing.assert_array_equal(half, whole.astype("bfloat16")),
    loaded.params,
    params,
  )


def test_the_length_of_its_texts_goes_in_and_out(folder):
  assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 77
  assert open_folder(folder).config.context_length == 77


def test_neither_torch_nor_tensorflow_nor_transformers_is_imported(folder):
  code = (
    "import sys, flan_jax\n"
    f"m = flan_jax.load({str(folder)!r})\n"
    "m.logits([m.tokenizer.encode('hello')]); m.generate([[5, 6]], max_new_tokens=2)\n"
    "print({'torch', 'tensorflow', 'transformers', 'seqio'} & set(sys.modules))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout == "set()\n", done.stderr


def rewritten(folder, change):
  """The folder as one file of tensors, some changed."""
  tensors = {name: tensor.read() for name, tensor in stored_tensors(folder).items()}
  change(tensors)
  for file in folder.glob("model*"):
    file.unlink()
  header, content = {}, b""
  for name, array in tensors.items():
    begin = len(content)
    content += array.tobytes()
    place = [begin, len(content)]
    header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": place}
  text = json.dumps(header).encode()
  (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)


def test_all_tensors_that_do_not_fit_are_named_at_once(folder):
  def change(tensors):
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((4, 5), np.float32)
    tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)

  rewritten(folder, change)
  with pytest.raises(CheckpointError) as raised:
    flan_jax.load(folder)
  message = str(raised.value)
  assert "missing: model.norm.weight (ours: norm/scale (32,))" in message
  assert (
    "misshapen: model.layers.1.mlp.up_proj.weight is (4, 5) (ours: layers/mlp/up/kernel[1] (32, 48))"
    in message
  )
  assert "left over: model.layers.7.mlp.up_proj.weight (48, 32)" in message


def test_all_tensors_that_are_not_finite_are_named_at_once(folder):
  def change(tensors):
    tensors["model.norm.weight"][3] = np.nan
    tensors["model.layers.2.self_attn.q_proj.weight"][0, 0] = np.inf

  rewritten(folder, change)
  with pytest.raises(CheckpointError, match="2 tensors .* not finite") as raised:
    flan_jax.load(folder)
  assert "model.norm.weight" in str(raised.value)
  assert "model.layers.2.self_attn.q_proj.weight" in str(raised.value)


def test_a_torn_folder_is_one_clear_message(folder):
  shards = sorted(folder.glob("*.safetensors"))
  torn = folder.with_name("torn")
  shutil.copytree(folder, torn)
  (torn / shards[1].name).write_bytes(shards[1].read_bytes()[:-8])
  with pytest.raises(CheckpointError, match=f"{shards[1].name} is torn"):
    flan_jax.load(torn)
  (torn / shards[1].name).unlink()
  with pytest.raises(
    CheckpointError, match=f"names 1 of {len(shards)} files that are not there: {shards[1].name}"
  ):
    flan_jax.load(torn)
  for shard in torn.glob("*.safetensors*"):
    shard.unlink()
  (torn / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(CheckpointError, match="pickles.*are not read.*save_pretrained"):
    flan_jax.load(torn)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"model_type": "lama"}, "models of type 'lama' are not read; nearest: llama"),
    ({"vocab_size": None}, "vocab_size"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
    ({"rope_parameters": "linear"}, "rope_parameters='linear' is no mapping"),
    ({"hidden_act": ["silu"]}, "'silu'.* is not known"),
    ({"model_type": ["llama"]}, "models of type .*'llama'.* are not read"),
    ({"hidden_act": "gelu_nwe"}, "'gelu_nwe' is not known; known: gelu_new"),
  ],
)
def test_settings_that_are_not_understood_are_named(folder, change, words):
  path = folder / "config.json"
  settings = json.loads(path.read_text()) | change
  path.write_text(json.dumps({name: each for name, each in settings.items() if each is not None}))
  with pytest.raises(CheckpointError, match=words):
    flan_jax.load(folder)


def test_a_tokenizer_that_the_embedding_cannot_hold_is_refused(folder):
  (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
  with pytest.raises(CheckpointError, match="384 ids, and the embedding only 272 rows"):
    flan_jax.load(folder)


def test_how_a_model_generates_goes_out_with_it_and_comes_in_again(tmp_path):
  model, params = fresh(CONFIGS["encoder-decoder"])
  told = {"decoder_start_token_id": 5, "max_new_tokens": 9}
  write_folder(tmp_path / "model", model, params, stop_ids=(1, 7), generation=told)
  found = open_folder(tmp_path / "model")
  assert (found.stop_ids, found.start_id) == ((1, 7), 5)
  assert found.generation == {**told, "eos_token_id": [1, 7], "pad_token_id": 0}
  settings = json.loads((tmp_path / "model/config.json").read_text())
  assert settings["eos_token_id"] == [1, 7] and settings["decoder_start_token_id"] == 5


@pytest.mark.parametrize("twice", [False, True])
def test_a_head_beside_a_tied_table_is_obeyed_unless_it_is_the_table(tmp_path, twice):
  model, params = fresh(dataclasses.replace(CONFIGS["decoder"], tied_embeddings=False))
  if twice:
    params["unembed"]["kernel"] = params["embed"]["embedding"].T
  write_folder(tmp_path / "model", model, params)
  path = tmp_path / "model/config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
  found = flan_jax.load(tmp_path / "model")
  assert found.model.config.tied_embeddings == twice
  batch = {"decoder_input_tokens": np.array([[3, 4, 5]], np.int32)}
  np.testing.assert_allclose(found.logits([[3, 4, 5]]), model.logits(params, batch), atol=1e-6)


def test_the_length_that_texts_were_once_cut_or_filled_to_is_none_of_the_model_s(tmp_path):
  tokenizer = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2}, []))
  tokenizer.enable_truncation(2)
  tokenizer.enable_padding(length=9)
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  vocabulary = BPEVocabulary.from_file(tmp_path / "tokenizer.json", "</s>")
  assert vocabulary.encode("abab") == vocabulary.encode_batch(["abab", "a"])[0] == [1, 2, 1, 2]


def test_tokens_that_are_kept_beside_the_tokenizer_are_added_to_it(tmp_path):
  Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2}, [])).save(str(tmp_path / "tokenizer.json"))
  added = {3: {"content": "<x>", "special": True}, 1: {"content": "a"}}
  vocabulary = BPEVocabulary.from_file(tmp_path / "tokenizer.json", "</s>", added=added)
  assert vocabulary.encode("a<x>b") == [1, 3, 2] and vocabulary.size == 4
  with pytest.raises(VocabularyError, match="'<y>' is to have the id 9, and would get 3"):
    BPEVocabulary.from_file(tmp_path / "tokenizer.json", "</s>", added={9: {"content": "<y>"}})


def test_numbers_that_a_smaller_dtype_cannot_hold_are_named(tmp_path):
  model, params = fresh(CONFIGS["decoder"])
  params["norm"]["scale"] = params["norm"]["scale"].at[0].set(1e5)
  write_folder(tmp_path / "model", model, params)
  with pytest.raises(CheckpointError, match=r"1 tensors hold .* not finite: model\.norm\.weight"):
    flan_jax.load(tmp_path / "model", dtype="float16")
  assert np.isfinite(flan_jax.load(tmp_path / "model", dtype="bfloat16").logits([[1, 2]])).all()


def test_ids_and_places_that_a_model_does_not_have_are_refused(tmp_path):
  config = DecoderConfig(
    89, 16, 1, 2, 2, 8, 32, norm="layer", learned_positions=16, context_length=16
  )
  config = dataclasses.replace(
    config, mlp_activations=("gelu",), biases=("query_key_value", "attention_out", "mlp")
  )
  model, params = fresh(config)
  write_folder(tmp_path / "model", model, params)
  found = flan_jax.load(tmp_path / "model")
  with pytest.raises(ConfigError, match="input_ids has the id 500, and the model knows 0 to 88"):
    found.logits([[1, 500]])
  with pytest.raises(ConfigError, match="input_ids needs 20 places, and the model has learned 16"):
    found.logits([[1] * 20])
  with pytest.raises(ConfigError, match="prompt 1 needs 18 places, and the model has learned 16"):
    found.generate([[1], [1] * 9], 9)
  assert len(found.generate([[1] * 9], 7)[0]) <= 7


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
  model, params = fresh(CONFIGS["decoder"])
  params["norm"]["scale"] = params["norm"]["scale"].at[0].set(1e9)
  with (
    np.errstate(over="ignore"),
    pytest.raises(CheckpointError, match=r"1 tensors .* in float16: model\.norm"),
  ):
    write_folder(tmp_path / "model", model, params, dtype="float16")
  assert not list(tmp_path.iterdir())


def test_a_model_of_no_family_is_not_written(tmp_path):
  config = DecoderConfig(64, 16, 1, 2, 2, 8, 32, norm="layer", qk_norm=True)
  with pytest.raises(ConfigError, match="no family of Hugging Face's"):
    write_folder(tmp_path / "model", *fresh(config))
  with pytest.raises(ConfigError, match="exists: write to another folder"):
    write_folder(tmp_path, *fresh(CONFIGS["decoder"]))
  assert not list(tmp_path.iterdir())
