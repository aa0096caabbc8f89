"""The state of training as its checkpoints keep it."""

from collections.abc import Mapping
from typing import Any

from flan_jax.training.averages import AveragedState
from flan_jax.training.step import TrainState

PyTree = Any


def parts_of(state: TrainState) -> dict[str, PyTree]:
  """A state as a checkpoint keeps it: parameters and averages apart from what only training needs."""
  rest = {"opt_state": state.opt_state, "step": state.step, "updates": state.updates}
  if not isinstance(state.opt_state, AveragedState):
    return {"params": state.params, "optimizer": rest}
  rest["opt_state"] = state.opt_state.inner
  return {"params": state.params, "averages": state.opt_state.averages, "optimizer": rest}


def state_of(parts: Mapping[str, PyTree]) -> TrainState:
  """The state that `parts_of` took apart."""
  rest = dict(parts["optimizer"])
  if "averages" in parts:
    rest["opt_state"] = AveragedState(rest["opt_state"], parts["averages"])
  return TrainState(parts["params"], **rest)
