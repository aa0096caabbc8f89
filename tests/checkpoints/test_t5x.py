"""Checkpoints as T5X writes them: single files, TensorStore folders, scanned layers; what is lost is told."""

import jax
import numpy as np
import pytest
import tensorstore
from flax import serialization, traverse_util

from flan_jax.checkpoints.t5x import open_t5x, t5x_tensors
from flan_jax.errors import CheckpointError
from flan_jax.models import EncoderDecoderConfig, build_model
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh, param_shardings

CONFIG = EncoderDecoderConfig(50, 16, 2, 8, 3, 2, 24)
ATTENTIONS = {
  "encoder": {"attention": ("attention", "attention")},
  "decoder": {
    "self_attention": ("self_attention", "self_attention"),
    "encoder_decoder_attention": ("cross_attention", "cross_attention"),
  },
}


def ours():
  return jax.tree.map(np.asarray, build_model(CONFIG).init(jax.random.key(0)))


def theirs(params, scanned: bool):
  """The same numbers under T5X's names."""
  tree = {
    "token_embedder/embedding": params["embed"]["embedding"],
    "decoder/logits_dense/kernel": params["unembed"]["kernel"],
  }
  for side, attentions in ATTENTIONS.items():
    stack = params[side]
    tree[f"{side}/{side}_norm/scale"] = stack["norm"]["scale"]
    tree[f"{side}/relpos_bias/rel_embedding"] = stack["relative_bias"]["embedding"].T
    layers = {"pre_mlp_layer_norm/scale": stack["layers"]["mlp_norm"]["scale"]}
    for name, part in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
      layers[f"mlp/{name}/kernel"] = stack["layers"]["mlp"][part]["kernel"]
    for name, (attention, _) in attentions.items():
      short = name.replace("encoder_decoder", "cross")
      norm = stack["layers"][f"{attention}_norm"]["scale"]
      layers[f"pre_{short}_layer_norm/scale"] = norm
      for part in ("query", "key", "value", "out"):
        layers[f"{name}/{part}/kernel"] = stack["layers"][attention][part]["kernel"]
    for name, stacked in layers.items():
      if scanned:
        tree[f"{side}/{side}/{name}"] = np.moveaxis(stacked, 0, 1)
      else:
        tree |= {f"{side}/layers_{i}/{name}": each for i, each in enumerate(stacked)}
  return tree


def write(path, tree, stored: bool):
  """A file, or a folder whose large arrays are zarr beside it."""
  leaves = {}
  for name, array in tree.items():
    leaves[f"optimizer/target/{name}"] = np.ascontiguousarray(array)
    if stored and array.ndim > 1:
      folder = f"target.{name.replace('/', '.')}"
      metadata = {
        "shape": list(array.shape),
        "chunks": [max(1, size // 2) for size in array.shape],
        "compressor": {"id": "gzip", "level": 1},
      }
      spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(path / folder)},
        "metadata": {**metadata, "dtype": "<f4"},
      }
      tensorstore.open(spec, create=True, open=True).result().write(array).result()
      leaves[f"optimizer/target/{name}"] = {
        "driver": "zarr",
        "dtype": "float32",
        "kvstore": {"driver": "gfile", "path": f"{folder}/"},
        "metadata": metadata,
      }
  flat = {tuple(name.split("/")): leaf for name, leaf in leaves.items()}
  state = {"version": 3, "optimizer": traverse_util.unflatten_dict(flat)["optimizer"]}
  file = path / "checkpoint" if stored else path
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(serialization.msgpack_serialize(state))
  return path


def loaded(path):
  found = open_t5x(path)
  model = build_model(found.config)
  return found.config, found.load(
    param_shardings(model, make_layout(model, make_mesh(MeshConfig())))
  )


@pytest.mark.parametrize("stored", [False, True], ids=["one file", "folder"])
@pytest.mark.parametrize("scanned", [False, True], ids=["apart", "scanned"])
def test_every_array_comes_to_its_place(tmp_path, scanned, stored):
  config, params = loaded(write(tmp_path / "run", theirs(ours(), scanned), stored))
  assert config == CONFIG
  jax.tree.map(np.testing.assert_array_equal, params, ours())


def test_a_folder_may_have_lost_its_zarr_files(tmp_path):
  path = write(tmp_path / "run", theirs(ours(), False), stored=True)
  for file in path.rglob(".zarray"):
    file.unlink()
  jax.tree.map(np.testing.assert_array_equal, loaded(path)[1], ours())


def test_what_is_missing_is_told(tmp_path):
  tree = theirs(ours(), False)
  del tree["decoder/layers_1/mlp/wo/kernel"]
  path = write(tmp_path / "short", tree, stored=False)
  with pytest.raises(CheckpointError, match="missing: decoder/layers_1/mlp/wo/kernel"):
    open_t5x(path)
  path.write_bytes(path.read_bytes()[:2000])
  with pytest.raises(CheckpointError, match="torn or no checkpoint of T5X"):
    t5x_tensors(path)
  lost = {"target": {"a": "PLACEHOLDER://target.a"}}
  (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(lost))
  with pytest.raises(CheckpointError, match="target.a is missing or torn"):
    t5x_tensors(tmp_path)["target/a"].read()
