"""Fields of the datasets that put structured data into words: facts in several notations, and the text for them."""

import re

from flan_jax.mixtures.fields.mending import capitalised, one_line, unquoted

_TABLE = "[TABLECONTEXT]"  # the subject, in DART, of what is said about a table as a whole


def web_nlg_en(record: dict) -> dict | None:
  """Triples of DBpedia, as they are (`Alan_Bean | birthPlace | Wheeler,_Texas`) and in plain words."""
  triples = [triple.split(" | ") for triple in record["input"]]
  texts = _texts(record)
  if not triples or not texts or any(len(triple) != 3 for triple in triples):
    return None
  facts = [(_thing(subject), _words(name), _thing(value)) for subject, name, value in triples]
  return {
    "triples": "\n".join(map(" | ".join, facts)),
    "inline": "; ".join(f"{subject} ({name}: {value})" for subject, name, value in facts),
    "rdf": "\n".join(map(one_line, record["input"])),
    "category": _words(record["category"]),
    "text": texts[0],
    "texts": texts,
  }


def common_gen(record: dict) -> dict | None:
  """Three to five words, and sentences that hold all of them."""
  concepts = [one_line(concept) for concept in record["concepts"]]
  scenes = [capitalised(text) for text in _texts(record)]
  if len(concepts) < 2 or not all(concepts) or not scenes:
    return None
  return {
    "concepts": ", ".join(concepts),
    "joined": ", ".join(concepts[:-1]) + " and " + concepts[-1],
    "lines": "\n".join(concepts),
    "concept_set": " ".join(sorted(concepts)),
    "scene": scenes[0],
    "scenes": scenes,
  }


def e2e_nlg(record: dict) -> dict | None:
  """What a restaurant, pub or café is like: `name[Cocum], eatType[pub], area[riverside]`."""
  notation = one_line(record["meaning_representation"])
  pairs = [part.split("[", 1) for part in notation.removesuffix("]").split("], ")]
  texts = _texts(record)
  if not texts or any(len(pair) != 2 for pair in pairs):
    return None
  details = {_words(key): value.strip() for key, value in pairs}
  name = details.pop("name", "")
  if not name or not details:
    return None
  return {
    "name": name,
    "details": "\n".join(f"{key}: {value}" for key, value in details.items()),
    "inline": ", ".join(f"{key} = {value}" for key, value in details.items()),
    "notation": notation,
    "text": texts[0],
  }


def dart(record: dict) -> dict | None:
  """Triples of subject, relation and object, from tables and other data; a table's title may be among them."""
  cells = [one_line(cell) for cell in record["input_text"]["table"]["content"]]
  text = _sentence(record["target_text"])
  if not cells or len(cells) % 3 or not all(cells) or not text:
    return None
  facts = []
  for subject, relation, value in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
    subject = "table" if subject == _TABLE else unquoted(subject)
    facts.append((subject, _words(relation.strip("[]")), unquoted(value)))
  outline: dict[str, list[str]] = {}
  for subject, relation, value in facts:
    outline.setdefault(subject, []).append(f"- {relation}: {value}")
  return {
    "triples": "\n".join(map(" | ".join, facts)),
    "edges": "\n".join(f"{subject} --{relation}--> {value}" for subject, relation, value in facts),
    "outline": "\n".join("\n".join([subject, *lines]) for subject, lines in outline.items()),
    "text": text,
  }


def _texts(record: dict) -> list[str]:
  """The accepted texts: training records have one, the others all that people wrote."""
  texts = map(_sentence, record["references"] or [record["target"]])
  return list(dict.fromkeys(filter(None, texts)))


def _sentence(text: str) -> str:
  """A text without spaces before its punctuation, and with the full stop that some forgot."""
  text = re.sub(r"\s+(?=[.,!?;](?:\s|$))", "", one_line(text))
  return text + "." if text[-1:].isalnum() else text


def _words(name: str) -> str:
  """The name of a property in words: `birthPlace` and `BIRTH_PLACE` are `birth place`."""
  return one_line(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " "))).lower()


def _thing(name: str) -> str:
  return unquoted(one_line(name.replace("_", " ")))
