"""The public client of OpenAI's API finds here what it expects."""

import asyncio
import threading

import pytest
from aiohttp import web
from small_assistants import assistant

from flan_jax.jobs.serve import application

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.oracle
SAID = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client():
  loop, ready, url = asyncio.new_event_loop(), threading.Event(), []
  runner = web.AppRunner(application([assistant("tiny")]), handler_cancellation=True)

  async def begin():
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    ready.set()

  def work():
    loop.run_until_complete(begin())
    loop.run_forever()
    loop.run_until_complete(runner.cleanup())
    loop.close()

  thread = threading.Thread(target=work)
  thread.start()
  ready.wait()
  with openai.OpenAI(base_url=url[0], api_key="none", max_retries=0) as client:
    yield client
  loop.call_soon_threadsafe(loop.stop)
  thread.join()


def test_whole_answers_and_streams_agree(client):
  assert [model.id for model in client.models.list()] == ["tiny"]
  settings = {"model": "tiny", "messages": SAID, "temperature": 0, "max_tokens": 30}
  whole = client.chat.completions.create(**settings, logprobs=True)
  assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 30
  assert len(whole.choices[0].logprobs.content) == 30
  stream = client.chat.completions.create(
    **settings, stream=True, stream_options={"include_usage": True}
  )
  pieces = list(stream)
  words = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
  assert "".join(words) == whole.choices[0].message.content and len(words) > 3
  assert pieces[-1].usage == whole.usage
  text = client.completions.create(model="tiny", prompt=["One", "Two"], temperature=0, max_tokens=9)
  assert [choice.index for choice in text.choices] == [0, 1]


def test_mistakes_are_the_client_s_own_exceptions(client):
  with pytest.raises(openai.NotFoundError, match="there is no model 'tinny'"):
    client.chat.completions.create(model="tinny", messages=SAID)
  with pytest.raises(openai.BadRequestError, match="temperature=-3"):
    client.chat.completions.create(model="tiny", messages=SAID, temperature=-3)
  with pytest.raises(openai.BadRequestError, match="is not supported here"):
    client.chat.completions.create(model="tiny", messages=SAID, presence_penalty=1)


def test_who_hangs_up_leaves_a_free_place(client):
  for _ in range(8):
    stream = client.completions.create(
      model="tiny", prompt="Go", max_tokens=100, temperature=1, stream=True
    )
    next(iter(stream))
    stream.close()
  answer = client.completions.create(model="tiny", prompt="Go", max_tokens=5, temperature=0)
  assert answer.usage.completion_tokens == 5
