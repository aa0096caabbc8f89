"""Comparing what is trained on with what is evaluated: examples a second, and memory at the peak.

    python benchmarks/contamination.py [--training 100000] [--evaluated 10000] [--workers 2]

Records are a passage of 85 words and a question of 12, drawn as English words are (Zipf); every tenth training record
holds a stretch of an evaluated passage.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from flan_jax.data import dataset_spec, load_records, register_mixture, register_templates
from flan_jax.data.contamination import contamination

DATASET = """
cluster: {name}
description: A passage and a question.
source: {{files: {name}.jsonl}}
splits: {{{split}: all}}
fields: {{passage: long, question: text, label: text}}
answer: {{field: label, choices: {{"y": "yes", "n": "no"}}}}
metrics: [accuracy]
record: {{passage: A passage., question: "Is it?", label: y}}
templates: [{{name: ask, input: "{{passage}} {{question}}", target: "{{answer}}"}}]
"""
WORDS, LEAKED = 85, 0.1


def write(
  folder: Path, name: str, split: str, count: int, seed: int, leaks: list[str]
) -> list[str]:
  """A dataset of so many records; returns its passages."""
  rng, letters = np.random.default_rng(seed), random.Random(0)
  vocabulary = [
    "".join(letters.choices("etaoinshrdlu", k=letters.randint(2, 9))) for _ in range(50_000)
  ]
  (folder / name).mkdir(parents=True)
  (folder / name / f"{name}.yaml").write_text(DATASET.format(name=name, split=split))
  passages = []
  with (folder / name / f"{name}.jsonl").open("w") as file:
    for i in range(count):
      words = [vocabulary[w % len(vocabulary)] for w in rng.zipf(1.2, WORDS + 12)]
      if leaks and rng.random() < LEAKED:
        words[20:50] = leaks[int(rng.integers(len(leaks)))].split()[20:50]
      passages.append(" ".join(words[:WORDS]) + ".")
      row = {
        "passage": passages[-1],
        "question": " ".join(words[WORDS:]) + "?",
        "label": "yn"[i % 2],
      }
      file.write(json.dumps(row) + "\n")
  return passages


def peak_mib(who: int) -> float:
  return resource.getrusage(who).ru_maxrss / 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--training", type=int, default=100_000)
  parser.add_argument("--evaluated", type=int, default=10_000)
  parser.add_argument("--workers", type=int, default=2)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as home:
    folder = Path(home) / "templates"
    passages = write(folder, "judged", "test", args.evaluated, 1, [])
    write(folder, "trained", "train", args.training, 2, passages)
    del passages
    register_templates(folder)
    mixture = register_mixture("everything", ["trained"], max_examples=args.training)
    for name in ("trained", "judged"):
      load_records(dataset_spec(name), home)
    before, begun, used = peak_mib(resource.RUSAGE_SELF), time.perf_counter(), os.times()
    found = contamination(mixture, "judged", data_dir=home, workers=args.workers, progress=True)
    seconds, now = time.perf_counter() - begun, os.times()
  processor = sum(now[:4]) - sum(used[:4])
  [overlap] = found.train
  print(
    f"{overlap.examples / seconds:,.0f} training examples/s with {args.workers} workers, "
    f"{overlap.examples / processor:,.0f} a second of processor time, indexing of "
    f"{args.evaluated:,} included; {overlap.share:.1%} overlap; peak "
    f"{peak_mib(resource.RUSAGE_SELF):,.0f} MiB ({before:,.0f} before), "
    f"{peak_mib(resource.RUSAGE_CHILDREN):,.0f} MiB a worker"
  )


if __name__ == "__main__":
  main()
