"""What a machine can find wrong with the templates of a dataset, as their author wrote them.

A file that reads well to `read_dataset` can still hold slips of the pen, two templates that say the
same, or a field that nobody uses. Every rule here holds for all files of the library.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flan_jax.prompting.dataset_spec import DatasetSpec
from flan_jax.prompting.placeholders import NAME, names_in, parse
from flan_jax.prompting.template import Template, TurnText
from flan_jax.prompting.yaml_lines import Keys, YamlFile

MOST_ALIKE = 0.8
"""From this ROUGE-L F-measure on, two templates say nearly the same."""


def lint(spec: DatasetSpec) -> list[str]:
  """The findings in a dataset's file, one line each: "path:line: template NAME: what is wrong".

  Templates that a file borrows are looked at where they stand; promptsource's are others' work, and pass.

  Raises:
    TemplateError: the file has become unreadable since it was read.
  """
  if not isinstance(spec.data.get("templates", []), list):
    return []
  file, templates = YamlFile(spec.path), [t for t in spec.templates if isinstance(t, Template)]
  found = [
    str(file.error(f"field {name!r} is used by no template", "fields", name))
    for name in _unused_fields(spec)
  ]
  for index, template in enumerate(templates):
    at: Keys = ("templates", index)
    for keys, offset, mistake in _slips(template, spec.data["templates"][index]):
      found.append(
        str(file.error_in_text(f"template {template.name}: {mistake}", (*at, *keys), offset))
      )
    for mistake in (
      *_blind_spots(template, spec),
      *_sentences_in_a_row(template, spec, spec.data["templates"][index]),
      *_likenesses(template, templates[:index]),
    ):
      found.append(str(file.error(f"template {template.name}: {mistake}", *at)))
  return found


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
  """The F-measure of the longest common subsequence of two lists of words (Lin 2004); 0 for none."""
  if not one or not other:
    return 0.0
  row = [0] * (len(other) + 1)
  for word in one:
    above, row = row, [0]
    for index, candidate in enumerate(other):
      row.append(above[index] + 1 if word == candidate else max(row[index], above[index + 1]))
  return 2 * row[-1] / (len(one) + len(other))


def words_of(template: Template) -> list[str]:
  """The words of a template's inputs and targets in lower case; a placeholder is one word."""
  text = " ".join(f"{turn.input} {turn.target}" for turn in template.texts)
  return re.findall(rf"\{{{NAME.pattern}\}}|\w+", text.lower())


def _unused_fields(spec: DatasetSpec) -> list[str]:
  """Those that neither a template nor the running text shows, and that nothing else is for."""
  data, answer = spec.data, spec.answer
  used = {*spec.group, *spec.balance}.union(*(template.fields for template in spec.templates))
  if "unique" in data:  # otherwise it is all fields
    used.update(spec.unique)
  if answer is not None:
    used.update(filter(None, (answer.field, answer.options_field, answer.golds_field)))
  if "text" in data:
    used |= names_in(parse(data["text"]))
  return [name for name in spec.fields if name not in used]


def _blind_spots(template: Template, spec: DatasetSpec) -> Iterator[str]:
  """What a template should show of a record and does not."""
  shown = set().union(*(names_in(parse(turn.input)) for turn in template.texts))
  if not shown - {"options"}:
    yield "the input is the same for every record"
  elif not template.fields - {spec.answer.field if spec.answer else ""}:
    yield "nothing of the record but its answer is used"


def _sentences_in_a_row(
  template: Template, spec: DatasetSpec, section: Mapping[str, Any]
) -> Iterator[str]:
  if "inline" not in template.styles or spec.answer is None:
    return
  own, record = section.get("choices"), spec.derive_record(spec.record) or {}
  words = own.values() if own else spec.answer.options(record)[0]
  sentences = [word for word in map(str, words) if word.endswith((".", "!", "?"))]
  if sentences:
    yield f"options that are sentences should be a list or have letters: {sentences[0]!r}"


def _likenesses(template: Template, others: Sequence[Template]) -> Iterator[str]:
  words = words_of(template)
  for other in others:
    likeness = rouge_l(words, words_of(other))
    if likeness >= MOST_ALIKE:
      yield f"says nearly the same as {other.name} (ROUGE-L {likeness:.2f})"


def _slips(template: Template, section: Mapping[str, Any]) -> Iterator[tuple[Keys, int, str]]:
  """Slips of the pen: the keys of the text, the offset in it, and what is wrong."""
  for number, turn in enumerate(template.texts):
    at: Keys = ("turns", number) if "turns" in section else ()
    for part, text in (("input", turn.input), ("target", turn.target)):
      yield from (((*at, part), *slip) for slip in _slips_in(_masked(text)))
    for mistake in _unbalanced(turn):
      yield (*at, "input"), 0, mistake
  for label, words in section.get("choices", {}).items():
    yield from ((("choices", label), *slip) for slip in _slips_in(str(words)))


