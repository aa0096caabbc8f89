"""Fields of the question classification datasets."""

from flan_jax.mixtures.fields.mending import one_line

_SUFFIXES = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m", *")%,;:.!?")


def trec(record: dict) -> dict | None:
  """A question, with its tokens joined again, and the broad class of its answer."""
  question = f"{one_line(record['text'])} ".replace("`` ", '"').replace(" '' ", '" ')
  for suffix in _SUFFIXES:
    question = question.replace(f" {suffix} ", f"{suffix} ")
  question = question.replace("( ", "(").strip()
  return {"question": question, "label": record["label-coarse"]} if question else None


# The classes of TREC in the order in which the hub numbers them, and in the order in which it did in 2021.
_CLASSES = (
  *("ABBR:abb", "ABBR:exp", "ENTY:animal", "ENTY:body", "ENTY:color", "ENTY:cremat"),
  *("ENTY:currency", "ENTY:dismed", "ENTY:event", "ENTY:food", "ENTY:instru", "ENTY:lang"),
  *("ENTY:letter", "ENTY:other", "ENTY:plant", "ENTY:product", "ENTY:religion", "ENTY:sport"),
  *("ENTY:substance", "ENTY:symbol", "ENTY:techmeth", "ENTY:termeq", "ENTY:veh", "ENTY:word"),
  *("DESC:def", "DESC:desc", "DESC:manner", "DESC:reason", "HUM:gr", "HUM:ind", "HUM:title"),
  *("HUM:desc", "LOC:city", "LOC:country", "LOC:mount", "LOC:other", "LOC:state", "NUM:code"),
  *("NUM:count", "NUM:date", "NUM:dist", "NUM:money", "NUM:ord", "NUM:other", "NUM:period"),
  *("NUM:perc", "NUM:speed", "NUM:temp", "NUM:volsize", "NUM:weight"),
)
_OLD_COARSE = ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")
_OLD_FINE = (
  *("manner", "cremat", "animal", "exp", "ind", "gr", "title", "def", "date", "reason", "event"),
  *("state", "desc", "count", "other", "letter", "religion", "food", "country", "color", "termeq"),
  *("city", "body", "dismed", "mount", "money", "product", "period", "substance", "sport", "plant"),
  *("techmeth", "volsize", "instru", "abb", "speed", "word", "lang", "perc", "code", "dist"),
  *("temp", "symbol", "ord", "veh", "weight", "currency"),
)


def trec_by_old_numbers(record: dict) -> dict:
  """A question with its classes as the hub numbered them in 2021, which is what promptsource counts on."""
  coarse, fine = _CLASSES[record["fine_label"]].split(":")
  return {
    "text": record["text"],
    "label_coarse": _OLD_COARSE.index(coarse),
    "label_fine": _OLD_FINE.index(fine),
  }
