"""What saving in the background costs a training run, and what a checkpoint takes of the disk.

  python benchmarks/async_save.py [--rows 4] [--length 512] [--every 20] [--turns 3]

A decoder of SmolLM2-135M's shape with fresh parameters and AdamW, in float32. Steps with a save every so many of them
and steps without take turns, a stretch of each at a time, so that what else the machine does bears on both alike. A
stretch with a save begins with it, and the write is over within it or is waited for, which is counted. CPU seconds
are all threads' and bear a crowded machine better than the clock. The last checkpoint is then held against the bytes
of the arrays.
"""

import argparse
import functools
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flan_jax.checkpoints import Checkpoints, Keep
from flan_jax.models import DecoderConfig, build_model

SMOLLM2 = DecoderConfig(49_152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, remat="dots")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=4)
  parser.add_argument("--length", type=int, default=512)
  parser.add_argument("--every", type=int, default=20)
  parser.add_argument("--turns", type=int, default=3)
  args = parser.parse_args()
  model = build_model(SMOLLM2)
  tx = optax.adamw(1e-4)
  draw = np.random.default_rng(0)
  tokens = draw.integers(0, SMOLLM2.vocab_size, (args.rows, args.length + 1)).astype(np.int32)

  def mean_loss(params, tokens):
    batch = {"decoder_input_tokens": tokens[:, :-1], "decoder_segment_ids": tokens[:, :-1] * 0 + 1}
    logits = model.logits(params, batch)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, tokens):
    loss, gradient = jax.value_and_grad(mean_loss)(state["params"], tokens)
    updates, optimizer = tx.update(gradient, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer}, loss

  params = jax.jit(model.init)(jax.random.key(0))
  state = {"params": params, "optimizer": jax.jit(tx.init)(params)}
  state, loss = step(state, jnp.asarray(tokens))
  loss.block_until_ready()
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

  folder = Path(tempfile.mkdtemp())
  seconds: dict[str, list[np.ndarray]] = {"with": [], "without": []}
  blocked, written = [], []
  try:
    with Checkpoints(folder, keep=Keep(1)) as checkpoints:
      for turn in range(args.turns):
        for kind in ("without", "with") if turn % 2 else ("with", "without"):
          begun, busy = time.perf_counter(), time.process_time()
          if kind == "with":
            checkpoints.save(turn + 1, state, {"step": turn + 1})
            blocked.append(time.perf_counter() - begun)
          over = None
          for _ in range(args.every):
            state, loss = step(state, jnp.asarray(tokens))
            loss.block_until_ready()
            checkpoints.check()
            if over is None and (folder / str(turn + 1)).is_dir():
              over = time.perf_counter() - begun
          if kind == "with":
            checkpoints.wait()
            written.append(over or time.perf_counter() - begun)
          spent = np.array([time.perf_counter() - begun, time.process_time() - busy]) / args.every
          seconds[kind].append(spent)
          load = os.getloadavg()[0]
          print(
            f"{kind:8s} {spent[0]:7.3f} s, {spent[1]:7.3f} CPU s a step, load {load:.1f}",
            flush=True,
          )
    files = [path for path in folder.rglob("*") if path.is_file()]
    taken = sum(path.stat().st_size for path in files)
  finally:
    shutil.rmtree(folder)
  for unit, plain, saving in zip(
    ("s", "CPU s"),
    np.mean(seconds["without"], axis=0),
    np.mean(seconds["with"], axis=0),
    strict=True,
  ):
    cost = f"{saving / plain - 1:+.1%}"
    print(
      f"a step without saving {plain:.3f} {unit}, with one in {args.every} {saving:.3f} {unit}: {cost}"
    )
  print(
    f"of a save the run waits {statistics.mean(blocked):.2f} s; whole after {statistics.mean(written):.1f} s"
  )
  print(
    f"arrays {needed / 1e9:.3f} GB, checkpoint {taken / 1e9:.3f} GB: {taken / needed:.3f} in {len(files)} files"
  )


if __name__ == "__main__":
  main()
