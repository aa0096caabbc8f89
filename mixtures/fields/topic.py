"""Fields of the topic datasets: news stories by section, mails as spam or ham."""

import base64
import binascii
import contextlib
import email
import html
import quopri
import re
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from hashlib import blake2b
from html.parser import HTMLParser
from pathlib import PurePosixPath

_KEY_WORDS = 12  # at the beginning, which tell apart all but new versions of the same text
_FEWEST_WORDS = 4  # of a mail's body; below stand pictures and attachments
_MOST_FOREIGN = 0.1  # share of characters beyond ASCII; above stand undecodable Asian mails

_HTML = re.compile(r"<(?:html|body|table|div|font|center|!doctype|head|p|a)\b[^>]*>", re.IGNORECASE)
_SOFT_BREAK = re.compile(r"[^=\s]=(?:20)?\n")
_BROKEN_BYTE = re.compile(r"=F{6}(?=[0-9A-F]{2})")
_FOOTER = re.compile(
  r"^[> ]*(?:_{20,} *\n.*mailing list|-{20,} *\n.*sf\.net email|-+ *yahoo! groups sponsor"
  r"|to unsubscribe from this group|-- *\nirish linux users|\S*/mailman/listinfo/"
  r"|-+BEGIN PGP SIGNATURE)",
  re.IGNORECASE | re.MULTILINE,
)
_MACHINERY = re.compile(
  r"\A\s*URL: \S+\nDate: .*\n|^-+BEGIN PGP SIGNED MESSAGE-+\n(?:Hash: .*\n)?"
  r"|^This is a multi-part message in MIME format\.?$|^--[\w=.+-]{12,}$|^Content-[A-Za-z-]+: .*$",
  re.MULTILINE,
)
_RULE = re.compile(r"([-_=*~#.+ ])\1{4,}")
_ADDRESS_TAIL = re.compile(r"(https?://[^\s/<>\"']{1,60}/)[^\s<>\"']{30,}")
_BLOB = re.compile(r"\S{80,}")
_LIST_TAG = re.compile(r"\[[^\]]{1,40}\]\s*")
_REPLY = re.compile(r"(?:(?:re|fwd?|aw)\s*:\s*)+", re.IGNORECASE)


def bbc_news(record: dict) -> dict | None:
  """A news story; its folder is the section, its first line the headline."""
  headline, _, body = html.unescape(_repair(record["text"])).strip().partition("\n")
  body = "\n".join(" ".join(line.split()) for line in body.splitlines() if line.strip())
  if not headline or not body:
    return None
  return {
    "headline": " ".join(headline.split()),
    "body": body,
    "topic": PurePosixPath(record["path"]).parent.name,
    # Stories were published again under another headline, with a sentence or two changed.
    "story": _opening(body),
  }


def spam_assassin(record: dict) -> dict | None:
  """A mail without its headers: subject and readable body; the archive's folder is the label."""
  message = email.message_from_string(record["text"].lstrip())
  subject = _mend(_LIST_TAG.sub("", _subject(message)).strip())
  body = _tidy(_readable(message))
  if not subject or len(re.findall(r"[A-Za-z]{2,}", body)) < _FEWEST_WORDS:
    return None
  if sum(character > "\x7f" for character in body) > _MOST_FOREIGN * len(body):
    return None
  label = "spam" if record["group"].startswith("spam") else "ham"
  return {
    "subject": subject,
    "body": _mend(body),
    "label": label,
    # Answers share their subject; the same advertisement comes under many subjects and openings.
    "thread": _opening(_REPLY.sub("", subject)) if label == "ham" else _sketch(body),
  }


def _opening(text: str) -> str:
  return " ".join(_words(text)[:_KEY_WORDS])


def _sketch(text: str) -> str:
  """The three-word run with the smallest hash: alike for two texts as often as they share runs."""
  words = _words(text)
  runs = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
  return min(runs, key=lambda run: blake2b(run.encode(), digest_size=8).digest())


def _words(text: str) -> list[str]:
  return re.findall(r"[^\W\d_]+", text.casefold())


def _repair(text: str) -> str:
  """All files but one are UTF-8; they are read as Latin-1, which never fails, and mended here."""
  try:
    return text.encode("latin-1").decode("utf-8")
  except UnicodeError:
    return text


def _subject(message: Message) -> str:
  raw = str(message.get("Subject", ""))
  # A few senders name an encoding that does not exist; what they wrote is kept.
  with contextlib.suppress(HeaderParseError, LookupError, UnicodeError):
    raw = str(make_header(decode_header(raw)))
  return " ".join(_RULE.sub(r"\1\1\1", raw).split())


def _readable(message: Message) -> str:
  """The plain text parts of a mail, or its HTML as text when there are none."""
  parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
  texts = [_decode(part) for part in parts if part.get_content_subtype() != "html"]
  plain = "\n".join(text for text in texts if text.strip() and len(_HTML.findall(text)) < 3)
  if plain:
    return plain
  page = _Page()
  page.feed("\n".join(_decode(part) for part in parts))
  page.close()
  return "".join(page.pieces)


def _decode(part: Message) -> str:
  """The text of a part, up to the footer that a mailing list put under it."""
  payload = _BROKEN_BYTE.sub("=", str(part.get_payload()))
  encoding = str(part.get("Content-Transfer-Encoding", "")).strip().lower()
  if encoding == "quoted-printable" or len(_SOFT_BREAK.findall(payload)) > 3:
    payload = _text(quopri.decodestring(payload.encode("latin-1", "replace")), part)
  elif encoding == "base64":
    with contextlib.suppress(binascii.Error):
      payload = _text(base64.b64decode(payload), part)
  footer = _FOOTER.search(payload)
  return payload[: footer.start()] if footer else payload


def _text(content: bytes, part: Message) -> str:
  try:
    return content.decode(part.get_content_charset() or "cp1252")
  except (LookupError, UnicodeError):
    return content.decode("cp1252", errors="replace")


def _tidy(text: str) -> str:
  """Takes out what machines added, long rules and tracking addresses; at most one empty line."""
  text = _MACHINERY.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
  text = _BLOB.sub("", _ADDRESS_TAIL.sub(r"\1...", text))
  lines = [" ".join(_RULE.sub(r"\1\1\1", line).split()) for line in text.splitlines()]
  return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _mend(text: str) -> str:
  """The archive was decoded with losses; in "don\ufffdt" the lost character was an apostrophe."""
  text = re.sub(r"(?<=[A-Za-z])\ufffd(?=(?:s|t|d|m|re|ve|ll)\b)", "'", html.unescape(text))
  return text.replace(" \ufffd ", " - ").replace("\ufffd", "")


class _Page(HTMLParser):
  """Collects the text of an HTML page; block elements become line breaks."""

  _BLOCKS = re.compile(r"br|p|div|tr|table|li|ul|ol|h[1-6r]|title|center|option")
  _HIDDEN = frozenset(("script", "style"))

  def __init__(self) -> None:
    super().__init__()
    self.pieces: list[str] = []
    self._hidden = 0

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    if tag in self._HIDDEN:
      self._hidden += 1
    elif self._BLOCKS.fullmatch(tag):
      self.pieces.append("\n")
    elif tag == "td":
      self.pieces.append(" ")

  def handle_endtag(self, tag: str) -> None:
    if tag in self._HIDDEN:
      self._hidden = max(0, self._hidden - 1)

  def handle_data(self, data: str) -> None:
    if not self._hidden:
      self.pieces.append(" ".join(data.split("\n")))
