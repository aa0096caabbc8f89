"""File formats: a stream of bytes to records, one dict each.

A record that cannot be read is a RecordError that names the file, the line and what is wrong.
"""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from flan_jax.data.tfrecords import read_tfrecords
from flan_jax.errors import ConfigError, RecordError, UnknownName


class Record(dict[str, Any]):
  """A raw record.

  Attributes:
    place: where it stands, such as "tickets.jsonl:42"; "" where a source does not say.
  """

  place: str = ""


Placed = tuple[str, Any]
"""Where a record stands, and what it holds."""

_SUFFIXES = {
  ".jsonl": "jsonl",
  ".json": "json",
  ".csv": "csv",
  ".tsv": "tsv",
  ".parquet": "parquet",
  ".tfrecord": "tfrecord",
  ".txt": "text",
  ".yaml": "yaml",
  ".yml": "yaml",
}


_SHARD = re.compile(r"-[\d*?]+(-of-[\d*?]+)?$")


@dataclass(frozen=True)
class Format:
  """How to read records from a file.

  Attributes:
    name: jsonl (an object a line), json, yaml, csv, tsv (no quoting), parquet, tfrecord (of
      `tf.train.Example`s; a feature with one value is that value, else a list), or text (the whole file
      is one record).
    encoding: of text formats; of several, the first that can read the file (jsonl, tsv: the line).
    columns: names of the columns, for csv and tsv files without a header line.
    at: for json and yaml, where the records are: keys joined by dots. Lists on the way are walked,
      and a record takes over the plain values of the objects around it; "data.paragraphs.qas"
      reads SQuAD.

  json, yaml and text records also get `path`, the name of their file, unless they have one.
  A json or yaml list element that is no object becomes {"value": element}.
  """

  name: str
  encoding: tuple[str, ...] = ("utf-8",)
  columns: tuple[str, ...] = ()
  at: str = ""

  def __post_init__(self):
    if self.name not in _READERS:
      raise UnknownName("file format", self.name, _READERS)
    if self.columns and self.name not in ("csv", "tsv"):
      raise ConfigError(f"columns belong to the formats csv and tsv, not to {self.name}.")
    if self.at and self.name not in ("json", "yaml"):
      raise ConfigError(f"'at' belongs to the formats json and yaml, not to {self.name}.")

  def read(self, stream: IO[bytes], path: str, origin: str = "") -> Iterator[Record]:
    """The records of one file.

    Args:
      stream: the file's bytes.
      path: the file's name, kept in json, yaml and text records.
      origin: how errors name the file; the path by default.

    Raises:
      RecordError: the file, or a line of it, is malformed.
    """
    origin = origin or path
    try:
      for place, content in _READERS[self.name](self, stream, origin):
        record = Record(content)
        record.place = place
        if self.name in ("json", "yaml", "text"):
          record.setdefault("path", path)
        yield record
    except (OSError, EOFError, zlib.error) as error:
      raise RecordError(f"{origin}: cannot be read: {error}.") from error


def format_of(filename: str) -> str:
  """The format that a file's name tells, looking through a final .gz and the number of a shard.

  Raises:
    ConfigError: the ending is unknown.
  """
  path = PurePosixPath(_SHARD.sub("", filename.removesuffix(".gz")))
  if path.suffix not in _SUFFIXES:
    raise ConfigError(
      f"the format of {filename} cannot be told from its name; write `format:` in the source, one "
      f"of {', '.join(_READERS)}."
    )
  return _SUFFIXES[path.suffix]


