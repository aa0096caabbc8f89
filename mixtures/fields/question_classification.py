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
