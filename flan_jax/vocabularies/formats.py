"""From turns to the text that a model reads: plain, or wrapped by the chat template of the model.

A format is a part of the recipe. It is saved with the store and the checkpoint, because a model that
was tuned in one format has to be judged in the same.
"""

import abc
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flan_jax.errors import ConfigError, VocabularyError
from flan_jax.prompting import Turn
from flan_jax.vocabularies.vocabulary import Vocabulary

Message = Mapping[str, str]


class Format(abc.ABC):
  """How turns become one text, and where in it the targets stand.

  Attributes:
    bos: whether a decoder's text begins with the begin token of the vocabulary.
    eos: whether the end token follows the last target.
    eos_on_inputs: whether the end token also follows the text that an encoder reads.
    end_of_turn: the text that the model writes when its turn is over; "" where the end token does it.
  """

  kind: ClassVar[str]
  bos: bool
  eos: bool
  eos_on_inputs: bool
  end_of_turn: str

  @abc.abstractmethod
  def pieces(self, turns: Sequence[Turn], open_end: bool = False) -> list[tuple[str, bool]]:
    """The text for a decoder in pieces, each with whether the loss is taken on it.

    Args:
      turns: the conversation.
      open_end: stop where the model is to go on; the last target is left out.

    Returns:
      (text, is_target) pairs; joined, the texts are the whole prompt. A target's piece holds what
      ends the turn, if the format writes that as text.
    """

  @abc.abstractmethod
  def encoder_text(self, turns: Sequence[Turn]) -> str:
    """What an encoder reads: everything but the last target."""

  @abc.abstractmethod
  def target_text(self, turns: Sequence[Turn]) -> str:
    """What the decoder behind that encoder writes: the last target and the text that ends it."""

  @abc.abstractmethod
  def conversation(self, messages: Sequence[Message]) -> str:
    """What a model reads that is to answer the last message.

    Args:
      messages: {"role": "user" or "assistant", "content": ...} in turn, the last of a user; before them there may be
        one of the "system".

    Raises:
      ConfigError: they are not.
    """

  @abc.abstractmethod
  def as_dict(self) -> dict[str, Any]:
    """The settings as JSON, for `format_from_dict`."""

  def __reduce__(self) -> tuple[Any, ...]:
    # The compiled template cannot be pickled.
    return format_from_dict, (self.as_dict(),)

  @cached_property
  def fingerprint(self) -> str:
    """sha256 of the settings."""
    return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlainFormat(Format):
  """Inputs and targets one after the other.

  Args:
    separator: stands between an input and its target where one model reads both.
    turn_separator: stands between turns.
    eos_on_inputs: the end token follows an encoder's text, as T5 was trained.
    bos: a decoder's text begins with the begin token.
  """

  separator: str = "\n"
  turn_separator: str = "\n\n"
  eos_on_inputs: bool = False
  bos: bool = False

  kind: ClassVar[str] = "plain"
  eos = True
  end_of_turn = ""

  def pieces(self, turns: Sequence[Turn], open_end: bool = False) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    for i, turn in enumerate(turns):
      before = self.turn_separator if i else ""
      pieces.append((before + turn.input + self.separator, False))
      pieces.append((turn.target, turn.loss))
    return pieces[:-1] if open_end else pieces

  def encoder_text(self, turns: Sequence[Turn]) -> str:
    *earlier, last = turns
    shown = [turn.input + self.separator + turn.target for turn in earlier]
    return self.turn_separator.join([*shown, last.input])

  def target_text(self, turns: Sequence[Turn]) -> str:
    return turns[-1].target

  def conversation(self, messages: Sequence[Message]) -> str:
    system, *rest = _in_turn(messages)
    if system:
      rest[0] = f"{system}{self.turn_separator}{rest[0]}"
    asked, answered = rest[::2], [*rest[1::2], ""]
    turns = [Turn(*turn) for turn in zip(asked, answered, strict=True)]
    return "".join(text for text, _ in self.pieces(turns, open_end=True))

  def as_dict(self) -> dict[str, Any]:
    return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class ChatFormat(Format):
  """Turns as a chat between user and assistant, in the words of a model's own chat template.

  The template runs in Jinja's sandbox with what published chat templates rely on: `raise_exception`,
  `tojson`, `strftime_now`, loop controls, `generation` blocks, blocks trimmed as in transformers.

  Args:
    template: the Jinja text, as `tokenizer_config.json` and GGUF files have it.
    bos_token: what `bos_token` stands for in it.
    eos_token: what `eos_token` stands for in it.
    date: the day that `strftime_now` tells, so that the prompts of a run do not change overnight.

  Raises:
    VocabularyError: the template is not valid, or does not end the assistant's turns.
  """

  template: str
  bos_token: str = ""
  eos_token: str = ""
  date: str = "2024-07-26"

  kind: ClassVar[str] = "chat"
  bos = False
  eos = False
  eos_on_inputs = False

  @classmethod
  def of(cls, vocabulary: Vocabulary) -> "ChatFormat":
    """The chat format that came with a vocabulary.

    Raises:
      VocabularyError: none did.
    """
    if vocabulary.chat_template is None:
      raise VocabularyError(
        "this vocabulary came without a chat template: use PlainFormat, or give ChatFormat one."
      )
    bos = "" if vocabulary.bos_id is None else vocabulary.token(vocabulary.bos_id)
    return cls(vocabulary.chat_template, bos, vocabulary.token(vocabulary.eos_id))

  def __post_init__(self) -> None:
    if not self.end_of_turn:
      raise VocabularyError(
        "the chat template writes nothing after the assistant's words, so a model could not learn "
        "when to stop: use PlainFormat, or a template that ends each turn with a token."
      )

  @cached_property
  def end_of_turn(self) -> str:  # type: ignore[override]
    words = "Yes."
    (_, _), (target, _) = self.pieces([Turn("Is it so?", words)])
    return target.partition(words)[2].strip()

  def pieces(self, turns: Sequence[Turn], open_end: bool = False) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    text = ""
    messages: list[dict[str, str]] = []
    for i, turn in enumerate(turns):
      messages.append({"role": "user", "content": turn.input})
      opened = self._continued(text, self._render(messages, add_generation_prompt=True))
      pieces.append((opened, False))
      text += opened
      if open_end and i == len(turns) - 1:
        break
      messages.append({"role": "assistant", "content": turn.target})
      # White space after the end of a turn is nothing that the model writes: it stops there.
      closed = self._continued(text, self._render(messages, add_generation_prompt=False)).rstrip()
      pieces.append((closed, turn.loss))
      text += closed
    return pieces

  def encoder_text(self, turns: Sequence[Turn]) -> str:
    return "".join(text for text, _ in self.pieces(turns, open_end=True))

  def target_text(self, turns: Sequence[Turn]) -> str:
    return self.pieces(turns)[-1][0]

  def as_dict(self) -> dict[str, Any]:
    return {"kind": self.kind, **asdict(self)}

  def conversation(self, messages: Sequence[Message]) -> str:
    _in_turn(messages)
    return self._render([dict(message) for message in messages], add_generation_prompt=True)

  def _continued(self, text: str, longer: str) -> str:
    if not longer.startswith(text):
      raise VocabularyError(
        "the chat template writes earlier turns differently once later ones follow, so the targets "
        "cannot be told apart in it: use PlainFormat or another template."
      )
    return longer[len(text) :]

  def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    try:
      return self._compiled.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=self.bos_token,
        eos_token=self.eos_token,
      )
    except jinja2.TemplateError as error:
      raise VocabularyError(f"the chat template refused a conversation: {error}") from None

  @cached_property
  def _compiled(self) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = datetime.date.fromisoformat(self.date).strftime
    try:
      return environment.from_string(self.template)
    except jinja2.TemplateSyntaxError as error:
      raise VocabularyError(f"chat template, line {error.lineno}: {error.message}") from None


