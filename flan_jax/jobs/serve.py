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
import json
import queue
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from flan_jax.errors import ConfigError, FlanJaxError
from flan_jax.inference import News
from flan_jax.jobs.assistants import Assistant
from flan_jax.jobs.serve_page import PAGE
from flan_jax.jobs.serve_replies import Reply
from flan_jax.jobs.serve_requests import (
  Ask,
  Refused,
  read_asks,
  read_body,
  read_conversation,
  read_prompts,
)

_BODY_BYTES = 1_000_000


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
  assistants: Sequence[Assistant], listener: socket.socket, *, limits: Limits = Limits()
) -> None:
  """Answers until it is interrupted.

  Args:
    listener: of `listening`.

  Raises:
    ConfigError: two models have one name.
  """
  names = [assistant.name for assistant in assistants]
  check_names(names)
  app = application(assistants, limits)
  host, port = listener.getsockname()[:2]
  print(f"http://{host}:{port}: {', '.join(names)}", flush=True)
  web.run_app(app, sock=listener, print=None, handler_cancellation=True)


def check_names(names: Sequence[str]) -> None:
  """Raises ConfigError where two models have one name."""
  if len(set(names)) < len(names):
    raise ConfigError(f"two models are called {names}: give them other names, as NAME=PLACE.")


def listening(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
  """Takes the place where requests are to come in; 0 is any free port.

  Raises:
    ConfigError: it is taken, or none of this machine's.
  """
  try:
    kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=kind)
  except (OSError, OverflowError) as error:
    raise ConfigError(
      f"nobody can listen at {host}:{port} ({error}): name another --host or --port."
    ) from None


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


@web.middleware
async def _told_as_json(
  request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
  try:
    return await handler(request)
  except Refused as refused:
    headers = {"Retry-After": "1"} if refused.status == 429 else {}
    return web.json_response(refused.body, status=refused.status, headers=headers)
  except web.HTTPException as error:
    told = Refused(error.status, f"{request.method} {request.path}: {error.reason}")
    return web.json_response(told.body, status=error.status)


@dataclass
class _Ticket:
  """Somebody who waits for some answers; news arrive as (which, News), or an exception."""

  asks: Sequence[Ask]
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

  async def answers(self, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, News]]:
    """News of each of the answers, until all have ended; who stops listening gives them up.

    Raises:
      Refused: too many are asked for at once, one is refused, or time is up.
    """
    if self._taken + len(asks) > self._limits.requests:
      raise Refused(
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
      raise Refused(504, f"no answer within {self._limits.seconds:g} seconds") from None
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
          self._tell(ticket, which, Refused(500, f"the model failed: {error}"))
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
        self._tell(ticket, which, Refused(400, str(error)))
        return
      ticket.numbers[which] = number
      tickets[number] = ticket, which

  def _tell(self, ticket: _Ticket, which: int, news: News | Exception) -> None:
    assert self._loop is not None
    with contextlib.suppress(RuntimeError):  # the loop has ended
      self._loop.call_soon_threadsafe(ticket.news.put_nowait, (which, news))


async def _respond(
  request: web.Request, desks: Mapping[str, _Desk], limits: Limits, chat: bool
) -> web.StreamResponse:
  body = await read_body(request, chat)
  name = body.get("model", next(iter(desks)))
  if name not in desks:
    raise Refused(
      404, f"there is no model {name!r}: {', '.join(desks)}", "model", "model_not_found"
    )
  desk = desks[name]
  prompts = read_conversation(desk.assistant, body) if chat else read_prompts(desk.assistant, body)
  asks = read_asks(desk.assistant, body, prompts, limits.max_tokens)
  reply = Reply(desk.assistant, chat, body, asks)
  async with contextlib.aclosing(desk.answers(asks)) as answers:
    if body.get("stream"):
      return await _streamed(request, reply, answers)
    async for which, news in answers:
      reply.take(which, news)
  return web.json_response(reply.whole())


async def _streamed(
  request: web.Request, reply: Reply, answers: AsyncIterator[tuple[int, News]]
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
  except Refused as refused:
    if not response.prepared:
      raise
    await send(refused.body)
  except ConnectionResetError:
    pass  # who asked has gone
  return response
