"""Few-shot prompts: answered exemplars before the query."""

from collections.abc import Sequence
from dataclasses import replace

from flan_jax.prompting.template import Rendering


def few_shot(rendering: Rendering, exemplars: Sequence[Rendering]) -> Rendering:
  """The query with exemplars as earlier turns, which are read and not learned.

  Args:
    rendering: the query.
    exemplars: the first comes first. Choosing them is the caller's: never from the query's group.
  """
  turns = [replace(turn, loss=False) for exemplar in exemplars for turn in exemplar.turns]
  shots = tuple(len(exemplar.turns) for exemplar in exemplars)
  return replace(rendering, turns=(*turns, *rendering.turns), shots=(*shots, *rendering.shots))


def fewer_shots(rendering: Rendering) -> Rendering:
  """The rendering without its first exemplar, for prompts that are too long.

  Raises:
    ValueError: it has no exemplars.
  """
  if not rendering.shots:
    raise ValueError(f"the rendering of {rendering.template!r} has no exemplars to drop")
  return replace(rendering, turns=rendering.turns[rendering.shots[0] :], shots=rendering.shots[1:])
