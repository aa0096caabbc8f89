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
  unseen = sum(template.unseen for template in spec.templates)
  turned = sum(template.turned_around for template in spec.templates)
  lines = [
    f"{spec.name}: {spec.description}",
    f"cluster {spec.cluster}; {len(spec.templates)} templates, {unseen} unseen, "
    f"{turned} turned around; metrics {', '.join(spec.metrics)}; "
    f"licence: {spec.licence or 'not stated'}",
  ]
  if spec.long and long_limit is not None:
    lines.append(f"(field {spec.long!r} cut to {long_limit} characters)")
  for template in templates or spec.templates:
    lines += ["", _heading(template, spec)]
    for number, record in enumerate(records):
      draw = Draw("gallery", seed, spec.name, template.name, number)
      try:
        lines += ["", *_shown(template.render(record, draw, long_limit))]
      except DoesNotApply:
        lines += ["", "  (not for this record)"]
  return "\n".join(lines) + "\n"


def _heading(template: AnyTemplate, spec: DatasetSpec) -> str:
  notes = [f"options: {' or '.join(template.styles)}"] if template.styles != ("none",) else []
  notes += ["unseen"] if template.unseen else []
  notes += ["turned around"] if template.turned_around else []
  if template.metrics != spec.metrics:
    notes.append(f"metrics: {', '.join(template.metrics)}")
  return f"== {template.name}" + (f" ({'; '.join(notes)})" if notes else "")


def _shown(rendering: Rendering) -> list[str]:
  lines = []
  for turn in rendering.turns:
    lines += [f"  | {line}".rstrip() for line in turn.input.split("\n")]
    lines += [f"  > {line}".rstrip() for line in turn.target.split("\n")]
  if rendering.options:
    lines.append("    scored: " + " / ".join(rendering.options))
  elif len(rendering.golds) > 1:
    lines.append("    accepted: " + " / ".join(rendering.golds))
  return lines
