"""`flan-jax serve`: models behind HTTP, in the words of OpenAI's API, and a page to ask them from.

  GET  /                      the page
  GET  /v1/models             names
  POST /v1/completions        text that is gone on with
  POST /v1/chat/completions   messages that are answered

Each model has a thread that alone touches its `Texts`; requests and news pass between it and the event loop by
queues. A parameter that is not obeyed here is refused.
"""

import asyncio
import contextlib
import dataclasses
import json
import queue
import random
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web

from flan_jax.errors import ConfigError, FlanJaxError, nearest
from flan_jax.inference import News, Sampling
from flan_jax.jobs.assistants import Assistant
from flan_jax.jobs.serve_page import PAGE

_BODY_BYTES = 1_000_000
_CHOICES = 16


@dataclass(frozen=True)
class Limits:
  """What the server takes on.

  Args:
    requests: answers of a model that are waiting or being written at once; more are refused with 429.
    seconds: that a request may take, waiting included.
    max_tokens: of an answer, where the request does not say.
  """

  requests: int = 1024
  seconds: float = 600.0
  max_tokens: int = 256


def serve(
  assistants: Sequence[Assistant],
  *,
  host: str = "127.0.0.1",
  port: int = 8000,
  limits: Limits = Limits(),
) -> None:
  """Answers until it is interrupted.

  Raises:
    ConfigError: two models have one name.
  """
  names = [assistant.name for assistant in assistants]
  if len(set(names)) < len(names):
    raise ConfigError(f"two models are called {names}: give them other names, as NAME=PLACE.")
  app = application(assistants, limits)
  print(f"http://{host}:{port}: {', '.join(names)}", flush=True)
  web.run_app(app, host=host, port=port, print=None, handler_cancellation=True)


def application(assistants: Sequence[Assistant], limits: Limits = Limits()) -> web.Application:
  """The server, to be run by aiohttp."""
  desks = {assistant.name: _Desk(assistant, limits) for assistant in assistants}
  app = web.Application(middlewares=[_told_as_json], client_max_size=_BODY_BYTES)

  async def page(request: web.Request) -> web.Response:
    return web.Response(text=PAGE, content_type="text/html")

  async def models(request: web.Request) -> web.Response:
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "flan-jax"} for name in desks]
    return web.json_response({"object": "list", "data": data})

  async def completions(request: web.Request) -> web.StreamResponse:
    return await _respond(request, desks, limits, chat=False)

  async def chat(request: web.Request) -> web.StreamResponse:
    return await _respond(request, desks, limits, chat=True)

  async def open_desks(app: web.Application) -> AsyncIterator[None]:
    for desk in desks.values():
      desk.open(asyncio.get_running_loop())
    yield
    for desk in desks.values():
      desk.close()

  app.cleanup_ctx.append(open_desks)
  app.router.add_get("/", page)
  app.router.add_get("/v1/models", models)
  app.router.add_post("/v1/completions", completions)
  app.router.add_post("/v1/chat/completions", chat)
  return app


class _Refused(Exception):
  """A request that is not answered, in the words of OpenAI's API."""

  def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
    super().__init__(message)
    self.status = status
    kind = "server_error" if status >= 500 else "invalid_request_error"
    self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@web.middleware
