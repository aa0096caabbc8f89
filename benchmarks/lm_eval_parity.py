"""The harness on one model twice: by `flan-jax lm-eval`, and by lm_eval's own model class `hf` (torch, float32).

  python benchmarks/lm_eval_parity.py [--model FOLDER] [--examples 100] [--work /tmp/lm_eval_parity]

Without --model, SmolLM2-135M-Instruct is written as a Hugging Face folder first. The tasks are made of datasets that
this repository reads: choices (one with two exemplars, one with the chat template), a last word, running text, written
answers. Prints for each task its metrics by both, and the largest difference of a sample's log-probability.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flan_jax.data.home import data_home
from flan_jax.data.library import dataset_spec
from flan_jax.data.records import load_records

SMOLLM2 = Path(__file__).parents[1] / "gin_configs" / "models" / "smollm2_135m.gin"
CHOICES = {
  "output_type": "multiple_choice",
  "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
  "boolq_here": (
    "boolq",
    CHOICES
    | {
      "doc_to_text": "{{title}}. {{passage}}\nQuestion: {{question}}\nAnswer:",
      "doc_to_choice": ["no", "yes"],
      "doc_to_target": "{{['false', 'true'].index(label)}}",
    },
  ),
  "piqa_here": (
    "piqa",
    CHOICES
    | {
      "doc_to_text": "Question: {{goal}}\nAnswer:",
      "doc_to_choice": "{{options}}",
      "doc_to_target": "{{options.index(answer)}}",
      "num_fewshot": 2,
      "fewshot_split": "few",
    },
  ),
  "commonsense_qa_here": (
    "commonsense_qa",
    CHOICES
    | {
      "doc_to_text": "Q: {{question}}\nA:",
      "doc_to_choice": "{{options}}",
      "doc_to_target": "{{options.index(answer)}}",
    },
  ),
  "openbookqa_here": (
    "openbookqa",
    CHOICES
    | {
      "doc_to_text": "{{question}}",
      "doc_to_choice": "{{options}}",
      "doc_to_target": "{{options.index(answer)}}",
    },
  ),
  "last_word_here": (
    "boolq",
    {
      "output_type": "loglikelihood",
      "doc_to_text": "{{passage.rsplit(' ', 1)[0]}}",
      "doc_to_target": "{{' ' + passage.rsplit(' ', 1)[1]}}",
      "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
  ),
  "passages_here": (
    "boolq",
    {
      "output_type": "loglikelihood_rolling",
      "doc_to_text": "",
      "doc_to_target": "{{passage}}",
      "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
  ),
  "answers_here": (
    "openbookqa",
    {
      "output_type": "generate_until",
      "doc_to_text": "Question: {{question}}\nAnswer:",
      "doc_to_target": "{{answer}}",
      "generation_kwargs": {"until": ["\n", "Question:"], "max_gen_toks": 24, "do_sample": False},
      "metric_list": [{"metric": "exact_match"}],
    },
  ),
}
CHAT = ("commonsense_qa_here", "answers_here")


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--model", type=Path)
  parser.add_argument("--examples", type=int, default=100)
  parser.add_argument("--tasks", default=",".join(TASKS))
  parser.add_argument("--work", type=Path, default=Path("/tmp/lm_eval_parity"))
  options = parser.parse_args()
  os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(options.work / "datasets")}
  model = options.model or options.work / "model"
  if not model.exists():
    convert = (
      "convert",
      f"--gin_file={SMOLLM2}",
      "--gin_file=runs/convert.gin",
      f"--gin.FOLDER='{model}'",
    )
    flan_jax(*convert)
  write_tasks(options.work / "tasks", options.examples)
  asked = options.tasks.split(",")
  for chat, tasks in ((False, asked), (True, [task for task in asked if task in CHAT])):
    if tasks:
      compare(model, tasks, chat, options.work)


def compare(model: Path, tasks: list[str], chat: bool, work: Path) -> None:
  """Runs both, and prints what they found."""
  place = work / ("chat" if chat else "plain")
  words = ["--tasks", ",".join(tasks), "--include_path", str(work / "tasks"), "--log_samples"]
  words += ["--apply_chat_template"] if chat else []
  begun = time.perf_counter()
  flan_jax("lm-eval", "--model_args", f"path={model}", *words, "--output_path", str(place / "ours"))
  between = time.perf_counter()
  theirs = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
  theirs += ["--batch_size", "8", "--output_path", str(place / "hf")]
  subprocess.run([sys.executable, "-m", "lm_eval", "run", *theirs, *words], check=True)
  seconds = between - begun, time.perf_counter() - between
  print(
    f"\n{'with' if chat else 'without'} chat template: {seconds[0]:.0f} s, hf {seconds[1]:.0f} s"
  )
  (ours, our_samples), (hf, hf_samples) = read(place / "ours"), read(place / "hf")
  for task in tasks:
    pairs = list(zip(answers(our_samples[task]), answers(hf_samples[task]), strict=True))
    for name, value in hf[task].items():
      if isinstance(value, float) and "stderr" not in name:
        print(f"{task:22} {name:24} ours {ours[task][name]:.6f}  hf {value:.6f}")
    if isinstance(pairs[0][0], str):
      print(f"{task:22} {sum(a == b for a, b in pairs)} of {len(pairs)} texts equal")
      continue
    worst = max(abs(a[0] - b[0]) for a, b in pairs)
    greedy = sum(a[1:] == b[1:] for a, b in pairs)
    print(
      f"{task:22} {len(pairs)} log-probabilities differ by {worst:.1e} at most, {greedy} greedy flags equal"
    )


def write_tasks(folder: Path, examples: int) -> None:
  """A file of records and a task file for each of `TASKS`."""
  folder.mkdir(parents=True, exist_ok=True)
  for task, (dataset, settings) in TASKS.items():
    splits = load_records(dataset_spec(dataset), data_home())
    files = {}
    for name, records in (("test", splits["test"][:examples]), ("few", splits["train"][:20])):
      files[name] = str(folder / f"{task}.{name}.jsonl")
      Path(files[name]).write_text("".join(json.dumps(record) + "\n" for record in records))
    about = {"task": task, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(about | {"test_split": "test"} | settings))


def read(folder: Path) -> tuple[dict[str, dict], dict[str, list[dict]]]:
  """The newest results and samples that the harness wrote."""
  newest = max(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
  stamp = newest.stem.removeprefix("results_")
  samples = {
    path.name.removeprefix("samples_").removesuffix(f"_{stamp}.jsonl"): [
      json.loads(line) for line in path.read_text().splitlines()
    ]
    for path in newest.parent.glob(f"samples_*_{stamp}.jsonl")
  }
  return json.loads(newest.read_text())["results"], samples


def answers(samples: list[dict]) -> Iterator[Any]:
  """Every answer of the model: a text, (log-probability, greedy) or (log-probability,)."""
  for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
    for (answer,) in sample["resps"]:
      if sample["arguments"]["gen_args_0"].keys() == {"arg_0", "arg_1"} and isinstance(answer, str):
        yield answer if not _is_number(answer) else (float(answer),)
      elif isinstance(answer, list):
        yield float(answer[0]), str(answer[1])
      else:
        yield (float(answer),)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def flan_jax(*words: str) -> None:
  subprocess.run([sys.executable, "-m", "flan_jax.cli.main", *words], check=True)


if __name__ == "__main__":
  main()
