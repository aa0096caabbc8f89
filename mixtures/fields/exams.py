"""Fields of questions from examinations: a question, its options in the order of the sheet, the right one.

The order stays, since an option may speak of others ("A and C", "none of the above"). Records with two equal options
are dropped, and so are those whose answer is none of them.
"""

import re
from collections.abc import Sequence

from flan_jax.mixtures.fields.mending import lines

_OPTION = re.compile(r"^([A-J])\. ?", re.MULTILINE)


def multiple_choice(record: dict) -> dict | None:
  """MMLU as it is published: `choices` and the number of the right one, or columns A to D and its letter."""
  answer = record["answer"]
  if "choices" in record:
    options = list(record["choices"])
  else:
    options = [record[letter] for letter in "ABCDEFGHIJ" if record.get(letter)]
  place = answer if isinstance(answer, int) else "ABCDEFGHIJ".find(str(answer).strip()[:1])
  return _example(record["question"], options, place)


def lettered(record: dict) -> dict | None:
  """Options in one text, each after its letter, and the right one with its own."""
  begin, *parts = _OPTION.split(record["options"].strip().removesuffix('"'))
  letters, options = parts[::2], parts[1::2]
  right = record["answer"].strip()[:1]
  if begin or right not in letters:
    return None
  return _example(record["question"], options, letters.index(right))


def _example(question: str, options: Sequence[str], place: int) -> dict | None:
  """An option that takes several lines becomes one, its lines parted by semicolons."""
  question = lines(question)
  options = ["; ".join(lines(str(option)).splitlines()) for option in options]
  different = len({option.casefold() for option in options})
  if (
    not question
    or not all(options)
    or different < max(len(options), 2)
    or not -1 < place < len(options)
  ):
    return None
  return {"question": question, "options": options, "answer": options[place]}
