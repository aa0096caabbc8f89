"""Fields of the summarisation datasets from TFDS: mails, news, chats, reviews and guides with a shorter text each."""

import html
import re

from flan_jax.mixtures.fields.mending import lines, one_line

_OUTLETS = {"cnn": "CNN", "dm": "the Daily Mail"}
_SECTIONS = {
  "World": "world",
  "Sports": "sports",
  "Business": "business",
  "Sci/Tech": "science and technology",
}
_SIGNS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "``": '"', "''": '"'}
_SPEAKER = re.compile(r"^([^:\n]{1,30}):(?= |$)", re.MULTILINE)
_WORDINGS = {
  "extractive": "in the article's own words",
  "mixed": "partly in the article's own words, partly in yours",
  "abstractive": "in words of your own",
}


def aeslc(record: dict) -> dict | None:
  """A mail and its subject; the source has a line for each sentence, whatever the mail's own lines were."""
  body, subject = one_line(record["email_body"]), one_line(record["subject_line"])
  return {"body": body, "subject": subject} if body and subject else None


def cnn_dailymail(record: dict) -> dict | None:
  """An article, its highlights with one to a line, and the name of whoever published them."""
  article, highlights = one_line(record["article"]), lines(record["highlights"])
  outlet = _OUTLETS.get(record["publisher"])
  if not (article and highlights and outlet):
    return None
  return {"article": article, "highlights": highlights, "outlet": outlet}


def gigaword(record: dict) -> dict | None:
  """A report's first sentence and its headline as they are written; headlines with an unknown word are dropped."""
  sentence, headline = _untokenised(record["document"]), _untokenised(record["summary"])
  if not sentence or not headline or "UNK" in record["summary"].split():
    return None
  return {"sentence": sentence, "headline": headline}


def multi_news(record: dict) -> dict | None:
  """Several reports of one event under numbered headings, and their joint summary without its leading dash."""
  reports = list(filter(None, map(lines, record["document"].split("|||||"))))
  summary = one_line(record["summary"]).lstrip("–- ")
  if len(reports) < 2 or not summary:
    return None
  numbered = [f"Report {number}:\n{report}" for number, report in enumerate(reports, start=1)]
  return {"reports": "\n\n".join(numbered), "summary": summary}


def newsroom(record: dict) -> dict | None:
  """An article with its title and summary, and whether the summary takes its words from the article."""
  title, summary = one_line(record["title"]), one_line(record["summary"])
  text = lines(record["text"])
  if not (title and text and summary):
    return None
  wording = _WORDINGS.get(record["density_bin"], "in one to three sentences")
  return {"title": title, "text": text, "summary": summary, "wording": wording}


def samsum(record: dict) -> dict | None:
  """A chat with a message to a line, the names of those who write in it, and its summary."""
  dialogue, summary = lines(record["dialogue"]), one_line(record["summary"])
  speakers = list(dict.fromkeys(_SPEAKER.findall(dialogue)))
  if not speakers or not summary:
    return None
  names = " and ".join(filter(None, [", ".join(speakers[:-1]), speakers[-1]]))
  return {"dialogue": dialogue, "speakers": names, "summary": summary}


def ag_news_subset(record: dict) -> dict | None:
  """A news item with its headline and section; the agency is taken off a headline if the item names it too."""
  title, description = _unescaped(record["title"]), _unescaped(record["description"])
  title = title.removesuffix(f" ({description.partition(' - ')[0]})")
  if not title or not description:
    return None
  return {"title": title, "description": description, "section": _SECTIONS[record["label"]]}


def opinion_abstracts_rotten_tomatoes(record: dict) -> dict | None:
  """A film's reviews, one to a line, the first of them alone, and what critics agree on; without that, None."""
  reviews = list(filter(None, map(_untagged, _in_order(record["_critics"]))))
  movie, consensus = one_line(record["_movie_name"]), _untagged(record["_critic_consensus"])
  if not (reviews and movie and consensus) or consensus.lower().startswith("no consensus"):
    return None
  listed = "\n".join(f"- {review}" for review in reviews)
  return {"movie": movie, "reviews": listed, "review": reviews[0], "consensus": consensus}


def opinion_abstracts_idebate(record: dict) -> dict | None:
  """A debate, the sentences of one argument in it as a paragraph, and the claim that they support."""
  sentences = map(_untokenised, _in_order(record["_argument_sentences"]))
  arguments = " ".join(filter(None, sentences))
  debate, claim = _untokenised(record["_debate_name"]), _untokenised(record["_claim"])
  if not (arguments and debate and claim):
    return None
  return {"debate": debate, "arguments": arguments, "claim": claim}


def _untokenised(text: str) -> str:
  """Undoes the Penn Treebank's tokenisation: `it did n't -lrb- yet -rrb- , he said` is `it didn't (yet), he said`."""
  text = re.sub(r"(-lrb-|-lsb-|``|\$) ", r"\1", one_line(text))
  text = re.sub(r" (?=(?:-rrb-|-rsb-|''|n't\b|'(?:s|m|d|re|ve|ll)\b|[.,:;?!%]))", "", text)
  for token, sign in _SIGNS.items():
    text = text.replace(token, sign)
  return text


def _unescaped(text: str) -> str:
  """The text as HTML shows it, where the source has put a backslash for a line's end and lost ampersands."""
  text = text.replace("\\", " ").replace(" #39;", "'")
  text = re.sub(r"(?<!&)(?=#\d{2,3};)", "&", text)
  return _untagged(re.sub(r"(?<![^ ])quot;(.*?) ?quot;", r'"\1"', text))


def _untagged(text: str) -> str:
  """The text as HTML shows it, without tags."""
  return one_line(re.sub(r"</?\w[^<>]*>", "", html.unescape(text)))


def _in_order(numbered: dict) -> list[str]:
  """The texts of a numbered mapping, which TFDS gives as a list of keys and one of values, by their numbers.

  Empty where the two lists are not of one length.
  """
  keys, texts = numbered["key"], numbered["value"]
  if len(keys) != len(texts):
    return []
  pairs = sorted(zip(keys, texts, strict=True), key=lambda pair: (len(pair[0]), pair[0]))
  return [text for _, text in pairs]
