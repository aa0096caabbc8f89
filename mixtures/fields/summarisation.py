"""Fields of the summarisation datasets: what web pages and chat turns put around the texts taken off."""

import re

from flan_jax.mixtures.fields.mending import one_line, repair_encoding

_FEWEST_WORDS = 40  # of an article; below stand captions of pictures and videos
_FEWEST_SUMMARY_WORDS = 8  # "Ouch!" and "All pictures are copyrighted." say nothing of the story
_MOST_COMMENTARY = 3  # lines of the kind "Foul by N. N. (Team)."; above stand match tickers

_PAGE_LINE = re.compile(
  r"media playback is (?:not |un)supported.*|.*\blast updated at \d.*|.*\bfollow\b.*(?:twitter|@\w).*"
  r"|subscribe to the bbc.*|find all the latest football transfers.*|report supplied by the press.*"
  r"|.*\bnewsletter\b.*\binbox\b.*|share this with.*",
  re.IGNORECASE,
)
_COMMENTARY = re.compile(r"(?:Foul by|Corner, |Attempt (?:missed|saved|blocked)|Substitution, ).*")


def xsum(record: dict) -> dict | None:
  """A BBC story without its first sentence, which is the summary."""
  lines = [one_line(line) for line in repair_encoding(record["document"]).splitlines()]
  lines = [line for line in lines if line and not _PAGE_LINE.fullmatch(line)]
  summary = one_line(repair_encoding(record["summary"]))
  if sum(bool(_COMMENTARY.fullmatch(line)) for line in lines) > _MOST_COMMENTARY:
    return None
  document = "\n".join(lines)
  if len(document.split()) < _FEWEST_WORDS or len(summary.split()) < _FEWEST_SUMMARY_WORDS:
    return None
  # A colon leads to a gallery that is not in the text.
  if summary.endswith(":"):
    return None
  return {"document": document, "summary": summary}


def paper_titles(record: dict) -> dict | None:
  """An abstract, in the last chat turn, and the paper's title."""
  abstract, title = one_line(record["input"][-1]["content"]), one_line(record["ideal"]).rstrip(".")
  return {"abstract": abstract, "title": title} if abstract and title else None
