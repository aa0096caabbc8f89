"""Steps that are skipped: counted, and the end of a run that makes no others."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flan_jax.data.atomic import write_whole
from flan_jax.errors import TrainingError
from flan_jax.training.not_finite import ForwardPass, not_finite
from flan_jax.training.partitioning import Layout, put_batch
from flan_jax.training.step import Metrics

PyTree = Any
FOLDER = "bad_steps"
_REASONS = {"not_finite": "not finite", "spike": "loss spikes", "empty": "without any target"}


class Taken(NamedTuple):
  """A step as the run took it.

  Args:
    rows: its first row, and the first one of the next step.
    batch: this process's share, on the host.
    metrics: of `make_train_step`, on the host.
  """

  rows: tuple[int, int]
  batch: Mapping[str, Any]
  metrics: Metrics


class BadSteps:
  """Counts the steps of a run that were skipped, and stops it where going on is of no use.

  It is of no use after `limit` skipped steps in a row, once a parameter is not finite, and, with
  `forward`, after any step that is not finite. The batch of the last skipped step is then in
  `bad_steps/<step>/` of the run: batch.npz (on several processes each writes its rows, in
  batch-<process>.npz), and report.txt, which says what was not finite and what the rows hold.

  Args:
    limit: None: no number of skipped steps stops the run.
    directory: of the run.
    layout: mesh and rules.
    gradients: names of the gradients that the metrics tell of.
    describe: from row numbers to lines that tell what these rows hold.
    forward: the forward pass that is looked into.
    backward: from parameters, batch, key, number of steps before and frozen parameters to the gradients.
  """

  def __init__(
    self,
    limit: int | None,
    directory: Path,
    layout: Layout,
    *,
    gradients: Sequence[str],
    describe: Callable[[Iterable[int]], Iterable[str]] | None = None,
    forward: ForwardPass | None = None,
    backward: Callable[..., PyTree] | None = None,
  ):
    self._limit, self._directory, self._layout = limit, directory, layout
    self._gradients, self._describe = tuple(gradients), describe
    self._forward, self._backward = forward, backward
    self._counts = dict.fromkeys(_REASONS, 0)
    self._in_a_row = 0

  def facts(self) -> dict[str, Any]:
    """What a checkpoint keeps, as JSON."""
    return {**self._counts, "in_a_row": self._in_a_row}

  def go_on_from(self, facts: Mapping[str, Any]) -> None:
    """Counts on from what `facts` said when a checkpoint was saved."""
    self._counts = {name: int(facts.get(name, 0)) for name in _REASONS}
    self._in_a_row = int(facts.get("in_a_row", 0))

  def count(self, metrics: Metrics) -> dict[str, Any]:
    """Takes in the next step, and returns what the log is to say: the steps skipped so far."""
    skipped = int(metrics["skipped"])
    self._in_a_row = self._in_a_row + 1 if skipped else 0
    if skipped:
      self._counts[_reason(metrics)] += 1
    told: dict[str, Any] = {"skipped": skipped, "skipped_so_far": dict(self._counts)}
    return {**told, "why_skipped": self._why(metrics)} if skipped else told

  def summary(self, steps: int) -> str | None:
    """How many steps were skipped, in a sentence; None: none."""
    parts = [
      f"{self._counts[name]} {words}" for name, words in _REASONS.items() if self._counts[name]
    ]
    total = sum(self._counts.values())
    return f"{total} of {steps} steps were skipped: {', '.join(parts)}" if parts else None

  def check(self, taken: Taken, params: PyTree, key: jax.Array, frozen: PyTree) -> None:
    """Looks into a step that was counted, where it was skipped.

    Args:
      params: as the step left them, or a later one.
      key: of all steps.
      frozen: parameters that are not trained.

    Raises:
      TrainingError: the run is to stop.
    """
    metrics = taken.metrics
    if not metrics["skipped"]:
      return
    broken = []
    if _reason(metrics) == "not_finite":
      trees = (params,) if frozen is None else (params, frozen)
      broken = [name for tree in trees for name in not_finite(tree, self._layout)]
    debugged = self._forward is not None and _reason(metrics) == "not_finite"
    if broken or debugged or self._in_a_row == self._limit:
      first = self._first(taken, params, key, frozen) if debugged else None
      raise TrainingError(self._stopped(taken, broken, first))

  def _first(self, taken: Taken, params: PyTree, key: jax.Array, frozen: PyTree) -> str:
    """Where a step stopped being finite."""
    assert self._forward is not None and self._backward is not None
    first, stop = taken.rows
    batch = put_batch(taken.batch, self._layout, stop - first)
    step = int(taken.metrics["step"]) - 1
    if found := self._forward.first_not_finite(params, batch, key, step, frozen):
      return f"in the forward pass the output of {found} is the first"
    if not taken.metrics["finite"]["loss"]:
      return "the outputs of all layers are finite: logits or weights of the loss are not"
    gradients = jax.jit(self._backward, static_argnums=3)(params, batch, key, step, frozen)
    names = not_finite(gradients, self._layout)
    return f"the forward pass is finite and the backward pass is not, in {_some(names, most=12)}"

  def _stopped(self, taken: Taken, broken: Sequence[str], first: str | None) -> str:
    """Saves the batch with a report, and says why the run stops."""
    step, (row, stop) = int(taken.metrics["step"]), taken.rows
    nth = f", the last of {self._in_a_row} in a row" if self._in_a_row > 1 else ""
    found = [
      f"step {step} (rows {row} to {stop - 1}) was skipped{nth}: {self._why(taken.metrics)}",
      *(
        [f"in the batch {', '.join(names)} is not finite"]
        if (names := _floats(taken.batch))
        else []
      ),
      *([first] if first else []),
      *([f"these parameters are not finite: {_some(broken)}"] if broken else []),
    ]
    bad = self._bad_gradients(taken.metrics)
    lists = [
      *_listed("gradients that are not finite", bad),
      *_listed("parameters that are not finite", broken),
    ]
    folder = self._directory / FOLDER / str(step)
    self._save(folder, taken, [*found, *lists])
    return (
      f"{'; '.join(found)}. The batch is saved in {folder}. {self._advice(taken.metrics, broken)}"
    )

  def _advice(self, metrics: Metrics, broken: Sequence[str]) -> str:
    if broken:
      return (
        "No update mends a parameter: remove the checkpoints that were saved since it was whole, and the same "
        "command goes on from the one before."
      )
    looked = self._forward is not None or _reason(metrics) != "not_finite"
    return (
      "Look at its report.txt; where the batch is as it should be, try a lower learning rate or clip_norm"
      f"{'' if looked else ', let --debug find the layer'}, or bear more such steps with a larger max_bad_steps."
    )

  def _save(self, folder: Path, taken: Taken, told: Sequence[str]) -> None:
    alone = jax.process_count() == 1
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in taken.batch.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    name = "batch.npz" if alone else f"batch-{jax.process_index()}.npz"
    write_whole(folder / name, content.getvalue())
    if jax.process_index() == 0:
      lines = [*told, ""]
      if self._describe is not None:
        lines += self._describe(range(*taken.rows))
      write_whole(folder / "report.txt", (f"{line}\n" for line in lines))

  def _why(self, metrics: Metrics) -> str:
    reason = _reason(metrics)
    if reason == "empty":
      return "the batch has no target that counts"
    if reason == "spike":
      return f"its loss, {float(metrics['loss']):.4f}, is a spike"
    bad, parts = self._bad_gradients(metrics), []
    if not metrics["finite"]["loss"]:
      parts.append("the loss")
    if bad:
      all_of_them = len(bad) == len(self._gradients)
      parts.append("all gradients" if all_of_them else f"the gradients of {_some(bad)}")
    return f"not finite: {' and '.join(parts) or 'the norm of the gradient'}"

  def _bad_gradients(self, metrics: Metrics) -> list[str]:
    flags = np.asarray(metrics["finite"]["gradients"]).tolist()
    return [name for name, finite in zip(self._gradients, flags, strict=True) if not finite]


def _reason(metrics: Metrics) -> str:
  """Why a step was skipped."""
  if metrics["spike"]:
    return "spike"
  finite = np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
  return "empty" if finite else "not_finite"


def _floats(batch: Mapping[str, Any]) -> list[str]:
  """The arrays of a batch that are not finite."""
  return [
    name
    for name, array in batch.items()
    if np.issubdtype(np.asarray(array).dtype, np.inexact) and not np.isfinite(array).all()
  ]


def _some(names: Sequence[str], most: int = 3) -> str:
  shown = ", ".join(names[:most])
  return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _listed(title: str, names: Sequence[str]) -> list[str]:
  return ["", f"{title}:", *(f"  {name}" for name in names)] if names else []
