"""One draw in words and ids: which template, which options style, which exemplars."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from flan_jax.data.encode import Dropped, Encoded, Encoder, Render
from flan_jax.data.records import content_key
from flan_jax.errors import ConfigError, RecordError
from flan_jax.prompting import AnyTemplate, DatasetSpec, DoesNotApply, Draw, Rendering, few_shot

_STYLE_ATTEMPTS = 16
_EXEMPLAR_ATTEMPTS = 32


class TrainingRecords(Protocol):
  """The training split of a dataset; `flan_jax.data.records.Records` is one."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict[str, Any]: ...

  def group(self, index: int) -> int: ...


TemplateChoice = Literal["seeded", "round_robin"]


def some_templates(spec: DatasetSpec, most: int | None, options: str, seed: int) -> DatasetSpec:
  """A dataset of which training draws fewer templates; what is chosen of more holds what is chosen of fewer.

  Args:
    most: the number of templates; None: all.
    options: "shown", "hidden" or "any", see `flan_jax.data.store.StoreConfig`.

  Raises:
    ConfigError: no template is left, or its templates do not say whether they show the options.
  """
  templates = spec.training_templates()
  if options != "any" and spec.keeps_raw_records:
    raise ConfigError(
      f"data.options={options!r}: the templates of {spec.name} are promptsource's, of which nothing says whether "
      "they show the options. Leave data.options 'any'."
    )
  if options != "any" and spec.label_field is not None:
    shows = options == "shown"
    templates = tuple(each for each in templates if (each.styles != ("none",)) == shows)
    if not templates:
      raise ConfigError(
        f"data.options={options!r} leaves {spec.name} no template to train with ({spec.path}): write one, or leave "
        "the dataset out."
      )
  order = sorted(templates, key=lambda each: Draw("templates", seed, spec.name, each.name).key)
  chosen = {each.name for each in order[:most]}
  return replace(spec, templates=tuple(each for each in spec.templates if each.name in chosen))


@dataclass(frozen=True)
class DatasetDraws:
  """Renders the draws of one dataset.

  Everything about a draw comes from a hash of (seed, dataset, example, epoch mod renderings).

  Args:
    spec: the dataset; only templates that are not `unseen` are drawn.
    records: its training records.
    size: how many of them are used, from the first.
    seed: of the run.
    renderings: later epochs repeat the texts of the first so many.
    shots: few-shot exemplars, of other groups than the query's, asking something else, and answered by the
      same template.
    shot_share: of the draws so many have exemplars, the others none.
    template_choice: "seeded" hashes a draw to a template; "round_robin" goes through them, example by example
      and one further each epoch, so that all are drawn equally often (Wei et al. 2022 mix theirs so).

  Raises:
    ConfigError: the dataset has no template for training.
  """

  spec: DatasetSpec
  records: TrainingRecords
  size: int
  seed: int
  renderings: int
  shots: int
  shot_share: float = 1.0
  template_choice: TemplateChoice = "seeded"

  def __post_init__(self) -> None:
    if not self.spec.training_templates():
      raise ConfigError(
        f"{self.spec.path}: every template is `unseen`, so there is nothing to train with."
      )

  def render(self, example: int, epoch: int, long_limit: int | None = None) -> Rendering:
    """The text of a draw, with at most so many characters of the query's long field.

    Raises:
      RecordError: the record gives an empty text.
    """
    return self._renderer(example, epoch)[0](long_limit)

  def encode(self, encoder: Encoder, example: int, epoch: int) -> Encoded | Dropped:
    """The ids of a draw; a record that gives an empty text is dropped as "unrenderable"."""
    render, others = self._renderer(example, epoch)
    try:
      encoded = encoder.encode(render)
    except RecordError:
      return Dropped("unrenderable")
    if isinstance(encoded, Dropped) or not others:
      return encoded
    return replace(encoded, exemplars=tuple(others[encoded.shots_dropped :]))

  def exemplars(self, example: int, epoch: int) -> list[int]:
    """The records that stand before the query of a draw."""
    draw = self._draw(example, epoch)
    return self._others(example, draw) if self._has_exemplars(draw) else []

  def _renderer(self, example: int, epoch: int) -> tuple[Render, Sequence[int]]:
    """What renders one draw at any limit, its exemplars once; and which examples those are."""
    draw = self._draw(example, epoch)
    others = self._others(example, draw) if self._has_exemplars(draw) else []
    exemplars: list[Rendering] = []

    def render(long_limit: int | None) -> Rendering:
      template, query = self._query(example, epoch, draw, long_limit)
      if others and not exemplars:
        exemplars.extend(self._exemplars(template, query.style, others, draw))
      return few_shot(query, exemplars) if exemplars else query

    return render, others

  def _query(
    self, example: int, epoch: int, draw: Draw, long_limit: int | None
  ) -> tuple[AnyTemplate, Rendering]:
    """The record in the words of the first template that is for it, and that template."""
    record, reason = self.records[example], RecordError("there is no template")
    for template in self._templates(example, epoch, draw):
      try:
        return template, template.render(record, draw, long_limit)
      except DoesNotApply as error:
        reason = error
    raise reason

  def _exemplars(
    self, template: AnyTemplate, style: str, others: Sequence[int], draw: Draw
  ) -> Iterator[Rendering]:
    for number, index in enumerate(others):
      record = self.records[index]
      # The options are shown as the query shows them, in an order of their own.
      for attempt in range(_STYLE_ATTEMPTS):
        shown = template.render(record, draw.fork("exemplar", number, attempt))
        if shown.style == style:
          break
      yield shown

  def _others(self, example: int, draw: Draw) -> list[int]:
    """Examples of other groups that ask something else; fewer than `shots` where hardly any exist."""
    draw, asked = draw.fork("exemplars"), self._asked(example)
    group = self.records.group(example)
    chosen: list[int] = []
    for _ in range(self.shots + _EXEMPLAR_ATTEMPTS):
      if len(chosen) == self.shots:
        break
      index = draw.below(self.size)
      if index in chosen or self.records.group(index) == group:
        continue
      # Groups may tell apart what only differs in its answer.
      if self._asked(index) != asked:
        chosen.append(index)
    return chosen

  def _asked(self, index: int) -> bytes:
    return content_key(self.records[index], self.spec.asked_fields)

  def _templates(self, example: int, epoch: int, draw: Draw) -> Iterator[AnyTemplate]:
    """The templates in the order in which a draw tries them; few datasets need more than the first."""
    untried, order = list(self.spec.training_templates()), draw.fork("template")
    if self.template_choice == "round_robin":
      yield untried.pop((example + epoch % self.renderings) % len(untried))
    while untried:
      yield untried.pop(order.below(len(untried)))

  def _has_exemplars(self, draw: Draw) -> bool:
    return self.shots > 0 and draw.fork("has exemplars").bits() < self.shot_share * 2**64

  def _draw(self, example: int, epoch: int) -> Draw:
    return Draw(self.seed, self.spec.name, example, epoch % self.renderings)
