"""Mending texts, for datasets of every cluster: white space, broken encodings, questions typed in haste."""

import hashlib
import re

_WRONG_DECODERS = ("latin-1", "iso8859-2", "cp1252")
_ORDERS = frozenset(
  ("describe", "explain", "find", "give", "list", "mention", "name", "names", "tell")
)


def one_line(text: str) -> str:
  """The text with every run of white space, no-break and zero-width spaces included, as one space."""
  return " ".join(re.sub("[\u200b\u200c\u200d\u200e\ufeff\u2060]", "", text).split())


def lines(text: str) -> str:
  """The lines of a text that say something, each as `one_line` has it."""
  return "\n".join(filter(None, map(one_line, text.splitlines())))


def repair_encoding(text: str) -> str:
  """Undoes UTF-8 that was read as a one-byte encoding, run by run: `Ã©` is `é` again, a sound `é` stays."""
  return re.sub(r"[^\x00-\x7f]+", _repaired_run, text)


def as_question(text: str) -> str:
  """A search query as a question with its mark; orders ("name the ...") get a full stop."""
  text = re.sub(r"\bi\b(?=['’\s]|$)", "I", one_line(text)).rstrip(" ?.!,:;")
  return capitalised(text) + final_mark(text) if text else ""


def final_mark(question: str) -> str:
  """A question mark, or the full stop of an order ("tell me more")."""
  return "." if question.split()[0].lower() in _ORDERS else "?"


def capitalised(text: str) -> str:
  """The text with a capital first letter, and the rest as it is."""
  return text[:1].upper() + text[1:]


def without_final_stop(text: str) -> str:
  """Drops the full stop of a short answer, unless it belongs to an abbreviation."""
  last = text.rpartition(" ")[2]
  if text.endswith(".") and not re.fullmatch(
    r"(?:\w\.)+|(?:Dr|Mr|Mrs|Ms|St|Jr|Sr|Co|Inc|etc)\.|\.+", last
  ):
    return text[:-1].rstrip()
  return text


def unquoted(text: str) -> str:
  """The text without quotes around the whole of it."""
  if len(text) > 2 and text[0] == text[-1] == '"' and text.count('"') == 2:
    return text[1:-1]
  return text


def text_key(text: str) -> str:
  """A short name for a text that ignores its case, punctuation and spacing."""
  letters = " ".join(re.findall(r"[^\W_]+", text.casefold()))
  return hashlib.blake2b(letters.encode(), digest_size=12).hexdigest()


def _repaired_run(match: re.Match) -> str:
  for decoder in _WRONG_DECODERS:
    try:
      return match[0].encode(decoder).decode("utf-8")
    except UnicodeError:
      continue
  return match[0]
