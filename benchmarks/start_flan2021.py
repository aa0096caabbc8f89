"""Time and memory until the first batch of `flan2021`, from a store that is there, every TFDS dataset mocked.

  python benchmarks/start_flan2021.py [--home /tmp/flan2021] [--examples 1000]

The first process mocks TFDS, builds the records of every dataset and prepares the store; datasets that come from
published packages are fetched. The second one starts from nothing but what the first has left, as a launch does.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

CONFIG = """
import sys
from flan_jax.data.batches import Batches
from flan_jax.data.prepare import prepare
from flan_jax.data.store import StoreConfig
from flan_jax.vocabularies import ByteVocabulary, PlainFormat
config = StoreConfig("flan2021", ByteVocabulary(), PlainFormat(), "encoder_decoder")
"""
COLD = (
  CONFIG
  + """
import tensorflow_datasets as tfds
with tfds.testing.mock_data(num_examples=int(sys.argv[2])):
  store = prepare(config, 256, sys.argv[1], workers=1)
print(len(store.tasks), "datasets;", "; ".join(store.missing.values()) or "none is missing")
"""
)
WARM = (
  CONFIG
  + """
store = prepare(config, 256, sys.argv[1])
batch = next(iter(Batches(store, 128, 0, 128)))
status = open("/proc/self/status").read().split()
print(len(batch["decoder_input_tokens"]), "rows; peak", int(status[status.index("VmHWM:") + 1]) / 2**20, "GiB")
"""
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--home", type=Path, default=Path("/tmp/flan2021"))
  parser.add_argument("--examples", type=int, default=1000)
  args = parser.parse_args()
  for name, code in (("cold", COLD), ("warm", WARM)):
    begun = time.perf_counter()
    words = [sys.executable, "-c", code, str(args.home), str(args.examples)]
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(f"{name}: {time.perf_counter() - begun:.1f} s; {said.strip()}")


if __name__ == "__main__":
  main()
