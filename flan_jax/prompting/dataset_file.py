"""Reading a dataset file, and finding every mistake in it before any record is rendered.

One YAML file, `<name>.yaml`, describes one dataset. Every error names the file and line.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flan_jax.errors import FlanJaxError, RecordError, TemplateError, UnknownName
from flan_jax.prompting.answers import Answer
from flan_jax.prompting.dataset_spec import DatasetSpec
from flan_jax.prompting.derive import derive_function
from flan_jax.prompting.placeholders import NAME, CompiledText, PlaceholderError, names_in, parse
from flan_jax.prompting.promptsource import DoesNotApply, read_promptsource
from flan_jax.prompting.sections import Section
from flan_jax.prompting.template import Template
from flan_jax.prompting.template_section import (
  TEMPLATE_KEYS,
  TemplateReader,
  read_choices,
  read_metrics,
)
from flan_jax.prompting.yaml_lines import GivenData, YamlFile

SPLITS = ("train", "validation", "test")
FIELD_KINDS = ("text", "long", "list")
ORDERS = ("fixed", "shuffled")

_REQUIRED = ("cluster", "description", "source", "splits", "record")
_ASKED = ("metrics", "templates")
_OWN = ("fields", "balance", "answer", "text")  # what templates of ours build on
_WORDS = ("fields", "answer", "balance", "long", "metrics", "templates", "text")
_OPTIONAL = ("group", "unique", "at_most", "derive", "licence", "citation", "url")

FindPromptsource = Callable[[str], Path]
"""From "glue/mrpc" to the `templates.yaml` that promptsource has for it."""


def read_dataset(
  path: str | Path, find_promptsource: FindPromptsource | None = None
) -> DatasetSpec:
  """Reads one dataset file, checks all of it, and tries every template on its record.

  Args:
    path: `<name>.yaml`.
    find_promptsource: where promptsource's own templates are; None: a file may name only a path to some.

  Raises:
    TemplateError: anything is wrong, with file, line and the nearest valid name; where several
      templates are wrong, one line for each.
  """
  path = Path(path)
  return _read(YamlFile(path), path.stem, path.resolve().parent, find_promptsource)


def given_dataset(
  name: str,
  content: Mapping[str, Any],
  folder: str | Path,
  find_promptsource: FindPromptsource | None = None,
) -> DatasetSpec:
  """The same of what such a file would say, given as a mapping.

  Args:
    name: of the dataset.
    content: the keys of a dataset file.
    folder: what the file patterns of its source are relative to.
    find_promptsource: as for `read_dataset`.

  Raises:
    TemplateError: as `read_dataset`, with the keys in place of the line.
  """
  return _read(GivenData(name, content), name, Path(folder).resolve(), find_promptsource)


def _read(
  file: YamlFile | GivenData, name: str, folder: Path, find: FindPromptsource | None
) -> DatasetSpec:
  root = Section(file, (), file.data, (*_REQUIRED, *_ASKED, *_OWN, *_OPTIONAL), _REQUIRED)
  if isinstance(root.data.get("templates"), Mapping):
    root = root.narrowed((*_REQUIRED, *_OPTIONAL, "templates"))
    words = _borrowed_words(root, folder, find)
  else:
    words = _own_words(root)
  spec = DatasetSpec(
    name=name,
    cluster=root.text("cluster"),
    path=file.path,
    folder=folder,
    description=root.text("description").strip(),
    source=root.section("source").data,
    splits=_splits(root.section("splits", SPLITS)),
    group=root.names("group", ()),
    at_most=_at_most(root),
    derive=_derive(root),
    licence=root.text("licence", "").strip(),
    citation=root.text("citation", "").strip(),
    url=root.text("url", "").strip(),
    record=root.section("record").data,
    unique=root.names("unique", tuple(words["fields"])),
    data=root.data,
    **words,
  )
  _try_templates(root, spec)
  return spec


def _own_words(root: Section) -> dict[str, Any]:
  """What a file says about the fields of its records, and its templates over them."""
  if "text" not in root or any(key in root for key in _ASKED):  # else nothing but running text
    root = root.narrowed(root.data, ("fields", *_ASKED))
  fields = _fields(root.section("fields"))
  answer = _answer(root, fields)
  metrics = read_metrics(root, answer) if "metrics" in root else ()
  if "balance" in root and (answer is None or answer.labels is None):
    raise root.error("balance is for an answer with fixed choices", "balance")
  templates = _templates(root, TemplateReader(fields, answer, metrics)) if metrics else ()
  long = next((name for name, kind in fields.items() if kind == "long"), None)
  if templates and long and not any(long in template.fields for template in templates):
    raise root.error(f"no template uses the long field {long!r}", "fields", long)
  return {
    "fields": fields,
    "answer": answer,
    "balance": root.names("balance", ()),
    "long": long,
    "metrics": metrics,
    "templates": templates,
    "text": _text(root, fields),
  }


def _borrowed_words(root: Section, folder: Path, find: FindPromptsource | None) -> dict[str, Any]:
  """The templates of another file, with all that they build on."""
  section = root.section("templates", ("like", "promptsource", "without"))
  kinds = [key for key in ("like", "promptsource") if key in section]
  if len(kinds) != 1:
    raise root.error(
      "templates is a list, or borrowed by one of like and promptsource", "templates"
    )
  if kinds == ["promptsource"]:
    return _promptsource_words(section, folder, find)
  section = section.narrowed(("like",))
  try:
    lender = read_dataset(folder / section.text("like"), find)
  except TemplateError as error:
    raise section.error(str(error), "like") from error
  return {key: getattr(lender, key) for key in _WORDS}


def _promptsource_words(
  section: Section, folder: Path, find: FindPromptsource | None
) -> dict[str, Any]:
  """The templates that promptsource has for a dataset. They read the raw record, which is kept whole."""
  name = section.text("promptsource")
  try:
    if Path(name).suffix == ".yaml":
      every = read_promptsource(folder / name)
    elif find is None:
      raise TemplateError(f"{name!r} is no path to a templates.yaml")
    else:
      every = read_promptsource(find(name))
  except (TemplateError, UnknownName) as error:
    raise section.error(str(error), "promptsource") from error
  titles = [template.title for template in every]
  without = section.names("without", ())
  for title in without:
    if title not in titles:
      raise section.unknown("template", title, titles, "without")
  templates = tuple(template for template in every if template.title not in without)
  judged = [template.metrics for template in templates if not template.turned_around]
  metrics = ("accuracy",) if ("accuracy",) in judged else next(iter(judged), ())
  none: dict[str, Any] = {"fields": {}, "answer": None, "balance": (), "long": None, "text": None}
  return {**none, "metrics": metrics, "templates": templates}


def _fields(section: Section) -> dict[str, str]:
  fields = section.data
  for name, kind in fields.items():
    if not NAME.fullmatch(name):
      raise section.error(f"a field's name is letters, digits and _, not {name!r}", name)
    if kind not in FIELD_KINDS:
      raise section.unknown("kind of field", kind, FIELD_KINDS, name)
  long = [name for name, kind in fields.items() if kind == "long"]
  if len(long) > 1:
    raise section.error(f"only one field may be long, not {' and '.join(long)}", long[1])
  if not fields:
    raise section.error("fields is empty")
  return fields


def _answer(root: Section, fields: dict[str, str]) -> Answer | None:
  answer = None
  if "answer" in root:
    section = root.section("answer", ("field", "choices", "order", "golds"), ("field",))
    answer = _answer_of(section, fields)
  # {answer} and {options} are placeholders of their own, so a field of that name must mean the same.
  if answer is not None and "answer" in fields and answer.field != "answer":
    raise root.error(
      "a field named 'answer' must be the answer's field; give it another name", "fields", "answer"
    )
  if "options" in fields and (answer is None or answer.options_field != "options"):
    raise root.error(
      "a field named 'options' must hold the answer's options; give it another name",
      "fields",
      "options",
    )
  return answer


def _answer_of(section: Section, fields: dict[str, str]) -> Answer:
  field = _field(section, "field", fields, is_list=False)
  choices, order = section.data.get("choices"), section.data.get("order", "fixed")
  if order not in ORDERS:
    raise section.unknown("order", order, ORDERS, "order")
  if choices is None:
    if "order" in section:
      raise section.error("order is for an answer with choices", "order")
    golds = _field(section, "golds", fields, is_list=True) if "golds" in section else None
    return Answer(field, golds_field=golds)
  if "golds" in section:
    raise section.error("golds is for free text, not for an answer with choices", "golds")
  shuffled = order == "shuffled"
  if isinstance(choices, str):
    options = _field(section, "choices", fields, is_list=True)
    return Answer(field, options_field=options, shuffled=shuffled)
  return Answer(field, labels=read_choices(section), shuffled=shuffled)


def _field(section: Section, key: str, fields: dict[str, str], is_list: bool) -> str:
  name = section.text(key)
  if name not in fields:
    raise section.unknown("field", name, fields, key)
  if (fields[name] == "list") != is_list:
    raise section.error(f"the field {name!r} should be a {'list' if is_list else 'text'}", key)
  return name


def _splits(section: Section) -> dict[str, str | float]:
  values = section.data
  if not values:
    raise section.error("splits is empty")
  shares = [value for value in values.values() if _is_number(value)]
  if not shares:
    return {split: section.text(split) for split in values}
  if len(shares) < len(values):
    raise section.error("splits names parts of the source, or gives fractions, not both")
  if min(shares) <= 0:
    raise section.error(f"fractions of splits must be above 0, not {min(shares):g}")
  if abs(sum(shares) - 1) > 1e-6:
    raise section.error(f"fractions of splits must add up to 1, not to {sum(shares):g}")
  return {split: float(share) for split, share in values.items()}


def _at_most(root: Section) -> dict[str, int]:
  if "at_most" not in root:
    return {}
  section = root.section("at_most")
  for name, count in section.data.items():
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
      raise section.error(f"at_most should be a number of records above 0, not {count!r}", name)
  if len(section.data) != 1:
    raise root.error("at_most names one field, and how many records may have its value", "at_most")
  return section.data


def _text(root: Section, fields: dict[str, str]) -> CompiledText | None:
  if "text" not in root:
    return None
  try:
    pieces = parse(root.text("text"))
  except PlaceholderError as error:
    raise root.error(str(error), "text") from error
  for name in sorted(names_in(pieces)):
    if name not in fields:
      raise root.unknown("field", name, fields, "text")
    if fields[name] == "list":
      raise root.error(f"the field {name!r} is a list, and running text is made of texts", "text")
  return CompiledText(pieces, {})


def _derive(root: Section) -> str | None:
  if "derive" not in root:
    return None
  name = root.text("derive")
  try:
    derive_function(name)
  except TemplateError as error:
    raise root.error(str(error), "derive") from error
  return name


def _templates(root: Section, reader: TemplateReader) -> tuple[Template, ...]:
  templates: dict[str, Template] = {}
  mistakes = []
  for section in root.sections("templates"):
    try:
      section = section.narrowed(TEMPLATE_KEYS, ("name",))
      template = reader.read(section)
      if template.name in templates:
        raise section.error(f"the template name {template.name!r} is used twice", "name")
      templates[template.name] = template
    except TemplateError as error:
      mistakes.append(str(error))
  if mistakes:
    raise TemplateError("\n".join(mistakes))
  return tuple(templates.values())


def _try_templates(root: Section, spec: DatasetSpec) -> None:
  """Renders the record in every template and style."""
  try:
    record = spec.derive_record(spec.record)
  except FlanJaxError as error:
    raise root.error(f"the record cannot be used: {error}", "record") from error
  if record is None:
    raise root.error(f"{spec.derive} drops the record that should show how it works", "record")
  mistakes, others = [], []
  for index, template in enumerate(spec.templates):
    try:
      for _ in template.renderings(record):
        pass
    except DoesNotApply as error:
      others.append(str(error))
    except RecordError as error:
      place = () if spec.keeps_raw_records else (index,)
      mistakes.append(str(root.error(f"the record does not render: {error}", "templates", *place)))
  if others and len(others) == len(spec.templates):
    mistakes.append(str(root.error(f"no template is for the record: {others[0]}", "record")))
  if mistakes:
    raise TemplateError("\n".join(mistakes))


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)
