"""A mapping of a dataset file, read with checks that know where it stands."""

from collections.abc import Iterable
from typing import Any

from flan_jax.errors import TemplateError, nearest
from flan_jax.prompting.yaml_lines import GivenData, Keys, YamlFile


class Section:
  """One mapping of a file. Every method raises TemplateError with the file and the line.

  Args:
    file: the file it stands in.
    keys: the way to it.
    value: what stands there.
    known: the keys that it may have; None for any.
    required: the keys that it must have.
  """

  def __init__(
    self,
    file: YamlFile | GivenData,
    keys: Keys,
    value: Any,
    known: Iterable[str] | None = None,
    required: Iterable[str] = (),
  ):
    self._file, self._keys = file, keys
    what = ".".join(map(str, keys)) or "the file"
    if not isinstance(value, dict):
      raise self.error(f"{what} should map names to values, not be {value!r:.60}")
    for key in value:
      if not isinstance(key, str):
        raise self.error(f"{what}: the key {key!r} should be text; quote it", key)
      if known is not None and key not in known:
        raise self.unknown("key", key, known, key)
    for key in required:
      if key not in value:
        raise self.error(f"{what} has no {key!r}")
    self.data: dict[str, Any] = value

  def __contains__(self, key: str) -> bool:
    return key in self.data

  def narrowed(self, known: Iterable[str], required: Iterable[str] = ()) -> "Section":
    """The same section, checked for its keys."""
    return Section(self._file, self._keys, self.data, known, required)

  def section(
    self, key: str, known: Iterable[str] | None = None, required: Iterable[str] = ()
  ) -> "Section":
    """The mapping under a key."""
    return Section(self._file, (*self._keys, key), self.data[key], known, required)

  def sections(
    self, key: str, known: Iterable[str] | None = None, required: Iterable[str] = ()
  ) -> list["Section"]:
    """The mappings of the list under a key; at least one."""
    entries = self.data[key]
    if not isinstance(entries, list) or not entries:
      raise self.error(f"{key} should be a list with at least one entry", key)
    keys = (*self._keys, key)
    return [
      Section(self._file, (*keys, i), entry, known, required) for i, entry in enumerate(entries)
    ]

  def text(self, key: str, default: str | None = None) -> str:
    """The text under a key, never blank; the default where there is none."""
    if key not in self.data and default is not None:
      return default
    value = self.data[key]
    if not isinstance(value, str):
      raise self.error(f"{key} should be text, not {value!r:.60}; quote it", key)
    if not value.strip():
      raise self.error(f"{key} is empty", key)
    return value

  def flag(self, key: str, default: bool = False) -> bool:
    """true or false."""
    value = self.data.get(key, default)
    if not isinstance(value, bool):
      raise self.error(f"{key} is true or false, not {value!r:.60}", key)
    return value

  def names(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """A name or a list of names."""
    if key not in self.data and default is not None:
      return default
    value = self.data[key]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
      raise self.error(f"{key} should be a name or a list of names", key)
    return tuple(names)

  def error(self, message: str, *keys: Any) -> TemplateError:
    """A mistake in this section, at one of its keys if given."""
    return self._file.error(message, *self._keys, *keys)

  def error_in_text(self, key: str, offset: int, message: str) -> TemplateError:
    """A mistake at a character of the text under a key."""
    return self._file.error_in_text(message, (*self._keys, key), offset)

  def unknown(self, kind: str, name: Any, known: Iterable[str], *keys: Any) -> TemplateError:
    """A name that is none of those known."""
    known = list(known)
    close = nearest(str(name), known)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return self.error(f"unknown {kind} {name!r}; {hint}", *keys)
