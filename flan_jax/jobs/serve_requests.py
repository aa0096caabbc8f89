"""What OpenAI's API may be asked here, read strictly: a parameter that is not obeyed is refused."""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from flan_jax.errors import ConfigError, FlanJaxError, nearest
from flan_jax.inference import Sampling
from flan_jax.jobs.assistants import Assistant

_CHOICES = 16


class Refused(Exception):
  """A request that is not answered, in the words of OpenAI's API."""

  def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
    super().__init__(message)
    self.status = status
    kind = "server_error" if status >= 500 else "invalid_request_error"
    self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Ask(NamedTuple):
  """One answer that is asked for."""

  prompt: Sequence[int]
  sampling: Sampling
  stop: Sequence[str]


class Parameter(NamedTuple):
  """A parameter of a request.

  Args:
    kinds: of its value.
    only: the values that are obeyed; () where all of the kind are.
  """

  kinds: tuple[type, ...]
  only: tuple[Any, ...] = ()


_NUMBER = (int, float)
_BOTH = {
  "model": Parameter((str,)),
  "max_tokens": Parameter((int,)),
  "temperature": Parameter(_NUMBER),
  "top_p": Parameter(_NUMBER),
  "top_k": Parameter((int,)),
  "min_p": Parameter(_NUMBER),
  "repetition_penalty": Parameter(_NUMBER),
  "no_repeat_ngram": Parameter((int,)),
  "seed": Parameter((int,)),
  "stop": Parameter((str, list)),
  "n": Parameter((int,)),
  "stream": Parameter((bool,)),
  "stream_options": Parameter((dict,)),
  "user": Parameter((str,)),
  "frequency_penalty": Parameter(_NUMBER, (0,)),
  "presence_penalty": Parameter(_NUMBER, (0,)),
}
_OF_TEXT = {
  "prompt": Parameter((str, list)),
  "logprobs": Parameter((int,), (0,)),
  "echo": Parameter((bool,), (False,)),
  "best_of": Parameter((int,), (1,)),
  "suffix": Parameter((str,), ("",)),
}
_OF_CHAT = {
  "messages": Parameter((list,)),
  "max_completion_tokens": Parameter((int,)),
  "logprobs": Parameter((bool,)),
  "top_logprobs": Parameter((int,), (0,)),
  "response_format": Parameter((dict,), ({"type": "text"},)),
}


async def read_body(request: web.Request, chat: bool) -> dict[str, Any]:
  """The request's JSON, each parameter of its kind; one that is null is as if it were not there.

  Raises:
    Refused: it is none, or a parameter is unknown, of another kind or not obeyed here.
  """
  known = _BOTH | (_OF_CHAT if chat else _OF_TEXT)
  if (
    request.content_type != "application/json"
  ):  # a page of somebody else's may send the others unasked
    raise Refused(415, "the body must be sent as application/json")
  try:
    body = json.loads(await request.text())
    json.dumps(body, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    raise Refused(400, "half of a surrogate pair is no text") from None
  except (ValueError, RecursionError, LookupError) as error:
    raise Refused(400, f"the body is no JSON: {error}") from None
  if not isinstance(body, dict):
    raise Refused(400, "the body is no JSON object")
  body = {name: value for name, value in body.items() if value is not None}
  for name, value in body.items():
    if name not in known:
      close = nearest(name, known, count=1)
      raise Refused(
        400, f"unknown parameter {name!r}{f'; did you mean {close[0]!r}?' if close else ''}", name
      )
    kinds, only = known[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
      wanted = " or ".join(kind.__name__ for kind in kinds)
      raise Refused(400, f"{name} must be of the kind {wanted}", name)
    if only and value not in only:
      raise Refused(400, f"{name}={value!r} is not supported here", name)
  return body


def read_prompts(assistant: Assistant, body: Mapping[str, Any]) -> list[list[int]]:
  """The ids of each text that is to be gone on with."""
  prompt = body.get("prompt")
  if prompt is None:
    raise Refused(400, "prompt is missing", "prompt")
  several = [prompt] if isinstance(prompt, str) or _are_ids(prompt) else prompt
  if not several:
    raise Refused(400, "prompt is empty", "prompt")
  if not all(isinstance(each, str) or _are_ids(each) for each in several):
    raise Refused(400, "prompt must be a text, a list of ids, or a list of these", "prompt")
  return [assistant.read(each) if isinstance(each, str) else each for each in several]


def _are_ids(value: Any) -> bool:
  ids = isinstance(value, list) and all(type(each) is int for each in value)
  return ids and len(value) > 0


def read_conversation(assistant: Assistant, body: Mapping[str, Any]) -> list[list[int]]:
  """The ids of the conversation, the one prompt of a chat."""
  messages = []
  for message in body.get("messages", ()):
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
      raise Refused(400, "each message needs a role and a content", "messages")
    role, content = message["role"], message["content"]
    if isinstance(content, list):  # parts, of which only texts are read here
      if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise Refused(400, "the parts of a message must be of the type text", "messages")
      content = "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if not isinstance(role, str) or not isinstance(content, str):
      raise Refused(400, "role and content of a message must be texts", "messages")
    messages.append({"role": role, "content": content})
  try:
    return [assistant.hear(messages)]
  except FlanJaxError as error:
    raise Refused(400, str(error), "messages") from None


def read_asks(
  assistant: Assistant, body: Mapping[str, Any], prompts: Sequence[Sequence[int]], most: int
) -> list[Ask]:
  """Every answer that is asked for.

  Args:
    most: tokens of an answer, where the request does not say.
  """
  new = body.get("max_completion_tokens", body.get("max_tokens"))
  longest = max(map(len, prompts))
  if new is None:
    new = max(1, min(most, assistant.room(0) - longest))
  if longest > assistant.room(new):
    raise Refused(
      400,
      f"the prompt has {longest:,} tokens, and with max_tokens={new} there is room for "
      f"{max(assistant.room(new), 0):,}",
      "messages" if "messages" in body else "prompt",
      "context_length_exceeded",
    )
  stop = body.get("stop", [])
  stops = [stop] if isinstance(stop, str) else stop
  if not all(isinstance(each, str) and each for each in stops):
    raise Refused(400, "stop must be a text or a list of texts, none of them empty", "stop")
  choices = body.get("n", 1)
  if not 1 <= choices <= _CHOICES:
    raise Refused(400, f"n={choices} must be from 1 to {_CHOICES}", "n")
  # OpenAI's defaults: who does not say otherwise gets a draw, and another one for each answer.
  seed = body.get("seed", random.randrange(2**32))
  names = ("top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram")
  told = {name: body[name] for name in names if name in body}
  try:
    sampling = Sampling(new, temperature=body.get("temperature", 1.0), seed=seed, **told)
  except ConfigError as error:
    raise Refused(400, str(error).replace("max_new_tokens", "max_tokens")) from None
  return [
    Ask(prompt, dataclasses.replace(sampling, seed=(seed + i) % 2**32), stops)
    for i, prompt in enumerate(prompt for prompt in prompts for _ in range(choices))
  ]