def _in_turn(messages: Sequence[Message]) -> list[str]:
  """What the system says, or "", and what user and assistant say in turn."""
  roles = [message["role"] for message in messages]
  system = roles[:1] == ["system"]
  said = ["user", "assistant"] * len(roles)
  if len(roles) == system or roles[system:] != said[: len(roles) - system] or roles[-1] != "user":
    raise ConfigError(
      f"a conversation goes user, assistant, user, ..., user, with one system message before them at most; this one "
      f"goes {', '.join(roles) or 'nowhere'}."
    )
  words = [message["content"] for message in messages]
  return words if system else ["", *words]


def format_from_dict(settings: dict[str, Any]) -> Format:
  """The format whose `as_dict` this is.

  Raises:
    ConfigError: it is of an unknown kind or has unknown settings.
  """
  known: dict[str, type[Format]] = {"plain": PlainFormat, "chat": ChatFormat}
  rest = dict(settings)
  try:
    return known[rest.pop("kind")](**rest)
  except (KeyError, TypeError) as error:
    raise ConfigError(f"not a saved format: {settings!r} ({error!r})") from None


class _GenerationBlock(jinja2.ext.Extension):
  """`{% generation %}` marks what the assistant writes; the text inside is printed as it is."""

  tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

  def parse(self, parser: Any) -> Any:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


def _tojson(value: Any, **settings: Any) -> str:
  # Jinja's own filter escapes for HTML, which no chat model was trained on.
  return json.dumps(value, **{"ensure_ascii": False, **settings})


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)
