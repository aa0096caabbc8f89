"""From records to packed arrays, beside a SeqIO mixture of the same tasks: examples a second, and the first batch.

  python benchmarks/pipeline.py [throughput] [first_batch] [--rows 16000]

`throughput` takes the training datasets of `mini` with all their templates, from records that are built. Ours renders,
tokenises, packs and stores rows of 1024 and 256 tokens, a process a core, and lays them out as arrays. SeqIO's mixture
has a task for each template, as T0's and FLAN's have: records from memory with the texts of options and answer given,
so that a task is the `tf.strings.join` of FLAN's formatter, `tokenize`, `append_eos` and, for the mixture,
`EncDecFeatureConverter(pack=True)`. Both have one SentencePiece model, and both are stopped at so many rows. SeqIO's
clock begins with its first batch. Medians of turns in processes of their own are told.

`first_batch` is of the 68 datasets of `flan2021` with 10 templates and 300 records each, from the start of Python
until 128 packed rows are there. Ours opens a store, as a launch does, that `start_flan2021.py` has prepared of the
same datasets; SeqIO does not shuffle, for which it would render 1,000 examples of a task before its first.
"""

import argparse
import functools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import start_flan2021
from figures import Figure, tell

from flan_jax.data import dataset_spec, training_datasets
from flan_jax.data.batches import Batches
from flan_jax.data.home import data_home
from flan_jax.data.prepare import prepare
from flan_jax.data.rates import training_tasks
from flan_jax.data.records import load_records
from flan_jax.data.store import StoreConfig
from flan_jax.data.training_text import training_text
from flan_jax.errors import RecordError
from flan_jax.prompting import DatasetSpec, Draw, Template
from flan_jax.vocabularies import PlainFormat, SentencePieceVocabulary
from flan_jax.vocabularies.sentencepiece_training import train_sentencepiece

LENGTHS = {"inputs": 1024, "targets": 256}
ROWS_OF_BATCH = 128
TURNS = 2
MOST_RECORDS = 3000  # of a dataset, as FLAN caps them
WORDS, CHARACTERS = 8000, 3_000_000  # of the SentencePiece model, and what it is made from
RECORDS = 300  # of a dataset of `flan2021`

