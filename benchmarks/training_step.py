"""Seconds of one tuning step, against torch: the same shape, the same batch, AdamW, float32, every core.

  python benchmarks/training_step.py [decoder] [t5] [--rows 8] [--length 256] [--targets 64] [--turns 3]

The decoder has the shape of SmolLM2-135M, and its rows of `length` tokens end with `targets` tokens that are learnt; T5
is 1.1 small, with inputs of `length` tokens and targets of `targets`. Weights are fresh, and there is no dropout. Ours
is the trainer's own step; the peer is transformers' model, not compiled, with its own loss, labels of -100 where
nothing is learnt, attention by SDPA where the model has it, torch's fused AdamW, and denormal numbers flushed to zero,
as XLA does (with them T5's step takes torch 2.8 s at first and 10 s five steps later). Each has a process of its own,
and medians are told, by the clock and by CPU seconds of all threads. The loss of the peer's decoder makes logits of all
tokens; once more it is told that the last of each row alone are learnt, which a packed batch could not say. With
`--parts` also the forward pass, and forward and backward, apart. The floor is the time that the FLOPs of the
mathematics (`flan_jax.training.flops`: nothing is computed twice) take at the rate of XLA's best product of the model's
own widths.
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from figures import Figure, alone, tell
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model
from flan_jax.training.activations import Workload
from flan_jax.training.flops import shapes_by_path, step_flops
from flan_jax.training.losses import SupervisedLoss
from flan_jax.training.optimizers import adamw
from flan_jax.training.step import TrainState, make_train_step

RATE = 1e-4
OURS, TORCH, TORCH_TOLD = "flan-jax", "torch", "torch with the logits of targets alone"
PEERS = {"decoder": (TORCH, TORCH_TOLD), "t5": (TORCH,)}
SMOLLM2 = DecoderConfig(49_152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5)
T5_SMALL = EncoderDecoderConfig(32_128, 512, 6, 64, 8, 8, 1024)
PARTS = ("forward", "forward and backward", "step")
Runs = dict[str, Callable[[], object]]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("families", nargs="*", default=["decoder", "t5"])
  parser.add_argument("--rows", type=int, default=8)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--targets", type=int, default=64)
  parser.add_argument("--remat", default="dots")
  parser.add_argument("--unrolled", action="store_true")
  parser.add_argument("--parts", action="store_true")
  parser.add_argument("--turns", type=int, default=3)
  args = parser.parse_args()
  for family in args.families:
    config, _ = problem(family, args)
    for part in PARTS if args.parts else PARTS[-1:]:
      clock, cpu = alone(spent, OURS, family, part, args)
      for peer in PEERS[family]:
        peers, peers_cpu = alone(spent, peer, family, part, args)
        found = f"{clock:.2f} s against {peers:.2f} s by the clock, {cpu:.1f} against {peers_cpu:.1f} CPU s"
        if part == "step":
          found += f"; the floor is {floor(config, args) / clock:.0%} of it"
          tell(Figure(f"{family}, a tuning step, against {peer}", found, peers / clock, 1.0))
        else:
          print(f"{family}, {part}, against {peer}: {found}")


def problem(family: str, args: argparse.Namespace) -> tuple[Any, dict]:
  """The model's config, and a batch."""
  return FAMILIES[family](args, {"remat": args.remat, "scan_layers": not args.unrolled})


def spent(kind: str, family: str, part: str, args: argparse.Namespace) -> list[float]:
  """Medians of seconds by the clock and of CPU seconds, after a turn that does not count."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_flush_denormal(True)
  config, batch = problem(family, args)
  runs = ours(config, batch) if kind == OURS else theirs(kind, config, batch, args.targets)
  runs[part]()
  turns = []
  for _ in range(args.turns):
    clock, busy = time.perf_counter(), time.process_time()
    runs[part]()
    turns.append((time.perf_counter() - clock, time.process_time() - busy))
  return [statistics.median(each) for each in zip(*turns, strict=True)]


def floor(config: DecoderConfig | EncoderDecoderConfig, args: argparse.Namespace) -> float:
  """Seconds that the products of a step take at the best rate of one with the model's widths."""
  inputs = 0 if isinstance(config, DecoderConfig) else args.length
  length = args.targets if inputs else args.length
  shapes = shapes_by_path(build_model(config).shapes())
  flops = step_flops(config, Workload(args.rows, 1, inputs, length, args.targets), shapes, shapes)
  tokens = args.rows * args.length
  wide = [(tokens, config.emb_dim, config.mlp_dim), (tokens, config.mlp_dim, config.emb_dim)]
  return flops.model.total / max(rate(*shape) for shape in wide)


def rate(m: int, k: int, n: int) -> float:
  """FLOPs a second of [m, k] times [k, n], the best of many."""
  x, y = jnp.ones((m, k)), jnp.ones((k, n))
  product, seconds = jax.jit(jnp.matmul), []
  product(x, y).block_until_ready()
  for _ in range(30):
    begun = time.perf_counter()
    product(x, y).block_until_ready()
    seconds.append(time.perf_counter() - begun)
  return 2 * m * k * n / min(seconds)


