"""What records share with those that are evaluated: found by hashes, confirmed in the texts.

Values of fields are compared, never a rendered text, each normalised as for deduplication. A list is as
many values as it has items, and the label of a choice is none. A record of training shares with one that
is evaluated

- the whole **record**: the values that do not hold the answer are equal, in any order and under any names;
- a **field**: one value is equal that has 8 words or more, or is on both sides the longest of what is asked
  and has 20 characters or more, as a short question, or one in a script without spaces;
- an **n-gram**: n words in a row stand within one value of each, where n is 13, or the length of the
  evaluated value if that is 8 to 12. Words are runs of letters and digits; all else parts them.

Brown et al. 2020 (appendix C) take n from 8 to 13 by the length of a task's examples, and Wei et al. 2022
(appendix C) follow them. Shorter values, a name or an option, are shared by nature and count as a part of
the whole record alone. Of a raw record, which does not say what its answer is, no value is taken for one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from flan_jax.data.records import Records, normalise
from flan_jax.prompting import DatasetSpec

SHORTEST, LONGEST = 8, 13
"""Words of an n-gram: of an evaluated value between the two the whole, of a longer one any 13 in a row."""

LONGEST_ASKED = 20
"""Characters from which on the longest of what a record asks tells it from others."""

_WORD = re.compile(r"[^\W_]+")
_SPACES = str.maketrans({chr(i): " " for i in range(128) if not chr(i).isalnum()})


class Value(NamedTuple):
  """One text of a record.

  Attributes:
    field: that it stands in.
    text: normalised.
    words: those of the text, with a space between them.
    tells: it counts as a whole.
  """

  field: str
  text: str
  words: str
  tells: bool

  @property
  def length(self) -> int:
    """How many words it has."""
    return self.words.count(" ") + 1 if self.words else 0


class Compared(NamedTuple):
  """What is compared of a record: its values, and as one text those that do not hold the answer."""

  values: list[Value]
  asked: str


def compared(spec: DatasetSpec, record: Mapping[str, Any]) -> Compared:
  """What is compared of a record."""
  texts, asked = [], []
  for name in spec.fields or record:
    if name == spec.label_field:
      continue
    for raw in _texts(record[name]):
      texts.append((name, normalise(raw)))
      if name in spec.asked_fields or not spec.fields:
        asked.append(texts[-1][1])
  longest = max(asked, key=len, default="")
  values = []
  for name, text in texts:
    words = _words(text)
    tells = words.count(" ") + 1 >= SHORTEST or (text == longest and len(text) >= LONGEST_ASKED)
    values.append(Value(name, text, words, tells))
  return Compared(values, "\n".join(sorted(filter(None, asked))))


def common_words(one: Compared, other: Compared, field: str) -> str:
  """The longest run of words that a value of the one has in common with this field of the other.

  Of the whole records, where the field is "", what does not hold the answer.
  """
  if not field:
    return other.asked
  longest: list[str] = []
  for words in (value.words.split() for value in other.values if value.field == field):
    matcher = SequenceMatcher(None, (), words, autojunk=False)
    for value in one.values:
      matcher.set_seq1(value.words.split())
      run = matcher.find_longest_match()
      longest = max(longest, words[run.b : run.b + run.size], key=len)
  return " ".join(longest)


@dataclass(frozen=True)
class Split:
  """The first `size` records of a dataset's split."""

  spec: DatasetSpec
  name: str
  records: Records
  size: int

  def compared(self, index: int) -> Compared:
    """What is compared of the record at this index."""
    return compared(self.spec, self.records[index])


def _texts(value: Any) -> Iterator[str]:
  """The texts in a value, which in a raw record may hold lists and mappings."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list | Mapping):
    for inner in value.values() if isinstance(value, Mapping) else value:
      yield from _texts(inner)


def _words(text: str) -> str:
  """The words of a normalised text, with a space between them."""
  # The first way is the faster one.
  return " ".join(text.translate(_SPACES).split() if text.isascii() else _WORD.findall(text))
