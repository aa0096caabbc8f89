"""Speed and peak memory of one training step of the decoder, against torch's LlamaForCausalLM.

  python benchmarks/decoder_step.py [--rows 8] [--length 256] [--remat none|full|dots] [--layers 30]

Both run the shape of SmolLM2-135M in float32 on every core, with fresh weights, the same tokens and
logits on every position. They take turns in one process, and each number is the least of the
repeats, so that what else the machine does bears on both alike; CPU seconds are all threads' and
bear it better than the clock. The peak of memory is measured apart, with `--only step`: AdamW, no
torch.
"""

import argparse
import functools
import math
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flan_jax.models import DecoderConfig, LanguageModel, build_model


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=8)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--layers", type=int, default=30)
  parser.add_argument("--vocabulary", type=int, default=49_152)
  parser.add_argument("--remat", default="dots")
  parser.add_argument("--unrolled", action="store_true")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--only", choices=("step", "ours"))
  args = parser.parse_args()
  config = DecoderConfig(
    args.vocabulary,
    576,
    args.layers,
    9,
    3,
    64,
    1536,
    rope_theta=1e5,
    remat=args.remat,
    scan_layers=not args.unrolled,
  )
  tokens = np.random.default_rng(0).integers(0, args.vocabulary, (args.rows, args.length + 1))
  model = build_model(config)
  if args.only == "step":
    return measure_step(model, tokens.astype(np.int32), args.repeats)
  runs = flan_jax_runs(model, tokens.astype(np.int32))
  if args.only != "ours":
    runs |= torch_runs(config, tokens)
  for run in runs.values():
    run()
  least = dict.fromkeys(runs, (math.inf, math.inf))
  for _ in range(args.repeats):
    for name, run in runs.items():
      start, busy = time.perf_counter(), time.process_time()
      run()
      spent = time.perf_counter() - start, time.process_time() - busy
      least[name] = min(least[name][0], spent[0]), min(least[name][1], spent[1])
  for name, (clock, cpu) in least.items():
    rate = tokens[:, 1:].size / clock
    print(f"{name:32s} {clock:7.2f} s  {cpu:7.2f} CPU s  {rate:8.0f} tokens/s")
  for kind in ("forward", "forward and backward") if args.only is None else ():
    clock, cpu = (
      theirs / ours
      for theirs, ours in zip(least[f"torch {kind}"], least[f"flan-jax {kind}"], strict=True)
    )
    print(f"{kind}: {clock:.2f} of torch's speed by the clock, {cpu:.2f} by CPU seconds")


def mean_loss(model: LanguageModel, params: dict, tokens: jax.Array) -> jax.Array:
  """Mean cross entropy of the next token, on every position."""
  batch = {"decoder_input_tokens": tokens[:, :-1], "decoder_segment_ids": tokens[:, :-1] * 0 + 1}
  logits = model.logits(params, batch)
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def flan_jax_runs(model: LanguageModel, tokens: np.ndarray) -> dict[str, Callable[[], None]]:
  """The timed functions of ours; each returns when its result is there."""
  params = jax.jit(model.init)(jax.random.key(0))
  loss = functools.partial(mean_loss, model)
  forward, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
  return {
    "flan-jax forward": lambda: jax.block_until_ready(forward(params, tokens)),
    "flan-jax forward and backward": lambda: jax.block_until_ready(gradient(params, tokens)),
  }


def torch_runs(config: DecoderConfig, tokens: np.ndarray) -> dict[str, Callable[[], None]]:
  """The same with torch and transformers."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  peer = LlamaForCausalLM(
    LlamaConfig(
      vocab_size=config.vocab_size,
      hidden_size=config.emb_dim,
      intermediate_size=config.mlp_dim,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads,
      head_dim=config.head_dim,
      tie_word_embeddings=True,
      use_cache=False,
    )
  )
  ids = torch.tensor(tokens)

  def loss() -> "torch.Tensor":
    logits = peer(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

  def forward() -> None:
    with torch.no_grad():
      loss()

  def gradient() -> None:
    peer.zero_grad()
    loss().backward()

  return {"torch forward": forward, "torch forward and backward": gradient}


def measure_step(model: LanguageModel, tokens: np.ndarray, repeats: int) -> None:
  """A whole step with AdamW, parameters and moments donated; prints the process's peak."""
  tx = optax.adamw(1e-4)
  params = jax.jit(model.init)(jax.random.key(0))
  state = jax.jit(tx.init)(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, tokens):
    loss, gradient = jax.value_and_grad(functools.partial(mean_loss, model))(params, tokens)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss

  best = float("inf")
  for _ in range(repeats + 1):
    start = time.perf_counter()
    params, state, loss = step(params, state, jnp.asarray(tokens))
    loss.block_until_ready()
    best = min(best, time.perf_counter() - start)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f"AdamW step {best:.2f} s, {tokens[:, 1:].size / best:.0f} tokens/s, peak {peak:.2f} GiB")


if __name__ == "__main__":
  main()
