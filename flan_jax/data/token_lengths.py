"""How long the examples of a mixture are in tokens, before any run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flan_jax.data.rates import MixtureTask
from flan_jax.data.store import StoreConfig
from flan_jax.data.streams import MixtureStream, described

SAMPLE = 200
"""Draws of each dataset that are looked at."""


@dataclass(frozen=True)
class TokenLengths:
  """What becomes of a dataset's first draws.

  Attributes:
    inputs: tokens that are read, on average over the examples that are kept, as training stores them; None
      where none is.
    targets: tokens that the loss is taken on, likewise.
    shortened: the part of the draws whose long field is cut.
    dropped: the part of the draws that training leaves out.
  """

  inputs: float | None
  targets: float | None
  shortened: float
  dropped: float


def token_lengths(
  tasks: Sequence[MixtureTask], config: StoreConfig, data_dir: Path | str, draws: int = SAMPLE
) -> dict[str, TokenLengths]:
  """The lengths of each dataset that is trained on, by name.

  The draws are the first that a run with this config makes of the dataset, whatever it is mixed with.

  Args:
    tasks: of the mixture; those that are held out or missing are passed over.
    config: tells vocabulary, format, layout, lengths and seed.
    data_dir: where records are kept.
    draws: of each dataset, each example once at most.
  """
  return {
    task.name: _lengths(task, config, data_dir, draws)
    for task in tasks
    if task.examples and not task.held_out
  }


def _lengths(
  task: MixtureTask, config: StoreConfig, data_dir: Path | str, draws: int
) -> TokenLengths:
  description = described(task, config, data_dir)
  draws = min(draws, description["examples"])
  examples, counts = MixtureStream(config, [description], data_dir).stretch(0, draws)
  encoded = [example.encoded for example in examples]
  tokens = sum(len(each.inputs) + len(each.targets) for each in encoded)
  targets = sum(end - start for each in encoded for start, end in each.spans)
  return TokenLengths(
    inputs=(tokens - targets) / len(encoded) if encoded else None,
    targets=targets / len(encoded) if encoded else None,
    shortened=counts[task.name].shortened / draws,
    dropped=(draws - len(encoded)) / draws,
  )
