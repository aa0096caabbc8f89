"""Reading a dataset file, and finding every mistake in it before any record is rendered.

One YAML file, `<cluster>/<name>.yaml`, describes one dataset. Every error names the file and the line.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flan_jax.errors import FlanJaxError, RecordError, TemplateError, nearest
from flan_jax.prompting.dataset_spec import DatasetSpec
from flan_jax.prompting.derive import derive_function
from flan_jax.prompting.template import (
  OPTION_SETTINGS,
  Answer,
  PlaceholderError,
  Template,
  TurnText,
  ends_its_line,
  parse,
  used_in,
)
from flan_jax.prompting.yaml_lines import Keys, YamlFile

SPLITS = ("train", "validation", "test")
FIELD_KINDS = ("text", "long", "list")

_REQUIRED = (
  "cluster",
  "description",
  "source",
  "splits",
  "fields",
  "metrics",
  "record",
  "templates",
)
_OPTIONAL = ("group", "unique", "derive", "answer", "licence", "citation", "url")
_TEMPLATE_KEYS = (
  "name",
  "input",
  "target",
  "turns",
  "options",
  "choices",
  "turned_around",
  "unseen",
  "metrics",
)


def read_dataset(path: str | Path) -> DatasetSpec:
  """Reads one dataset file, checks all of it, and tries every template on its record.

  Args:
    path: `<cluster>/<name>.yaml`.

  Raises:
    TemplateError: anything is wrong; one line for each mistake, with file, line and the nearest valid name.
  """
  return _Reader(YamlFile(Path(path))).spec()


class _Reader:
  def __init__(self, file: YamlFile):
    self.file = file
    self.fields: dict[str, str] = {}
    self.answer: Answer | None = None

  def spec(self) -> DatasetSpec:
    data = self._mapping(self.file.data, (), (*_REQUIRED, *_OPTIONAL), _REQUIRED)
    path = self.file.path
    cluster = self._text(data, "cluster")
    folder = path.resolve().parent.name
    if cluster != folder:
      raise self.file.error(
        f"cluster is {cluster!r}, but the file lies in the folder {folder!r}", "cluster"
      )
    self.fields = self._fields(data)
    self.answer = self._answer(data)
    metrics = self._names(data, "metrics")
    spec = DatasetSpec(
      name=path.stem,
      cluster=cluster,
      path=path,
      description=self._text(data, "description"),
      source=self._mapping(data["source"], ("source",)),
      splits=self._splits(data),
      group=self._names(data, "group", ()),
      unique=self._names(data, "unique", tuple(self.fields)),
      derive=self._derive(data),
      fields=self.fields,
      long=next((name for name, kind in self.fields.items() if kind == "long"), None),
      answer=self.answer,
      metrics=metrics,
      licence=self._text(data, "licence", ""),
      citation=self._text(data, "citation", ""),
      url=self._text(data, "url", ""),
      record=self._mapping(data["record"], ("record",)),
      templates=self._templates(data["templates"], metrics),
      data=data,
    )
    self._check_long(spec)
    self._try(spec)
    return spec

  # Parts of the file.

  def _fields(self, data: Mapping[str, Any]) -> dict[str, str]:
    fields = self._mapping(data["fields"], ("fields",))
    for name, kind in fields.items():
      if not name.isidentifier():
        raise self.file.error(
          f"a field's name is letters, digits and _, not {name!r}", "fields", name
        )
      if kind not in FIELD_KINDS:
        self._unknown("kind of field", kind, FIELD_KINDS, "fields", name)
    long = [name for name, kind in fields.items() if kind == "long"]
    if len(long) > 1:
      raise self.file.error(
        f"only one field may be long, not {' and '.join(long)}", "fields", long[1]
      )
    if not fields:
      raise self.file.error("fields is empty", "fields")
    return fields

  def _answer(self, data: Mapping[str, Any]) -> Answer | None:
    answer = None
    if "answer" in data:
      answer = self._answer_section(
        self._mapping(
          data["answer"], ("answer",), ("field", "choices", "order", "golds"), ("field",)
        )
      )
    # {answer} and {options} are placeholders of their own, so a field of that name must mean the same.
    if answer is not None and "answer" in self.fields and answer.field != "answer":
      raise self.file.error(
        "a field named 'answer' must be the answer's field; give it another name",
        "fields",
        "answer",
      )
    if "options" in self.fields and (answer is None or answer.options_field != "options"):
      raise self.file.error(
        "a field named 'options' must hold the answer's options; give it another name",
        "fields",
        "options",
      )
    return answer

  def _answer_section(self, section: Mapping[str, Any]) -> Answer:
    field = self._field(section["field"], "text", "answer", "field")
    choices, golds, order = (
      section.get("choices"),
      section.get("golds"),
      section.get("order", "fixed"),
    )
    if order not in ("fixed", "shuffled"):
      self._unknown("order", order, ("fixed", "shuffled"), "answer", "order")
    if "order" in section and choices is None:
      raise self.file.error("order is for answers with choices", "answer", "order")
    if golds is not None:
      if choices is not None:
        raise self.file.error(
          "golds is for free text, not for answers with choices", "answer", "golds"
        )
      golds = self._field(golds, "list", "answer", "golds")
    shuffled = order == "shuffled"
    if choices is None:
      return Answer(field, golds_field=golds)
    if isinstance(choices, str):
      return Answer(
        field, options_field=self._field(choices, "list", "answer", "choices"), shuffled=shuffled
      )
    return Answer(field, labels=self._choices(choices, "answer", "choices"), shuffled=shuffled)

  def _choices(self, choices: Any, *keys: str | int) -> dict[str, str]:
    if not isinstance(choices, Mapping):
      raise self.file.error("choices maps label names to words, or names a list field", *keys)
    labels: dict[str, str] = {}
    for label, words in choices.items():
      text = _scalar_text(words)
      if not text:
        raise self.file.error(f"the choice {label!r} has no words", *keys, label)
      if text in labels.values():
        raise self.file.error(f"two choices have the same words {text!r}", *keys, label)
      labels[_scalar_text(label)] = text
    if len(labels) < 2:
      raise self.file.error("an answer with choices needs at least two", *keys)
    return labels

  def _splits(self, data: Mapping[str, Any]) -> dict[str, Any]:
    splits = self._mapping(data["splits"], ("splits",), SPLITS)
    shares = [value for value in splits.values() if isinstance(value, (int, float))]
    if not splits:
      raise self.file.error("splits is empty", "splits")
    if not shares:
      return {split: self._text(splits, split, keys=("splits",)) for split in splits}
    if len(shares) < len(splits):
      raise self.file.error(
        "splits names parts of the source or gives fractions, not both", "splits"
      )
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
      raise self.file.error(
        f"the fractions of splits must be above 0 and add up to 1, not {sum(shares):g}", "splits"
      )
    return {split: float(share) for split, share in splits.items()}

  def _derive(self, data: Mapping[str, Any]) -> str | None:
    if "derive" not in data:
      return None
    name = self._text(data, "derive")
    try:
      derive_function(name)
    except TemplateError as error:
      raise self.file.error(str(error), "derive") from error
    return name

  def _templates(self, entries: Any, metrics: tuple[str, ...]) -> tuple[Template, ...]:
    if not isinstance(entries, list) or not entries:
      raise self.file.error("templates is a list with at least one template", "templates")
    templates: dict[str, Template] = {}
    mistakes = []
    for index, entry in enumerate(entries):
      try:
        template = self._template(entry, ("templates", index), metrics)
        if template.name in templates:
          raise self.file.error(
            f"the template name {template.name!r} is used twice", "templates", index, "name"
          )
        templates[template.name] = template
      except TemplateError as error:
        mistakes.append(str(error))
    if mistakes:
      raise TemplateError("\n".join(mistakes))
    return tuple(templates.values())

  # One template.

  def _template(self, entry: Any, keys: Keys, metrics: tuple[str, ...]) -> Template:
    entry = self._mapping(entry, keys, _TEMPLATE_KEYS, ("name",))
    name = self._text(entry, "name", keys=keys)
    if not name.isidentifier():
      raise self.file.error(
        f"a template's name is letters, digits and _, not {name!r}", *keys, "name"
      )
    turned_around = self._flag(entry, "turned_around", keys)
    turns, places = self._turns(entry, name, keys)
    shows_options = self._check_placeholders(turns, places, name, turned_around)
    setting = entry.get("options", "any" if shows_options else "none")
    self._check_options(setting, shows_options, turns, name, keys)
    template = Template(
      name,
      turns,
      self.fields,
      self.answer,
      options=setting,
      choices=self._other_words(entry, name, keys),
      turned_around=turned_around,
      unseen=self._flag(entry, "unseen", keys),
      metrics=self._names(entry, "metrics", metrics, keys),
    )
    return template

  def _turns(
    self, entry: dict[str, Any], name: str, keys: Keys
  ) -> tuple[list[TurnText], list[Keys]]:
    if "turns" in entry:
      if "input" in entry or "target" in entry:
        raise self.file.error(
          f"template {name!r} has turns, and input or target beside them", *keys
        )
      if not isinstance(entry["turns"], list) or not entry["turns"]:
        raise self.file.error(
          f"template {name!r}: turns is a list of inputs and targets", *keys, "turns"
        )
      places: list[Keys] = [(*keys, "turns", i) for i in range(len(entry["turns"]))]
      sections = [
        self._mapping(turn, place, ("input", "target", "loss"), ("input", "target"))
        for turn, place in zip(entry["turns"], places, strict=True)
      ]
    else:
      for key in ("input", "target"):
        if key not in entry:
          raise self.file.error(f"template {name!r} has no {key}", *keys)
      places, sections = [keys], [entry]
    turns = [
      TurnText(
        self._text(section, "input", keys=place),
        self._text(section, "target", keys=place),
        self._flag(section, "loss", place, default=True),
      )
      for section, place in zip(sections, places, strict=True)
    ]
    return turns, places

  def _check_placeholders(
    self, turns: list[TurnText], places: list[Keys], name: str, turned_around: bool
  ) -> bool:
    """Checks every placeholder; returns whether the options are shown."""
    shown = 0
    for number, (turn, place) in enumerate(zip(turns, places, strict=True)):
      is_query = number == len(turns) - 1
      for part, text in (("input", turn.input), ("target", turn.target)):
        where: Keys = (*place, part)
        try:
          pieces = parse(text)
        except PlaceholderError as error:
          raise self._at(where, error.offset, f"template {name!r}: {error}") from error
        for piece in pieces:
          if not piece.is_placeholder:
            continue
          message = self._placeholder_mistake(piece.text, part, is_query, turned_around)
          if message:
            raise self._at(where, piece.offset, f"template {name!r}: {message}")
          shown += piece.text == "options"
          if shown > 1:
            raise self._at(where, piece.offset, f"template {name!r} shows {{options}} twice")
        if part == "target" and is_query and not used_in(pieces):
          raise self.file.error(
            f"template {name!r}: the target says the same for every record", *where
          )
    return shown > 0

  def _placeholder_mistake(
    self, name: str, part: str, is_query: bool, turned_around: bool
  ) -> str | None:
    answer = self.answer
    has_choices = answer is not None and answer.has_choices
    is_query_target = part == "target" and is_query
    if name == "options":
      if not has_choices:
        return "{options} needs an answer with choices"
      if part == "target":
        return "{options} can only be shown in an input"
      if turned_around:
        return "a template that is turned around gives the answer and shows no {options}"
      return None
    if name == "answer" and answer is not None:
      if turned_around and is_query_target:
        return "a template that is turned around has {answer} in its input, not in its target"
      if not turned_around and not is_query_target:
        return (
          f"{{answer}} in {_article(part)} gives the answer away; is the template turned_around?"
        )
      return None
    if name not in self.fields:
      known = [*self.fields, *(["answer"] if answer else []), *(["options"] if has_choices else [])]
      close = nearest(name, known)
      hint = f"did you mean {{{close[0]}}}?" if close else f"the fields are {', '.join(known)}"
      return f"unknown field {{{name}}}; {hint}"
    if self.fields[name] == "list":
      return f"{{{name}}} is a list; let the derive function join it into a text"
    if answer is not None and name == answer.field:
      if has_choices:
        return f"write {{answer}}, which has the words for it, in place of {{{name}}}"
      if not turned_around and not is_query_target:
        return f"{{{name}}} is the answer and gives it away; is the template turned_around?"
    return None

  def _check_options(
    self, setting: Any, shows_options: bool, turns: list[TurnText], name: str, keys: Keys
  ) -> None:
    if setting not in OPTION_SETTINGS:
      self._unknown("options setting", setting, OPTION_SETTINGS, *keys, "options")
    if setting == "none" and shows_options:
      raise self.file.error(
        f"template {name!r} shows {{options}} and says options: none", *keys, "options"
      )
    if setting != "none" and not shows_options:
      raise self.file.error(f"template {name!r} has no {{options}} in its input", *keys, "options")
    if setting in ("list", "letters") and not all(
      ends_its_line(parse(turn.input)) for turn in turns
    ):
      raise self.file.error(
        f"template {name!r}: options: {setting} takes whole lines, so nothing may follow {{options}} "
        "on its line; inline may stand within a sentence",
        *keys,
        "options",
      )

  def _other_words(self, entry: Mapping[str, Any], name: str, keys: Keys) -> dict[str, str] | None:
    if "choices" not in entry:
      return None
    labels = self.answer.labels if self.answer else None
    if labels is None:
      raise self.file.error(
        f"template {name!r} has choices, but the dataset's answer has no fixed ones",
        *keys,
        "choices",
      )
    words = self._choices(entry["choices"], *keys, "choices")
    for label in words:
      if label not in labels:
        self._unknown("choice", label, labels, *keys, "choices", label)
    missing = [label for label in labels if label not in words]
    if missing:
      raise self.file.error(
        f"template {name!r}: the choice {missing[0]!r} is missing", *keys, "choices"
      )
    return {label: words[label] for label in labels}

  # Proofs.

  def _check_long(self, spec: DatasetSpec) -> None:
    if spec.long and not any(spec.long in template.fields_used for template in spec.templates):
      raise self.file.error(f"no template uses the long field {spec.long!r}", "fields", spec.long)

  def _try(self, spec: DatasetSpec) -> None:
    try:
      record = spec.derive_record(spec.record)
    except FlanJaxError as error:
      raise self.file.error(f"the record cannot be used: {error}", "record") from error
    if record is None:
      raise self.file.error(f"{spec.derive} drops the record that should show it works", "record")
    mistakes = []
    for index, template in enumerate(spec.templates):
      try:
        for _ in template.every_rendering(record):
          pass
      except RecordError as error:
        mistakes.append(
          str(self.file.error(f"the record does not render: {error}", "templates", index))
        )
    if mistakes:
      raise TemplateError("\n".join(mistakes))

  # Values.

  def _mapping(
    self, value: Any, keys: Keys, known: Iterable[str] | None = None, required: Iterable[str] = ()
  ) -> dict[str, Any]:
    what = ".".join(map(str, keys)) or "the file"
    if not isinstance(value, dict):
      raise self.file.error(f"{what} should be a mapping of names to values", *keys)
    for key in value:
      if not isinstance(key, str):
        raise self.file.error(f"{what}: the key {key!r} should be text; quote it", *keys, key)
      if known is not None and key not in known:
        self._unknown("key", key, known, *keys, key)
    for key in required:
      if key not in value:
        raise self.file.error(f"{what} has no {key!r}", *keys)
    return value

  def _text(
    self, section: Mapping[str, Any], key: str, default: str | None = None, keys: Keys = ()
  ) -> str:
    if key not in section and default is not None:
      return default
    value = section[key]
    if not isinstance(value, str):
      raise self.file.error(f"{key} should be text, not {value!r:.60}; quote it", *keys, key)
    if not value.strip():
      raise self.file.error(f"{key} is empty", *keys, key)
    return value.strip() if "\n" not in value else value

  def _flag(self, section: Mapping[str, Any], key: str, keys: Keys, default: bool = False) -> bool:
    value = section.get(key, default)
    if not isinstance(value, bool):
      raise self.file.error(f"{key} is true or false, not {value!r:.60}", *keys, key)
    return value

  def _names(
    self,
    section: Mapping[str, Any],
    key: str,
    default: tuple[str, ...] | None = None,
    keys: Keys = (),
  ) -> tuple[str, ...]:
    if key not in section and default is not None:
      return default
    value = section[key]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
      raise self.file.error(f"{key} should be a name or a list of names", *keys, key)
    return tuple(names)

  def _field(self, name: Any, kind: str, *keys: str | int) -> str:
    if name not in self.fields:
      self._unknown("field", name, self.fields, *keys)
    if (self.fields[name] == "list") != (kind == "list"):
      raise self.file.error(f"the field {name!r} should be declared as {kind}", *keys)
    return name

  def _unknown(self, kind: str, name: Any, known: Iterable[str], *keys: str | int) -> None:
    known = list(known)
    close = nearest(str(name), known)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    raise self.file.error(f"unknown {kind} {name!r}; {hint}", *keys)

  def _at(self, keys: Keys, offset: int, message: str) -> TemplateError:
    return TemplateError(f"{self.file.path}:{self.file.line_in_text(keys, offset)}: {message}")


def _scalar_text(value: Any) -> str:
  if isinstance(value, bool):
    return "true" if value else "false"
  return str(value).strip() if isinstance(value, (str, int, float)) else ""


def _article(part: str) -> str:
  return "an input" if part == "input" else "an earlier target"
