"""What a dataset's templates look like on real records."""

from collections.abc import Mapping, Sequence
from typing import Any

from flan_jax.prompting.dataset_spec import DatasetSpec
from flan_jax.prompting.draw import Draw
from flan_jax.prompting.promptsource import AnyTemplate, DoesNotApply
from flan_jax.prompting.template import Rendering


def gallery(
  spec: DatasetSpec,
  templates: Sequence[AnyTemplate] = (),
  records: Sequence[Mapping[str, Any]] = (),
  *,
  seed: int = 0,
  long_limit: int | None = 400,
) -> str:
  """Templates of a dataset on real records, as text for a terminal.

  Args:
    spec: the dataset.
    templates: those to show; all of them if none are given.
    records: records after `derive`; the file's own record if there are none.
    seed: chooses the options' style and order.
    long_limit: characters shown of the long field; None for all of it.

  Returns:
    A text that ends in a line break. Inputs stand behind `|`, targets behind `>`.
  """
  records = records or [spec.derive_record(spec.record) or {}]
  lines = [f"{spec.name}: {spec.description}", _summary(spec)]
  if spec.long and long_limit is not None:
    lines.append(f"(field {spec.long!r} cut to {long_limit} characters)")
  for template in templates or spec.templates:
    lines += ["", _heading(template, spec)]
    for number, record in enumerate(records):
      lines += ["", *_lines(shown(spec, template, record, number, seed, long_limit))]
  return "\n".join(lines) + "\n"


def shown(
  spec: DatasetSpec,
  template: AnyTemplate,
  record: Mapping[str, Any],
  number: int = 0,
  seed: int = 0,
  long_limit: int | None = 400,
) -> Rendering | None:
  """The rendering of a record that stands for the template; another number draws another style.

  Returns:
    None where the template is not for the record.
  """
  draw = Draw("gallery", seed, spec.name, template.name, number)
  try:
    return template.render(record, draw, long_limit)
  except DoesNotApply:
    return None


def notes(template: AnyTemplate, spec: DatasetSpec) -> list[str]:
  """What tells a template from the plainest: its options' styles, uses and metrics."""
  found = [f"options: {' or '.join(template.styles)}"] if template.styles != ("none",) else []
  found += ["unseen"] if template.unseen else []
  found += ["turned around"] if template.turned_around else []
  if template.metrics != spec.metrics:
    found.append(f"metrics: {', '.join(template.metrics)}")
  return found


def answers(rendering: Rendering) -> str:
  """The targets that are scored, or accepted; empty where there is but the one that is written."""
  if rendering.options:
    return "scored: " + " / ".join(rendering.options)
  return "accepted: " + " / ".join(rendering.golds) if len(rendering.golds) > 1 else ""


def _summary(spec: DatasetSpec) -> str:
  """A dataset in one line, without its description."""
  unseen = sum(template.unseen for template in spec.templates)
  turned = sum(template.turned_around for template in spec.templates)
  return (
    f"cluster {spec.cluster}; {len(spec.templates)} templates, {unseen} unseen, "
    f"{turned} turned around; metrics {', '.join(spec.metrics)}; "
    f"licence: {spec.licence or 'not stated'}"
  )


def _heading(template: AnyTemplate, spec: DatasetSpec) -> str:
  told = notes(template, spec)
  return f"== {template.name}" + (f" ({'; '.join(told)})" if told else "")


def _lines(rendering: Rendering | None) -> list[str]:
  if rendering is None:
    return ["  (not for this record)"]
  lines = []
  for turn in rendering.turns:
    lines += [f"  | {line}".rstrip() for line in turn.input.split("\n")]
    lines += [f"  > {line}".rstrip() for line in turn.target.split("\n")]
  told = answers(rendering)
  return [*lines, f"    {told}"] if told else lines
