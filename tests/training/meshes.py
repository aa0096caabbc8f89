"""Eight devices in every shape, and packed batches whose rows carry very different numbers of targets."""

import numpy as np

from flan_jax.data.batches import make_features
from flan_jax.data.windows import StoredExample
from flan_jax.training.partitioning import MeshConfig

MESHES = {
  "one device": MeshConfig(data=1),
  "data=8": MeshConfig(data=8),
  "fsdp=8": MeshConfig(data=1, fsdp=8),
  "tensor=4,data=2": MeshConfig(data=2, tensor=4),
  "data=2,fsdp=2,tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
  "sequence=2,fsdp=4": MeshConfig(data=1, fsdp=4, sequence=2),
}

LENGTHS = {"inputs": 16, "targets": 16}


def devices_of(config):
  return config.data * config.fsdp * config.sequence * config.tensor


def packed_batch(layout, rows, seed, tasks=3):
  """One to four examples a row, of which some have one target and some all that fit."""
  draw = np.random.default_rng(seed)
  return make_features([_row(layout, r, draw, tasks) for r in range(rows)], layout, LENGTHS)


def _row(layout, place, draw, tasks):
  count = 1 + place % 4
  room = LENGTHS["targets"] // count
  examples = []
  for _ in range(count):
    inputs = _ids(draw, int(draw.integers(2, room + 1)))
    targets = _ids(draw, 1 + (room - 1) * (place % 3) // 2)
    weights = np.ones(len(targets), np.float32)
    if layout == "decoder":
      weights = np.concatenate([np.zeros(len(inputs), np.float32), weights])
      inputs, targets = np.empty(0, np.int32), np.concatenate([inputs, targets])
    examples.append(StoredExample(inputs, targets, weights, task=int(draw.integers(tasks))))
  return examples


def _ids(draw, count):
  return draw.integers(3, 60, count).astype(np.int32)