def _jsonl(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  for number, line in enumerate(stream, start=1):
    where = f"{origin}:{number}"
    text = _decoded(line, form.encoding, where)
    if not text.strip():
      continue
    record = _parsed_json(text, origin, number)
    if not isinstance(record, dict):
      raise RecordError(f"{where}: the line holds {_kind(record)}, expected an object {{...}}.")
    yield where, record


def _json(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  document = _parsed_json(_decoded(stream.read(), form.encoding, origin), origin)
  yield from _documented(form, document, origin)


def _yaml(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  import yaml

  text = _decoded(stream.read(), form.encoding, origin)
  try:
    document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
  except yaml.MarkedYAMLError as error:
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    raise RecordError(f"{origin}:{line}: not YAML: {error.problem}.") from error
  yield from _documented(form, document, origin)


def _documented(form: Format, document: Any, origin: str) -> Iterator[Placed]:
  records = _walk(document, form.at.split(".") if form.at else [], {}, origin, form.at)
  for number, record in enumerate(records, start=1):
    yield f"{origin}: record {number}", record


def _walk(
  node: Any, keys: Sequence[str], around: dict[str, Any], origin: str, at: str
) -> Iterator[dict[str, Any]]:
  if not keys:
    for element in node if isinstance(node, list) else [node]:
      yield {**around, **(element if isinstance(element, dict) else {"value": element})}
  elif isinstance(node, list):
    for element in node:
      yield from _walk(element, keys, around, origin, at)
  elif not isinstance(node, dict) or keys[0] not in node:
    known = list(node) if isinstance(node, dict) else []
    raise RecordError(f"{origin}: no {keys[0]!r} here (at: {at}); the keys are {known}.")
  else:
    plain = {
      key: value for key, value in node.items() if isinstance(value, str | int | float | bool)
    }
    yield from _walk(node[keys[0]], keys[1:], {**around, **plain}, origin, at)


def _csv(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  # The module's default refuses fields over 128 KiB, which whole documents pass.
  csv.field_size_limit(1 << 30)
  lines = io.StringIO(_decoded(stream.read(), form.encoding, origin), newline="")
  reader = csv.reader(lines, strict=True)
  try:
    yield from _table(form, ((reader.line_num, row) for row in reader), origin)
  except csv.Error as error:
    raise RecordError(f"{origin}:{reader.line_num}: {error}.") from error


def _tsv(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  lines = (
    (number, _decoded(line, form.encoding, f"{origin}:{number}").rstrip("\r\n").split("\t"))
    for number, line in enumerate(stream, start=1)
  )
  yield from _table(form, lines, origin)


def _table(form: Format, rows: Iterator[tuple[int, list[str]]], origin: str) -> Iterator[Placed]:
  columns = list(form.columns)
  for number, row in rows:
    if not any(row):
      continue
    if not columns:
      columns = [name.removeprefix("\ufeff").strip() for name in row]
      if len(set(columns)) < len(columns) or "" in columns:
        raise RecordError(
          f"{origin}:{number}: the header {columns} has empty or repeated names; if the file has "
          "no header, name the columns by `columns:`."
        )
      continue
    if len(row) != len(columns):
      raise RecordError(
        f"{origin}:{number}: {len(row)} columns, expected {len(columns)} ({', '.join(columns)})."
      )
    yield f"{origin}:{number}", dict(zip(columns, row, strict=True))


def _parquet(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  content = stream if stream.seekable() else pa.BufferReader(stream.read())
  try:
    number = 0
    for batch in pq.ParquetFile(content).iter_batches(batch_size=1024):
      for record in batch.to_pylist():
        number += 1
        yield f"{origin}: row {number}", record
  except pa.ArrowException as error:
    raise RecordError(f"{origin}: not a Parquet file: {error}.") from error


def _tfrecord(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  def plain(value: Any, where: str) -> Any:
    if isinstance(value, list):
      return [plain(item, where) for item in value]
    return _decoded(value, form.encoding, where) if isinstance(value, bytes) else value

  for where, features in read_tfrecords(stream, origin):
    yield where, {name: plain(value, f"{where}: {name}") for name, value in features.items()}


def _text(form: Format, stream: IO[bytes], origin: str) -> Iterator[Placed]:
  yield origin, {"text": _decoded(stream.read(), form.encoding, origin)}


_READERS: dict[str, Callable[[Format, IO[bytes], str], Iterator[Placed]]] = {
  "jsonl": _jsonl,
  "json": _json,
  "yaml": _yaml,
  "csv": _csv,
  "tsv": _tsv,
  "parquet": _parquet,
  "tfrecord": _tfrecord,
  "text": _text,
}


def _decoded(content: bytes, encodings: Sequence[str], where: str) -> str:
  for encoding in encodings:
    try:
      return content.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
      raise ConfigError(f"{where}: unknown encoding {encoding!r}.") from error
    except UnicodeDecodeError as error:
      mistake = error
  raise RecordError(
    f"{where}: byte {mistake.start + 1} is not {mistake.encoding}: {mistake.reason}. If the file "
    "is in another encoding, write `encoding:` in the source."
  )


def _parsed_json(text: str, origin: str, line: int | None = None) -> Any:
  try:
    return json.loads(text, parse_constant=_not_json)
  except json.JSONDecodeError as error:
    at = line if line is not None else error.lineno
    raise RecordError(
      f"{origin}:{at}: not JSON: {error.msg} at column {error.colno}, near "
      f"{text[max(0, error.pos - 20) : error.pos + 20].strip()!r}."
    ) from error
  except (ValueError, RecursionError) as error:
    raise RecordError(f"{origin}{f':{line}' if line else ''}: not JSON: {error}.") from error


def _not_json(constant: str) -> Any:
  raise ValueError(f"{constant} is no value of JSON")


def _kind(value: Any) -> str:
  kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
  return kinds.get(type(value), "a number")
