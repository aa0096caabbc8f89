"""Time and peak memory of opening a folder of Hugging Face's layout with a billion parameters, in bfloat16.

  python benchmarks/load_folder.py [--layers 16] [--folder /tmp/one_billion]

Writes a random folder of the shape of Llama 3.2 1B if it is not there, then opens it in processes of their own: ours,
and transformers' where torch is installed. Memory is the peak of the resident set above that of the imports alone.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util

from flan_jax.checkpoints.families import family_for
from flan_jax.checkpoints.safetensors import stored_tensors, write_tensors
from flan_jax.checkpoints.streaming import parts_of
from flan_jax.models import DecoderConfig, build_model

BEGIN = """
import time
from pathlib import Path
def peak():
  return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l).split()[1]) * 1024
"""
END = """
print("\\n" + repr({"imports": before, "peak": peak(), "seconds": time.perf_counter() - begun}).replace("'", '"'))
"""
OURS = """
import jax, flan_jax, flan_jax.inference.loaded
jax.numpy.zeros(3).block_until_ready()
before, begun = peak(), time.perf_counter()
model = flan_jax.load(FOLDER, dtype="bfloat16")
jax.block_until_ready(model.params)
"""
THEIRS = """
import torch, transformers
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
before, begun = peak(), time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16)
sum(p.float().sum() for p in model.parameters())
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--layers", type=int, default=16)
  parser.add_argument("--folder", type=Path, default=Path("/tmp/one_billion"))
  args = parser.parse_args()
  if not (args.folder / "config.json").is_file():
    write(args.folder, args.layers)
  size = sum(file.stat().st_size for file in args.folder.glob("*.safetensors"))
  print(f"{args.folder}: {size / 1e9:.2f} GB in {len(stored_tensors(args.folder))} tensors")
  for name, code in (("flan_jax", OURS), ("transformers", THEIRS)):
    code = BEGIN + code.replace("FOLDER", repr(str(args.folder))) + END
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
      print(f"{name}: {done.stderr.strip().splitlines()[-1]}")
      continue
    found = json.loads(done.stdout.strip().splitlines()[-1])
    used = found["peak"] - found["imports"]
    print(
      f"{name}: {found['seconds']:.1f} s, {size / 1e9 / found['seconds']:.2f} GB/s; peak "
      f"{used / 1e9:.2f} GB above the imports' {found['imports'] / 1e9:.2f}: {used / size:.2f} times the file"
    )


def write(folder: Path, layers: int) -> None:
  config = DecoderConfig(
    128_256, 2048, layers, 32, 8, 64, 8192, rope_theta=5e5, param_dtype="bfloat16"
  )
  model, family = build_model(config), family_for(config)
  draw, shapes = np.random.default_rng(0), {}
  ours = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
  for part in parts_of(model, family):
    shape = ours[part.path].shape if part.layer is None else ours[part.path].shape[1:]
    kernel = part.path.endswith("/kernel")
    shapes[part.name] = (shape[::-1] if kernel else shape, np.dtype(ml_dtypes.bfloat16))
  folder.mkdir(parents=True)
  for _ in write_tensors(
    folder, shapes, lambda name: draw.standard_normal(shapes[name][0], np.float32) * 0.02
  ):
    pass
  about = {**family.write(config), "model_type": family.model_type}
  (folder / "config.json").write_text(json.dumps(about | {"architectures": [family.architecture]}))


if __name__ == "__main__":
  main()