def decoder(args: argparse.Namespace, numerics: dict[str, Any]) -> tuple[DecoderConfig, dict]:
  config = dataclasses.replace(SMOLLM2, **numerics)
  tokens = np.random.default_rng(0).integers(3, 49_152, (args.rows, args.length + 1), np.int32)
  weights = np.zeros((args.rows, args.length), np.float32)
  weights[:, -args.targets :] = 1
  batch = {
    "decoder_input_tokens": tokens[:, :-1],
    "decoder_target_tokens": tokens[:, 1:],
    "decoder_loss_weights": weights,
    "decoder_segment_ids": np.ones(weights.shape, np.int32),
  }
  return config, batch


def t5(args: argparse.Namespace, numerics: dict[str, Any]) -> tuple[EncoderDecoderConfig, dict]:
  config = dataclasses.replace(T5_SMALL, **numerics)
  draw = np.random.default_rng(0)
  inputs = draw.integers(3, 32_000, (args.rows, args.length), np.int32)
  targets = draw.integers(3, 32_000, (args.rows, args.targets), np.int32)
  batch = {
    "encoder_input_tokens": inputs,
    "encoder_segment_ids": np.ones(inputs.shape, np.int32),
    "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.ones(targets.shape, np.float32),
    "decoder_segment_ids": np.ones(targets.shape, np.int32),
  }
  return config, batch


FAMILIES = {"decoder": decoder, "t5": t5}


def ours(config: DecoderConfig | EncoderDecoderConfig, batch: dict) -> Runs:
  model = build_model(config)
  loss = SupervisedLoss(model)
  optimizer = adamw(optax.constant_schedule(RATE), clip_norm=None)
  params = jax.jit(model.init)(jax.random.key(0))
  key = jax.random.key(1)

  def mean(params: Any, batch: dict) -> jax.Array:
    total, weight, _ = loss.sums(params, batch).terms["cross_entropy"]
    return total / weight

  batch = jax.tree.map(jnp.asarray, batch)
  forward, gradient = jax.jit(mean), jax.jit(jax.value_and_grad(mean))
  step = make_train_step(loss, optimizer)
  state = [TrainState.create(params, optimizer)]

  def whole_step() -> None:
    state[0], metrics = step(state[0], batch, key)
    jax.block_until_ready((state[0], metrics))

  held = jax.tree.map(jnp.copy, params)  # the step takes what it begins with
  return {
    "forward": lambda: jax.block_until_ready(forward(held, batch)),
    "forward and backward": lambda: jax.block_until_ready(gradient(held, batch)),
    "step": whole_step,
  }


def theirs(
  peer: str, config: DecoderConfig | EncoderDecoderConfig, batch: dict, targets: int
) -> Runs:
  model = (
    llama(config) if isinstance(config, DecoderConfig) else t5_for_conditional_generation(config)
  ).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
  # Labels are shifted by the decoder itself, and by T5 not: it shifts its inputs.
  learnt = np.where(batch["decoder_loss_weights"] > 0, batch["decoder_target_tokens"], -100)
  if isinstance(config, DecoderConfig):
    ids = batch["decoder_input_tokens"]
    learnt = np.concatenate([np.full((len(ids), 1), -100), learnt], axis=1)
    ids = np.concatenate([ids, batch["decoder_target_tokens"][:, -1:]], axis=1)
  else:
    ids = batch["encoder_input_tokens"]
  arguments: dict[str, Any] = {
    "input_ids": torch.tensor(ids).long(),
    "labels": torch.tensor(learnt).long(),
  }
  arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])

  if peer == TORCH_TOLD:
    last = targets + 1
    arguments |= {"labels": arguments["labels"][:, -last:], "logits_to_keep": last}

  def forward() -> None:
    with torch.no_grad():
      model(**arguments)

  def gradient() -> None:
    optimizer.zero_grad()
    model(**arguments).loss.backward()

  def step() -> None:
    gradient()
    optimizer.step()

  return {"forward": forward, "forward and backward": gradient, "step": step}


def llama(c: DecoderConfig) -> LlamaForCausalLM:
  shape = {
    "vocab_size": c.vocab_size,
    "hidden_size": c.emb_dim,
    "intermediate_size": c.mlp_dim,
    "num_hidden_layers": c.num_layers,
    "num_attention_heads": c.num_heads,
    "num_key_value_heads": c.num_kv_heads,
    "head_dim": c.head_dim,
  }
  peer = LlamaConfig(**shape, tie_word_embeddings=True, use_cache=False)
  return LlamaForCausalLM._from_config(peer, attn_implementation="sdpa")


def t5_for_conditional_generation(c: EncoderDecoderConfig) -> T5ForConditionalGeneration:
  peer = T5ForConditionalGeneration(
    T5Config(
      vocab_size=c.vocab_size,
      d_model=c.emb_dim,
      d_kv=c.head_dim,
      d_ff=c.mlp_dim,
      num_layers=c.num_encoder_layers,
      num_decoder_layers=c.num_decoder_layers,
      num_heads=c.num_heads,
      feed_forward_proj="gated-gelu",
      tie_word_embeddings=False,
      dropout_rate=0.0,
      use_cache=False,
    )
  )
  peer.config.decoder_start_token_id = 0  # from labels it makes the decoder's inputs
  return peer


if __name__ == "__main__":
  main()
