"""Fields of the reasoning datasets.

Pararule-plus asks only about what its rules prove, so that a statement is true if and only if it lacks the
word "not", and no passage need be read. Half of its statements are therefore asked of another thing in the
same passage, of which the rules prove nothing of the kind.
"""

import hashlib
import re
from collections.abc import Mapping

from flan_jax.mixtures.fields.mending import capitalised, one_line

_PARARULE = re.compile(
  r"\s*Passage: (?P<passage>.*?)\s*Question: (?P<statement>.*?)\.\s*Answer:\s*", re.DOTALL
)
_STATEMENT = re.compile(r"(?P<thing>(?:The (?:bald )?)?\w+) is (?P<negated>not )?(?P<quality>\w+)")
_FACT = re.compile(r"(?P<thing>(?:The (?:bald )?)?\w+) (?P<said>.+)")
_RULE = re.compile(
  r"If (?:someone|something) (?P<conditions>.+) then (?:they|it) (?P<conclusion>.+)"
)
_KIND_RULE = re.compile(r"(?:All )?(?P<condition>\w+) (?:people|animals) are (?P<conclusion>\w+)")
_VERB = re.compile(r"is |(?:attacks|chases|likes|needs|sees|visits) ")

_TWO_OPTIONS = re.compile(r"(?P<stem>.*?)\n\n A: (?P<a>.*)\n B: (?P<b>.*)", re.DOTALL)
_BLANK = "_____"
_SCENE_WORDS = 3
_COMPARISON = re.compile(r"(?:More|Less|Fewer|Increase[ds]?|Decrease[ds]?|[A-Z][a-z]+er)\b")


def quartz(record: dict) -> dict | None:
  """A question, or a sentence with a gap, about how one quantity follows another; two options."""
  match = _TWO_OPTIONS.fullmatch(record["input"][-1]["content"].strip())
  if match is None or record["ideal"] not in ("A", "B"):
    return None
  stem = re.sub(r"\s+(?=[.?,]$)", "", capitalised(one_line(match["stem"])))
  options = [_option(match["a"], stem), _option(match["b"], stem)]
  if not stem or not all(options) or options[0].casefold() == options[1].casefold():
    return None
  # Some questions left their question mark behind on an option.
  asks = match["a"].rstrip().endswith("?") or match["b"].rstrip().endswith("?")
  if _BLANK not in stem and not stem.endswith("?"):
    stem = f"{stem.rstrip('.: ')} {_BLANK}"
  if stem[-1] not in ".?":
    stem += "?" if asks else "."
  return {
    "question": stem,
    "options": options,
    "answer": options["AB".index(record["ideal"])],
    # Both questions of a pair begin alike.
    "scene": " ".join(re.findall(r"\w+", stem.casefold())[:_SCENE_WORDS]),
  }


def pararule(record: dict) -> dict | None:
  """Facts and rules, and a statement that they prove or do not; what they do not prove counts as false."""
  match = _PARARULE.fullmatch(record["input"][-1]["content"])
  statement = match and _STATEMENT.fullmatch(match["statement"])
  if not match or not statement:
    return None
  passage, thing, quality = one_line(match["passage"]), statement["thing"], statement["quality"]
  known = _provable(passage)
  others = sorted(other for other in known if f"is {quality}" not in known[other])
  if thing in others or thing not in known or not others:
    return None
  drawn = _hash(passage, match["statement"])
  proved, negated = drawn & 1 == 0, drawn & 2 == 2
  if not proved:
    thing = others[(drawn >> 2) % len(others)]
  return {
    "passage": passage,
    "statement": f"{thing} is {'not ' if negated else ''}{quality}",
    "label": "true" if proved != negated else "false",
  }


def _option(text: str, stem: str) -> str:
  """No final stop, no "or" that belonged between the options, no capital but in names."""
  text = re.sub(r"\s+or$", "", one_line(text).rstrip(" ?.,"))
  first = text.split(" ")[0]
  if _COMPARISON.fullmatch(first) and first not in stem:
    text = text[:1].lower() + text[1:]
  return text


def _provable(passage: str) -> Mapping[str, set[str]]:
  """What may hold of each thing, by forward chaining.

  A condition with "not" is taken to hold, so that whatever is missing here is missing under any
  reading of "not".
  """
  known: dict[str, set[str]] = {}
  rules: list[tuple[frozenset[str], str]] = []
  for sentence in filter(None, map(str.strip, passage.split("."))):
    if rule := _RULE.fullmatch(sentence):
      conditions = map(_predicate, rule["conditions"].split(" and "))
      needed = frozenset(said for said in conditions if not said.startswith("is not "))
      rules.append((needed, _predicate(rule["conclusion"])))
    elif rule := _KIND_RULE.fullmatch(sentence):
      condition = f"is {rule['condition'].lower()}"
      rules.append((frozenset((condition,)), f"is {rule['conclusion']}"))
    elif fact := _FACT.fullmatch(sentence):
      known.setdefault(fact["thing"], set()).add(fact["said"])
  for said in known.values():
    before = -1
    while before < len(said):
      before = len(said)
      said.update(conclusion for needed, conclusion in rules if needed <= said)
  return known


def _predicate(text: str) -> str:
  """`they are big`, `rough` and `is big` in one form."""
  text = re.sub(r"^are ", "is ", text)
  return text if _VERB.match(text) else f"is {text}"


def _hash(*parts: str) -> int:
  digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big")