async def _told_as_json(
  request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
  try:
    return await handler(request)
  except _Refused as refused:
    headers = {"Retry-After": "1"} if refused.status == 429 else {}
    return web.json_response(refused.body, status=refused.status, headers=headers)
  except web.HTTPException as error:
    told = _Refused(error.status, f"{request.method} {request.path}: {error.reason}")
    return web.json_response(told.body, status=error.status)


class _Ask(NamedTuple):
  """One answer that is asked for."""

  prompt: Sequence[int]
  sampling: Sampling
  stop: Sequence[str]


@dataclass
class _Ticket:
  """Somebody who waits for some answers; news arrive as (which, News), or an exception."""

  asks: Sequence[_Ask]
  news: asyncio.Queue
  numbers: dict[int, int] = field(default_factory=dict)


class _Desk:
  """A model's requests, on their way between the event loop and the thread that writes."""

  def __init__(self, assistant: Assistant, limits: Limits):
    self.assistant, self._limits = assistant, limits
    self._inbox: queue.SimpleQueue[tuple[str, _Ticket] | None] = queue.SimpleQueue()
    self._taken = 0
    self._loop: asyncio.AbstractEventLoop | None = None
    self._thread = threading.Thread(target=self._write, name=assistant.name, daemon=True)

  def open(self, loop: asyncio.AbstractEventLoop) -> None:
    self._loop = loop
    self._thread.start()

  def close(self) -> None:
    self._inbox.put(None)
    self._thread.join(timeout=10)

  async def answers(self, asks: Sequence[_Ask]) -> AsyncGenerator[tuple[int, News]]:
    """News of each of the answers, until all have ended; who stops listening gives them up.

    Raises:
      _Refused: too many are asked for at once, one is refused, or time is up.
    """
    if self._taken + len(asks) > self._limits.requests:
      raise _Refused(
        429,
        f"{self._taken} answers are waiting already: ask again later",
        code="rate_limit_exceeded",
      )
    self._taken += len(asks)
    ticket = _Ticket(asks, asyncio.Queue())
    self._inbox.put(("add", ticket))
    left = len(asks)
    try:
      async with asyncio.timeout(self._limits.seconds):
        while left:
          which, news = await ticket.news.get()
          if isinstance(news, Exception):
            raise news
          yield which, news
          left -= news.finish is not None
    except TimeoutError:
      raise _Refused(504, f"no answer within {self._limits.seconds:g} seconds") from None
    finally:
      self._taken -= len(asks)
      if left:
        self._inbox.put(("cancel", ticket))

  def _write(self) -> None:
    """The thread: takes what is asked, writes a block, tells the news."""
    texts, tickets = self.assistant.texts, dict[int, tuple[_Ticket, int]]()
    while True:
      try:
        wish = self._inbox.get(block=not texts.busy)
        if wish is None:
          return
        self._obey(*wish, tickets)
        continue
      except queue.Empty:
        pass
      try:
        for news in texts.step():
          ticket, which = tickets[news.number]
          if news.finish:
            del tickets[news.number]
          self._tell(ticket, which, news)
      except Exception as error:
        # What breaks the model breaks every answer that it is writing, and none of the next ones.
        texts.reset()
        for ticket, which in tickets.values():
          self._tell(ticket, which, _Refused(500, f"the model failed: {error}"))
        tickets.clear()

  def _obey(self, wish: str, ticket: _Ticket, tickets: dict[int, tuple[_Ticket, int]]) -> None:
    if wish == "cancel":
      for number in ticket.numbers.values():
        self.assistant.texts.cancel(number)
        tickets.pop(number, None)
      return
    for which, ask in enumerate(ticket.asks):
      try:
        number = self.assistant.texts.add(ask.prompt, ask.sampling, ask.stop)
      except FlanJaxError as error:
        self._tell(ticket, which, _Refused(400, str(error)))
        return
      ticket.numbers[which] = number
      tickets[number] = ticket, which

  def _tell(self, ticket: _Ticket, which: int, news: News | Exception) -> None:
    assert self._loop is not None
    with contextlib.suppress(RuntimeError):  # the loop has ended
      self._loop.call_soon_threadsafe(ticket.news.put_nowait, (which, news))


class _Parameter(NamedTuple):
  """A parameter of a request.

  Args:
    kinds: of its value.
    only: the values that are obeyed; () where all of the kind are.
  """

  kinds: tuple[type, ...]
  only: tuple[Any, ...] = ()


_NUMBER = (int, float)
_PARAMETERS = {
  "model": _Parameter((str,)),
  "max_tokens": _Parameter((int,)),
  "temperature": _Parameter(_NUMBER),
  "top_p": _Parameter(_NUMBER),
  "top_k": _Parameter((int,)),
  "min_p": _Parameter(_NUMBER),
  "repetition_penalty": _Parameter(_NUMBER),
  "no_repeat_ngram": _Parameter((int,)),
  "seed": _Parameter((int,)),
  "stop": _Parameter((str, list)),
  "n": _Parameter((int,)),
  "stream": _Parameter((bool,)),
  "stream_options": _Parameter((dict,)),
  "user": _Parameter((str,)),
  "frequency_penalty": _Parameter(_NUMBER, (0,)),
  "presence_penalty": _Parameter(_NUMBER, (0,)),
}
_OF_TEXT = {
  "prompt": _Parameter((str, list)),
  "logprobs": _Parameter((int,), (0,)),
  "echo": _Parameter((bool,), (False,)),
  "best_of": _Parameter((int,), (1,)),
  "suffix": _Parameter((str,), ("",)),
}
_OF_CHAT = {
  "messages": _Parameter((list,)),
  "max_completion_tokens": _Parameter((int,)),
  "logprobs": _Parameter((bool,)),
  "top_logprobs": _Parameter((int,), (0,)),
  "response_format": _Parameter((dict,), ({"type": "text"},)),
}


async def _respond(
  request: web.Request, desks: Mapping[str, _Desk], limits: Limits, chat: bool
) -> web.StreamResponse:
  body = await _body(request, _PARAMETERS | (_OF_CHAT if chat else _OF_TEXT))
  name = body.get("model", next(iter(desks)))
  if name not in desks:
    raise _Refused(
      404, f"there is no model {name!r}: {', '.join(desks)}", "model", "model_not_found"
    )
  desk = desks[name]
  prompts = _conversation(desk.assistant, body) if chat else _prompts(desk.assistant, body)
  asks = _asks(desk.assistant, body, prompts, limits)
  reply = _Reply(desk.assistant, chat, body, asks)
  async with contextlib.aclosing(desk.answers(asks)) as answers:
    if body.get("stream"):
      return await _streamed(request, reply, answers)
    async for which, news in answers:
      reply.take(which, news)
  return web.json_response(reply.whole())


async def _body(request: web.Request, known: Mapping[str, _Parameter]) -> dict[str, Any]:
  """The request's JSON, each parameter of its kind; one that is null is as if it were not there."""
  if (
    request.content_type != "application/json"
  ):  # a page of somebody else's may send the others unasked
    raise _Refused(415, "the body must be sent as application/json")
  try:
    body = json.loads(await request.text())
  except (ValueError, RecursionError, LookupError) as error:
    raise _Refused(400, f"the body is no JSON: {error}") from None
  if not isinstance(body, dict):
    raise _Refused(400, "the body is no JSON object")
  body = {name: value for name, value in body.items() if value is not None}
  for name, value in body.items():
    if name not in known:
      close = nearest(name, known, count=1)
      raise _Refused(
        400, f"unknown parameter {name!r}{f'; did you mean {close[0]!r}?' if close else ''}", name
      )
    kinds, only = known[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
      wanted = " or ".join(kind.__name__ for kind in kinds)
      raise _Refused(400, f"{name} must be of the kind {wanted}", name)
    if only and value not in only:
      raise _Refused(400, f"{name}={value!r} is not supported here", name)
  return body


def _prompts(assistant: Assistant, body: Mapping[str, Any]) -> list[list[int]]:
  prompt = body.get("prompt")
  if prompt is None:
    raise _Refused(400, "prompt is missing", "prompt")
  several = [prompt] if isinstance(prompt, str) or _are_ids(prompt) else prompt
  if not several:
    raise _Refused(400, "prompt is empty", "prompt")
  if not all(isinstance(each, str) or _are_ids(each) for each in several):
    raise _Refused(400, "prompt must be a text, a list of ids, or a list of these", "prompt")
  return [assistant.read(each) if isinstance(each, str) else each for each in several]


def _are_ids(value: Any) -> bool:
  ids = isinstance(value, list) and all(type(each) is int for each in value)
  return ids and len(value) > 0


def _conversation(assistant: Assistant, body: Mapping[str, Any]) -> list[list[int]]:
  messages = []
  for message in body.get("messages", ()):
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
      raise _Refused(400, "each message needs a role and a content", "messages")
    role, content = message["role"], message["content"]
    if isinstance(content, list):  # parts, of which only texts are read here
      kinds = {part.get("type") if isinstance(part, dict) else None for part in content}
      if kinds - {"text"}:
        raise _Refused(400, "the parts of a message must be of the type text", "messages")
      content = "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if not isinstance(role, str) or not isinstance(content, str):
      raise _Refused(400, "role and content of a message must be texts", "messages")
    messages.append({"role": role, "content": content})
  try:
    return [assistant.hear(messages)]
  except FlanJaxError as error:
    raise _Refused(400, str(error), "messages") from None


def _asks(
  assistant: Assistant, body: Mapping[str, Any], prompts: Sequence[Sequence[int]], limits: Limits
) -> list[_Ask]:
  new = body.get("max_completion_tokens", body.get("max_tokens"))
  longest = max(map(len, prompts))
  if new is None:
    new = max(1, min(limits.max_tokens, assistant.room(0) - longest))
  if longest > assistant.room(new):
    raise _Refused(
      400,
      f"the prompt has {longest:,} tokens, and with max_tokens={new} there is room for {assistant.room(new):,}",
      "messages" if "messages" in body else "prompt",
      "context_length_exceeded",
    )
  stop = body.get("stop", [])
  stops = [stop] if isinstance(stop, str) else stop
  if not all(isinstance(each, str) and each for each in stops):
    raise _Refused(400, "stop must be a text or a list of texts, none of them empty", "stop")
  choices = body.get("n", 1)
  if not 1 <= choices <= _CHOICES:
    raise _Refused(400, f"n={choices} must be from 1 to {_CHOICES}", "n")
  # OpenAI's defaults: who does not say otherwise gets a draw, and another one each time.
  seed = body.get("seed", random.randrange(2**32))
  names = ("top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram")
  told = {name: body[name] for name in names if name in body}
  try:
    sampling = Sampling(new, temperature=body.get("temperature", 1.0), seed=seed, **told)
  except ConfigError as error:
    raise _Refused(400, str(error).replace("max_new_tokens", "max_tokens")) from None
  return [
    _Ask(prompt, dataclasses.replace(sampling, seed=(seed + i) % 2**32), stops)
    for prompt in prompts
    for i in range(choices)
  ]


class _Reply:
  """What is sent back, whole or piece by piece."""

  def __init__(
    self, assistant: Assistant, chat: bool, body: Mapping[str, Any], asks: Sequence[_Ask]
  ):
    kind = "chat.completion" if chat else "text_completion"
    self._chat, self._spell = chat, assistant.source.vocabulary.decode
    self._prompt_tokens = sum(len(ask.prompt) for ask in asks)
    self._kind = f"{kind}.chunk" if chat and body.get("stream") else kind
    self._logprobs = "logprobs" in body and body["logprobs"] is not False  # 0 asks for them
    self._head = {
      "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
      "object": self._kind,
      "created": int(time.time()),
      "model": assistant.name,
    }
    self._texts, self._last = [""] * len(asks), [News(-1, "", (), ())] * len(asks)
    self.counts_tokens = bool((body.get("stream_options") or {}).get("include_usage"))

  def take(self, which: int, news: News) -> int:
    """Takes news in; how many tokens were told of before."""
    if news.finish == "broken":
      raise _Refused(500, "the model's logits are not finite")
    before = len(self._last[which].tokens)
    self._texts[which] += news.text
    self._last[which] = news
    return before

  def whole(self) -> dict[str, Any]:
    choices = []
    for which, (text, news) in enumerate(zip(self._texts, self._last, strict=True)):
      said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
      choices.append(self._choice(which, said, news, 0))
    return {**self._head, "choices": choices, "usage": self._usage()}

  def begins(self) -> list[dict[str, Any]]:
    """The first pieces: of a chat, who speaks."""
    if not self._chat:
      return []
    role = {"delta": {"role": "assistant", "content": ""}}
    silent = News(-1, "", (), ())
    return [
      {**self._head, "choices": [self._choice(which, role, silent, 0)]}
      for which in range(len(self._texts))
    ]

  def piece(self, which: int, news: News) -> dict[str, Any]:
    before = self.take(which, news)
    said = {"delta": {"content": news.text}} if self._chat else {"text": news.text}
    return {**self._head, "choices": [self._choice(which, said, news, before)]}

  def usage(self) -> dict[str, Any]:
    return {**self._head, "choices": [], "usage": self._usage()}

  def _choice(self, which: int, said: Mapping[str, Any], news: News, before: int) -> dict[str, Any]:
    logprobs = self._told_logprobs(news, before) if self._logprobs else None
    return {"index": which, **said, "logprobs": logprobs, "finish_reason": news.finish}

  def _told_logprobs(self, news: News, before: int) -> dict[str, Any]:
    tokens, values = (
      [self._spell([token]) for token in news.tokens[before:]],
      news.logprobs[before:],
    )
    if not self._chat:
      return {"tokens": tokens, "token_logprobs": list(values)}
    pairs = zip(tokens, values, strict=True)
    told = [{"token": token, "logprob": value, "top_logprobs": []} for token, value in pairs]
    return {"content": told}

  def _usage(self) -> dict[str, int]:
    written = sum(len(news.tokens) for news in self._last)
    read = self._prompt_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def _streamed(
  request: web.Request, reply: _Reply, answers: AsyncIterator[tuple[int, News]]
) -> web.StreamResponse:
  """Server-sent events; what is refused before the first of them is an answer of its own."""
  response = web.StreamResponse(
    headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
  )

  async def send(piece: Mapping[str, Any] | str) -> None:
    data = piece if isinstance(piece, str) else json.dumps(piece, ensure_ascii=False)
    await response.write(f"data: {data}\n\n".encode())

  try:
    async for which, news in answers:
      piece = reply.piece(which, news)
      if not response.prepared:
        await response.prepare(request)
        for first in reply.begins():
          await send(first)
      await send(piece)
    if reply.counts_tokens:
      await send(reply.usage())
    await send("[DONE]")
  except _Refused as refused:
    if not response.prepared:
      raise
    await send(refused.body)
  except ConnectionResetError:
    pass  # who asked has gone
  return response
