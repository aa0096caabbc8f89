"""An optimizer as gin makes it: before the model is known whose parameters it will move."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jax
import optax

from flan_jax.errors import ConfigError
from flan_jax.training.optimizers import trained_part
from flan_jax.training.partitioning import ShardedModel


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A learning rate, and the transformation that follows it.

  Attributes:
    name: by which gin knows it.
    schedule: the learning rate by updates made.
    make: from a model's logical axes to the transformation.
    trained: from a tree like that of the parameters to the part of it that is not frozen.
  """

  name: str
  schedule: optax.Schedule
  make: Callable[[Any], optax.GradientTransformation]
  trained: Callable[[Any], Any]

  def transformation(self, model: ShardedModel) -> optax.GradientTransformation:
    """For the parameters of a model.

    Raises:
      ConfigError: a number is out of range, or a pattern matches none of the parameters.
    """
    try:
      tx = self.make(model.logical_axes())
      # optax mixes dtypes that strict promotion refuses
      with jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(tx.init, model.shapes())
    except ConfigError as error:
      raise ConfigError(f"{self.name}.{error}") from error
    return tx


def as_optimizer(make: Callable[..., optax.GradientTransformation]) -> Callable[..., Optimizer]:
  """The configurable of one of `flan_jax.training.optimizers`: its settings without the model's axes."""
  parameters = inspect.signature(make).parameters
  settable = [p for name, p in parameters.items() if name != "axes"]

  def build(schedule: optax.Schedule, **settings: Any) -> Optimizer:
    def for_axes(axes: Any) -> optax.GradientTransformation:
      return make(schedule, **({"axes": axes} if "axes" in parameters else {}), **settings)

    trained = functools.partial(trained_part, multipliers=settings.get("multipliers"))
    return Optimizer(make.__name__, schedule, for_axes, trained)

  hints = typing.get_type_hints(make)
  build.__signature__ = inspect.Signature(settable)  # type: ignore[attr-defined]
  build.__annotations__ = {name: hint for name, hint in hints.items() if name != "axes"}
  build.__doc__ = make.__doc__
  return build