def _slips_in(text: str) -> Iterator[tuple[int, str]]:
  for mistake, pattern in _RULES:
    for match in pattern.finditer(text):
      if match["slip"] is not None:
        yield match.start("slip"), f"{mistake}: {_around(text, *match.span('slip'))}"
  for match in _ARTICLE.finditer(text):
    right = "an" if _begins_with_a_vowel(match["word"]) else "a"
    if match["article"].lower() != right:
      yield (
        match.start(),
        f"{right} belongs before {match['word']!r}: {_around(text, *match.span())}",
      )


def _unbalanced(turn: TurnText) -> Iterator[str]:
  """Quotation marks and brackets without their other half.

  They may be opened in the input and closed in the target.
  """
  text = _masked(f"{turn.input}\n{turn.target}")
  for marks in ('"', "“”„"):
    if sum(map(text.count, marks)) % 2:
      yield "a quotation mark is without its other half"
  pairs = 1
  while pairs:
    text, pairs = _INNERMOST_PAIR.subn("", text)
  brackets = _BRACKET.findall(_NO_BRACKET.sub("", text))
  if brackets:
    yield f"brackets without their other half: {' '.join(brackets)}"


_MASK = "\ue000"  # Of private use, and no letter: no rule about words takes a field for one.
_FIELD = re.compile(rf"\{{{NAME.pattern}\}}")
_BRACKET = re.compile(r"[][(){}«»]")
_INNER = r"[^][(){}«»]*"
_INNERMOST_PAIR = re.compile(rf"\({_INNER}\)|\[{_INNER}\]|\{{{_INNER}\}}|«{_INNER}»")
_NO_BRACKET = re.compile(r"[:;]-?[()]|\b\w\)")
"""Smileys, and the numbers of a list such as a) or 2)."""


def _masked(text: str) -> str:
  """The text with every placeholder blotted out; all else stays where it is."""
  return _FIELD.sub(lambda match: _MASK * len(match[0]), text)


def _around(text: str, start: int, end: int) -> str:
  """A slip and a little of the text around it, on one line."""
  excerpt = text[max(0, start - 20) : end + 20]
  return repr(re.sub(rf"{_MASK}+", "{}", excerpt))


# What comes before the last `|` of a pattern is meant as it is.
_RULES = tuple(
  (mistake, re.compile(pattern, re.MULTILINE))
  for mistake, pattern in (
    ("a tab", r"(?P<slip>\t+)"),
    ("blanks at the end of a line", r"(?P<slip> +)$"),
    ("more than one empty line", r"(?P<slip>\n(?: *\n){2,})"),
    # Columns, after a label at the beginning of the line, and comments in code.
    ("two blanks", rf"^\W*\w+:?  +(?={_MASK})|  +(?=#|//)|(?<=\S)(?P<slip>  +)(?=\S)"),
    (
      "the same word twice",
      r"\b(?:had had|that that)\b|(?P<slip>\b(?i:(?P<word>[^\W\d_]+)[ \n](?P=word))\b)",
    ),
    # Other languages have rules of their own: a text with one of their letters.
    ("a blank before punctuation", r"\A(?s:.*[^\W\x00-\x7f].*)|(?P<slip> [,;:.!?])(?![\w.()-])"),
    ("punctuation twice", r"\.{3,}|(?P<slip>,,|;;|\.\.|[!?]{2,})"),
    (
      "no blank after punctuation",
      r"(?P<slip>[a-z]{2}(?:[,;:!?][A-Za-z]|\.[A-Z])[a-z])",
    ),
    # A text that somebody's editor has wrapped; a comment is followed by code.
    ("a line that breaks off in a sentence", r"^(?!#|//).{90,}[a-z,]\n(?P<slip>[a-z]+\b)"),
    # A line that begins in lower case goes on in it: that is how some people write.
    (
      "a sentence in lower case",
      r"^[a-z].*|\b(?:etc|vs|no)\. |(?<![. ].)(?<!\.)(?P<slip>[.!?] +[a-z])",
    ),
  )
)

_ARTICLE = re.compile(
  r"\b(?P<article>[Aa]n?) (?!(?:and|or|is|are|as|at|in|on|of|if)\b|[A-Z]{2})(?P<word>[^\W_]+)"
)
"""An article, not the A of "A and B", before a word that is not in capitals: NATO is spoken, NBA is spelt."""

_SOUNDS_LIKE_YOU_OR_WON = re.compile(r"uni(?!n|m)|use|usu|util|ubiq|eu|ewe|one(?!r)|once", re.I)
_SILENT_H = re.compile(r"hour|honest|honou?r|heir", re.I)


def _begins_with_a_vowel(word: str) -> bool:
  """Whether the word is spoken with a vowel first."""
  if word[0].isdigit():
    return word[0] == "8" or word in ("11", "18")
  if len(word) == 1:  # the letter's name
    return word.upper() in "AEFHILMNORSX"
  if _SILENT_H.match(word):
    return True
  return word[0].lower() in "aeiou" and not _SOUNDS_LIKE_YOU_OR_WON.match(word)
