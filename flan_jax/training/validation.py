"""The loss on batches that are never trained on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flan_jax.training.losses import Loss
from flan_jax.training.partitioning import Layout, put_batch

PyTree = Any


class HeldOutLoss:
  """Each term's sum over all batches, divided by its weight over all batches; no dropout.

  Args:
    loss: of any kind.
    batches: makes the batches, the same every time; of each array this process's rows.
    batch_size: rows of a global batch.
    layout: mesh and rules, which must be active where it is called.
    tasks: names of the task ids, for the loss on each task where the loss keeps account of them.
  """

  def __init__(
    self,
    loss: Loss,
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    batch_size: int,
    layout: Layout,
    tasks: Sequence[str] = (),
  ):
    self._batches, self._batch_size, self._layout = batches, batch_size, layout
    self._tasks = tuple(tasks)

    def sums(params: PyTree, batch: PyTree, frozen: PyTree) -> PyTree:
      weights, found = loss.weights(batch), loss.sums(params, batch, None, frozen)
      terms = {name: jnp.stack([term.sum, weights[name]]) for name, term in found.terms.items()}
      kept = {name: found.tallies[name] for name in ("task_loss", "task_weight") if self._tasks}
      return {"terms": terms, **kept}

    self._sums = jax.jit(sums)

  def __call__(
    self, params: PyTree, frozen: PyTree = None, stop: Callable[[], bool] = lambda: False
  ) -> dict[str, Any] | None:
    """{"loss": the first term, "terms": every term, "tasks": of each task that has any weight}.

    Args:
      stop: asked before every batch; where it says so, nothing is measured, and the result None.
    """
    total = None
    for batch in self._batches():
      if stop():
        return None
      arrays = put_batch(batch, self._layout, self._batch_size)
      sums = self._sums(params, arrays, frozen)
      total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    found = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(total))
    terms = {name: float(part[0] / part[1]) for name, part in found["terms"].items()}
    record: dict[str, Any] = {"loss": next(iter(terms.values())), "terms": terms}
    if self._tasks:
      losses, weights = found["task_loss"].tolist(), found["task_weight"].tolist()
      record["tasks"] = {
        name: loss / weight
        for name, loss, weight in zip(self._tasks, losses, weights, strict=True)
        if weight > 0
      }
    return record
