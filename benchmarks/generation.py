"""Tokens a second that are written, against `transformers.generate` on the same prompts and the same parameters.

  python benchmarks/generation.py [--new 128] [--requests 32] [--turns 3]

SmolLM2-135M-Instruct in float32 on every core, greedy, with no end token, so that both write as much as they are
asked for. One prompt alone; and many whose answers have very different lengths: the peer writes them as one batch, as
long as the longest, and here who ends frees a place. Turns alternate, and medians are told.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from figures import SMOLLM2, Figure, tell
from transformers import AutoModelForCausalLM

from flan_jax import load
from flan_jax.checkpoints.hugging_face import write_folder
from flan_jax.inference import Engine, Sampling


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--new", type=int, default=128, help="tokens of the answer to one prompt")
  parser.add_argument("--requests", type=int, default=32)
  parser.add_argument("--slots", type=int, default=16)
  parser.add_argument("--block", type=int, default=8)
  parser.add_argument("--turns", type=int, default=3)
  args = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  ours = load(SMOLLM2)
  with tempfile.TemporaryDirectory() as folder:
    write_folder(Path(folder, "model"), ours.model, ours.params, ours.tokenizer)
    peer = AutoModelForCausalLM.from_pretrained(
      f"{folder}/model", dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
  draw = np.random.default_rng(0)
  prompts = [
    draw.integers(1000, 40_000, draw.integers(16, 97)).tolist() for _ in range(args.requests)
  ]
  lengths = np.clip(draw.lognormal(3.6, 0.9, args.requests), 4, 256).astype(int).tolist()

  def theirs(prompts: list[list[int]], new: int) -> None:
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
      ids[row, width - len(prompt) :] = torch.tensor(prompt)
      mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
      peer.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
      )

  many = f"{args.requests} prompts, against transformers' one batch of them"
  for name, asked, wanted, slots in (
    ("one prompt, against transformers", [prompts[0]], [args.new], 1),
    (many, prompts, lengths, args.slots),
  ):
    room = max(len(p) + n for p, n in zip(asked, wanted, strict=True))
    engine = Engine(
      ours.model, ours.params, stop_ids=(), slots=slots, length=room, block=args.block
    )
    settings = [Sampling(n) for n in wanted]
    pairs: dict[str, Callable[[], object]] = {
      "ours": lambda: engine.run(asked, settings),  # noqa: B023
      "transformers": lambda: theirs(asked, max(wanted)),  # noqa: B023
    }
    for run in pairs.values():
      run()
    seconds: dict[str, list[float]] = {kind: [] for kind in pairs}
    for _ in range(args.turns):
      for kind, run in pairs.items():
        begun = time.perf_counter()
        run()
        seconds[kind].append(time.perf_counter() - begun)
    pace = {kind: sum(wanted) / statistics.median(times) for kind, times in seconds.items()}
    uneven = max(wanted) / (sum(wanted) / len(wanted))
    tell(
      Figure(
        f"writing with SmolLM2-135M, {name}",
        f"{sum(wanted):,} tokens, longest over mean {uneven:.2f}: "
        f"{pace['ours']:.1f} tokens/s against {pace['transformers']:.1f}",
        pace["ours"] / pace["transformers"],
        1.0 if len(wanted) == 1 else round(0.8 * uneven, 2),
      )
    )


if __name__ == "__main__":
  main()
