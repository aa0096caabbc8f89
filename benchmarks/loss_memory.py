"""Memory and time of the loss and its gradients, as the vocabulary grows, against two usual ways.

  python benchmarks/loss_memory.py [--tokens 2048] [--width 512] [--turns 3]

`one-hot` is T5X's: the cross entropy of logits with one-hot targets; `logits` is optax's with integer labels. All three
give the loss of the same hidden states, targets and unembedding, in float32, and the gradients for hidden states and
unembedding. Memory is what the compiled program needs beside its arguments and results, as the compiler says; the
size of the logits stands beside it. Gradients are compared in the same run.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from figures import Figure, tell

from flan_jax.models import LMHead
from flan_jax.training.cross_entropy import token_scores

VOCABULARIES = (32_128, 65_536, 131_072, 262_144)
GIB = 2**30


def blocks(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> jax.Array:
  return -token_scores(hidden, LMHead(kernel), targets).logprob.mean()


def logits(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, targets).mean()


def one_hot(hidden: jax.Array, kernel: jax.Array, targets: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy(
    hidden @ kernel, jax.nn.one_hot(targets, kernel.shape[1])
  ).mean()


WAYS: dict[str, Callable[..., jax.Array]] = {"ours": blocks, "logits": logits, "one-hot": one_hot}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokens", type=int, default=2048)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--turns", type=int, default=3)
  args = parser.parse_args()
  print("words     logits    " + "".join(f"{way:>24s}" for way in WAYS) + "   gradients differ by")
  shares = []
  for words in VOCABULARIES:
    draw = np.random.default_rng(0)
    hidden = draw.standard_normal((1, args.tokens, args.width), np.float32)
    kernel = draw.standard_normal((args.width, words), np.float32) * np.float32(0.05)
    targets = draw.integers(0, words, (1, args.tokens), np.int32)
    arguments = jax.tree.map(jnp.asarray, (hidden, kernel, targets))
    told, gradients, needed = [], {}, {}
    for name, way in WAYS.items():
      compiled = jax.jit(jax.value_and_grad(way, argnums=(0, 1))).lower(*arguments).compile()
      jax.block_until_ready(compiled(*arguments))
      seconds = []
      for _ in range(args.turns):
        begun = time.perf_counter()
        _, gradients[name] = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begun)
      memory = compiled.memory_analysis().temp_size_in_bytes / GIB
      needed[name] = memory
      told.append(f"{memory:12.3f} GiB {statistics.median(seconds):6.2f} s")
    apart = max(
      float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
      for a, b in zip(gradients["ours"], gradients["logits"], strict=True)
    )
    size = 4 * args.tokens * words / GIB
    shares.append(needed["ours"] / size)
    print(f"{words:<8,} {size:6.2f} GiB " + "".join(told) + f"   {apart:.1e}", flush=True)
  tell(
    Figure(
      f"memory of loss and gradients, beside themselves, over that of the logits, {VOCABULARIES[-1]:,} words",
      "; ".join(
        f"{share:.2f} at {words:,}" for share, words in zip(shares, VOCABULARIES, strict=True)
      )
      + f", where the loss of logits takes {needed['logits'] / size:.2f} and T5X's of one-hot targets "
      f"{needed['one-hot'] / size:.2f}",
      shares[-1],
      1,
      at_most=True,
    )
  )


if __name__ == "__main__":
  main()