Columns = dict[str, list[str]]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("parts", nargs="*", default=["throughput", "first_batch"])
  parser.add_argument("--rows", type=int, default=16_000)
  parser.add_argument("--model", help=argparse.SUPPRESS)
  parser.add_argument("--alone", choices=("ours", "seqio"), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.alone:
    alone = (
      {"ours": ours, "seqio": with_seqio}
      if args.parts == ["throughput"]
      else {"seqio": first_of_seqio}
    )
    print(json.dumps(alone[args.alone](args.model, args.rows)))
    return
  if "throughput" in args.parts:
    with tempfile.NamedTemporaryFile(suffix=".model") as model:
      texts = training_text("mini", data_home(), 0, CHARACTERS)
      Path(model.name).write_bytes(train_sentencepiece(texts, WORDS, extra_ids=0))
      settings = ("throughput", f"--model={model.name}", f"--rows={args.rows}")
      turns = [
        [in_process(settings, kind)["examples"] for kind in ("ours", "seqio")] for _ in range(TURNS)
      ]
    ours_pace, peers = map(statistics.median, zip(*turns, strict=True))
    tell(
      Figure(
        "render, tokenise and pack `mini`, against a SeqIO mixture of the same tasks",
        f"{ours_pace:,.0f} examples/s against {peers:,.0f}",
        ours_pace / peers,
        5,
      )
    )
  if "first_batch" in args.parts:
    compare_first_batches()


def compare_first_batches() -> None:
  with tempfile.TemporaryDirectory() as home:
    words = [sys.executable, start_flan2021.__file__, f"--home={home}", f"--examples={RECORDS}"]
    begun = time.perf_counter()
    subprocess.run(
      [*words, "--part=cold"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    prepared = time.perf_counter() - begun
    begun = time.perf_counter()
    said = subprocess.run(
      [*words, "--part=warm"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    ours_seconds = time.perf_counter() - begun
  found = re.search(r"peak ([\d.]+) GiB", said)
  assert found, said
  ours_peak = float(found[1])
  begun = time.perf_counter()
  peer = in_process(("first_batch",), "seqio")
  seconds = time.perf_counter() - begun
  about = "first batch of 68 datasets with 10 templates each, from a prepared store, against SeqIO"
  tell(
    Figure(
      f"{about}: time",
      f"{ours_seconds:.1f} s, and once before {prepared:.0f} s to prepare, against {seconds:.1f} s",
      seconds / ours_seconds,
      10,
    )
  )
  tell(
    Figure(
      f"{about}: memory",
      f"{ours_peak:.2f} GiB against {peer['peak']:.2f} GiB",
      peer["peak"] / ours_peak,
      10,
    )
  )


def in_process(settings: Sequence[str], kind: str) -> dict[str, float]:
  words = [sys.executable, __file__, *settings, f"--alone={kind}"]
  environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
  said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
  return json.loads(said.stdout.splitlines()[-1])


def ours(model: str, rows: int) -> dict[str, float]:
  """Into a store that is not there yet."""
  vocabulary = SentencePieceVocabulary(model, extra_ids=0)
  config = StoreConfig(
    "mini", vocabulary, PlainFormat(), "encoder_decoder", LENGTHS, seed=time.time_ns() % 2**31
  )
  begun = time.perf_counter()
  store = prepare(config, rows, data_home(), progress=False)
  examples = sum(map(examples_of_batch, Batches(store, ROWS_OF_BATCH)))
  return {"examples": examples / (time.perf_counter() - begun)}


def examples_of_batch(batch: Mapping[str, Any]) -> int:
  return int(batch["decoder_segment_ids"].max(axis=1).sum())


def with_seqio(model: str, rows: int) -> dict[str, float]:
  import seqio

  vocabulary = seqio.SentencePieceVocabulary(model, extra_ids=0)
  shares = {}
  for task in training_tasks("mini", data_home()):
    spec = dataset_spec(task.name)
    records = load_records(spec, data_home())["train"][: min(task.examples, MOST_RECORDS)]
    shares.update(registered(spec, records, spec.training_templates(), task.share, vocabulary))
  batches = iter(seqio_batches("mini", shares, shuffle=True))
  next(batches)
  begun, made, examples = time.perf_counter(), 0, 0
  while made < rows:
    batch = next(batches)
    made += ROWS_OF_BATCH
    examples += examples_of_batch(batch)
  return {"examples": examples / (time.perf_counter() - begun)}


def first_of_seqio(model: None, rows: int) -> dict[str, float]:
  del model, rows
  import seqio

  shares = {}
  for name in training_datasets("flan2021"):
    spec = dataset_spec(name)
    places = start_flan2021.numbered_places(spec)
    numbered = (start_flan2021.numbered(spec.record, places, i) for i in range(RECORDS))
    records = [record for each in numbered if (record := spec.derive_record(each)) is not None]
    templates = spec.training_templates()
    ten = [templates[i % len(templates)] for i in range(10)]
    shares.update(registered(spec, records, ten, 1.0, seqio.ByteVocabulary()))
  next(iter(seqio_batches("flan2021", shares, shuffle=False)))
  return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def registered(
  spec: DatasetSpec,
  records: Sequence[Mapping[str, Any]],
  templates: Sequence[Template],
  share: float,
  vocabulary: Any,
) -> dict[str, float]:
  """A SeqIO task for each template, with its share."""
  import seqio

  found = {}
  for number, template in enumerate(templates):
    columns = columns_of(records, template)
    if not columns:
      continue
    name = f"{re.sub('[^A-Za-z0-9_]', '_', spec.name)}_{number}"
    seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(
        functools.partial(from_memory, columns),
        splits=("train",),
        num_input_examples={"train": len(records)},
      ),
      preprocessors=[
        functools.partial(formatted, text=template.texts[-1]),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
      ],
      output_features={
        key: seqio.Feature(vocabulary, add_eos=True) for key in ("inputs", "targets")
      },
    )
    found[name] = share / len(templates)
  return found


def columns_of(records: Sequence[Mapping[str, Any]], template: Template) -> Columns:
  """What the template's texts name, as texts: fields, and options and answer as a rendering has them."""
  names = re.findall(r"(?<!\{)\{(\w+)\}", template.texts[-1].input + template.texts[-1].target)
  columns: Columns = {name: [] for name in names}
  for number, record in enumerate(records):
    try:
      rendering = template.render(record, Draw(number))
    except RecordError:  # a record that this template is not for
      continue
    given = {
      "options": "\n".join(f"- {option}" for option in rendering.options),
      "answer": rendering.golds[0] if rendering.golds else "",
    }
    for name in columns:
      columns[name].append(given.get(name) or str(record.get(name, "")))
  return columns


def from_memory(columns: Columns, split: str, shuffle_files: bool, seed: int | None = None) -> Any:
  import tensorflow as tf

  del split, seed
  data = tf.data.Dataset.from_tensor_slices(columns)
  return data.shuffle(len(next(iter(columns.values())))) if shuffle_files else data


def formatted(dataset: Any, text: Any) -> Any:
  """Inputs and targets: the pieces of the texts joined, as FLAN's formatter joins them."""
  import tensorflow as tf

  def words(pattern: str, example: dict[str, Any]) -> Any:
    pieces = [piece for piece in re.split(r"(?<!\{)(\{\w+\})", pattern) if piece]
    return tf.strings.join(
      [example[piece[1:-1]] if re.fullmatch(r"\{\w+\}", piece) else piece for piece in pieces]
    )

  def both(example: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": words(text.input, example), "targets": words(text.target, example)}

  return dataset.map(both, num_parallel_calls=tf.data.AUTOTUNE)


def seqio_batches(name: str, shares: Mapping[str, float], shuffle: bool) -> Any:
  import seqio

  seqio.MixtureRegistry.add(name, list(shares.items()))
  rows = seqio.get_dataset(
    name,
    task_feature_lengths=LENGTHS,
    dataset_split="train",
    shuffle=shuffle,
    num_epochs=None,
    feature_converter=seqio.EncDecFeatureConverter(pack=True),
  )
  return rows.batch(ROWS_OF_BATCH, drop_remainder=True).prefetch(2).as_numpy_iterator()


if __name__ == "__main__":
  main()
