"""The endpoint: what OpenAI's API says, many at once, people who hang up, and requests that are none."""

import asyncio
import contextlib
import io
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer
from small_assistants import assistant

from flan_jax.errors import ConfigError
from flan_jax.inference import Engine
from flan_jax.jobs.serve import Limits, application, listening


@contextlib.asynccontextmanager
async def served(*names, **limits):
  app = application(
    [assistant(name, seed) for seed, name in enumerate(names or ("tiny",))], Limits(**limits)
  )
  async with TestClient(TestServer(app)) as client:
    yield client


async def complete(client, prompt, status=200, **body):
  body = {"prompt": prompt, "temperature": 0, "max_tokens": 8, **body}
  async with client.post("/v1/completions", json=body) as reply:
    found = await reply.json()
    assert reply.status == status, found
    return found


def test_a_completion_and_a_chat_have_the_fields_of_openai_s():
  async def talk():
    async with served() as client:
      found = await complete(client, "Hello", logprobs=0, n=2, temperature=1.0, seed=5)
      assert found["object"] == "text_completion" and found["model"] == "tiny"
      assert [choice["index"] for choice in found["choices"]] == [0, 1]
      assert found["choices"][0]["text"] != found["choices"][1]["text"]
      again = await complete(client, "Hello", logprobs=0, n=2, temperature=1.0, seed=5)
      assert again["choices"] == found["choices"]
      assert len(found["choices"][0]["logprobs"]["token_logprobs"]) == 8
      assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
      said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
      body = {"messages": said, "temperature": 0, "max_completion_tokens": 5}
      async with client.post("/v1/chat/completions", json=body) as reply:
        chat = await reply.json()
      assert chat["choices"][0]["message"]["role"] == "assistant"
      assert chat["choices"][0]["finish_reason"] == "length"
      async with client.get("/v1/models") as reply:
        assert [model["id"] for model in (await reply.json())["data"]] == ["tiny"]

  asyncio.run(talk())


def test_pieces_make_the_whole():
  async def talk():
    async with served() as client:
      whole = await complete(client, ["Hello", "Good morning"], max_tokens=20)
      body = {
        "prompt": ["Hello", "Good morning"],
        "temperature": 0,
        "max_tokens": 20,
        "stream": True,
      }
      texts = ["", ""]
      async with client.post(
        "/v1/completions", json=body | {"stream_options": {"include_usage": True}}
      ) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        events = (await reply.text()).strip().split("\n\n")
      assert events[-1] == "data: [DONE]"
      pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
      for piece in pieces[:-1]:
        for choice in piece["choices"]:
          texts[choice["index"]] += choice["text"]
      assert texts == [choice["text"] for choice in whole["choices"]]
      assert pieces[-1]["usage"] == whole["usage"] and len(pieces) > 5

  asyncio.run(talk())


def test_two_hundred_at_once_some_of_whom_hang_up_get_each_its_own_answer():
  async def talk():
    async with served() as client:
      prompts = [f"Question {i}" for i in range(20)]
      alone = {p: (await complete(client, p))["choices"][0]["text"] for p in prompts}
      assert len(set(alone.values())) > 5

      async def hang_up(prompt):
        body = {"prompt": prompt, "max_tokens": 60, "stream": True}
        async with client.post("/v1/completions", json=body) as reply:
          await reply.content.readany()
          reply.close()

      async def malformed():
        headers = {"Content-Type": "application/json"}
        async with client.post("/v1/completions", data="{", headers=headers) as reply:
          assert reply.status == 400

      async def ask(prompt):
        return (await complete(client, prompt))["choices"][0]["text"]

      asked = prompts * 10
      others = [hang_up(p) for p in prompts] + [malformed() for _ in range(20)]
      found, _ = await asyncio.gather(asyncio.gather(*map(ask, asked)), asyncio.gather(*others))
      assert found == [alone[prompt] for prompt in asked]

  asyncio.run(talk())


def test_who_comes_when_too_many_wait_is_sent_away_and_who_waits_too_long_is_told():
  async def talk():
    async with served(requests=3) as client:
      several = [
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 30}) for _ in range(12)
      ]
      replies = await asyncio.gather(*several)
      statuses = sorted(reply.status for reply in replies)
      assert statuses[:3] == [200] * 3 and statuses[-1] == 429
      assert next(r for r in replies if r.status == 429).headers["Retry-After"] == "1"
      for reply in replies:
        reply.release()
    async with served(seconds=0.001) as client:
      found = await complete(client, "a", status=504, max_tokens=100)
      assert "no answer within 0.001 seconds" in found["error"]["message"]

  asyncio.run(talk())


REFUSED = [
  ({"prompt": ""}, 400, "the prompt is empty"),
  ({"prompt": []}, 400, "prompt is empty"),
  ({}, 400, "prompt is missing"),
  ({"prompt": [["a"]]}, 400, "prompt must be a text, a list of ids"),
  ({"prompt": [400]}, 400, "the id 400 is unknown"),
  (
    {"prompt": "a" * 200},
    400,
    "the prompt has 200 tokens, and with max_tokens=1 there is room for 127",
  ),
  (
    {"prompt": "a", "max_token": 3},
    400,
    "unknown parameter 'max_token'; did you mean 'max_tokens'?",
  ),
  ({"prompt": "a", "max_tokens": "3"}, 400, "max_tokens must be of the kind int"),
  ({"prompt": "a", "max_tokens": True}, 400, "max_tokens must be of the kind int"),
  ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens=0 must be 1 or more"),
  ({"prompt": "a", "temperature": -1}, 400, "temperature=-1 must be 0"),
  ({"prompt": "a", "temperature": 10**400}, 400, "must be 0 (the most probable token) or from"),
  ({"prompt": "a", "top_k": 2**31}, 400, "top_k=2147483648 must be 0 (all) or more, below"),
  ({"prompt": "a", "no_repeat_ngram": 2**31}, 400, "no_repeat_ngram=2147483648 must be 0 (none)"),
  ({"prompt": "a", "max_tokens": 10**12}, 400, "there is room for 0"),
  ({"prompt": "\ud83d"}, 400, "half of a surrogate pair is no text"),
  ({"prompt": "a", "top_p": 2}, 400, "top_p=2 must be above 0"),
  ({"prompt": "a", "n": 99}, 400, "n=99 must be from 1 to 16"),
  ({"prompt": "a", "stop": [""]}, 400, "stop must be a text"),
  ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty=0.5 is not supported here"),
  ({"prompt": "a", "echo": True}, 400, "echo=True is not supported here"),
  ({"prompt": "a", "model": "tini"}, 404, "there is no model 'tini': tiny"),
]


@pytest.mark.parametrize(("body", "status", "told"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_answered_is_refused_in_openai_s_words(body, status, told):
  async def talk():
    async with served() as client:
      for stream in (False, True):
        async with client.post("/v1/completions", json={**body, "stream": stream}) as reply:
          found = await reply.json()
        assert reply.status == status and told in found["error"]["message"]
        assert found["error"]["type"] == "invalid_request_error"
      assert (await complete(client, "Hello"))["choices"][0]["text"]

  asyncio.run(talk())


@pytest.mark.parametrize(
  ("messages", "told"),
  [
    ([], "this one goes nowhere"),
    ([{"role": "assistant", "content": "a"}], "this one goes assistant"),
    ([{"role": "user"}], "each message needs a role and a content"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "must be of the type text"),
    ([{"role": "user", "content": [{"type": ["text"], "text": "a"}]}], "must be of the type text"),
    ([{"role": "user", "content": "\ud83d"}], "half of a surrogate pair is no text"),
    ("Hello", "messages must be of the kind list"),
  ],
)
def test_what_is_no_conversation_is_refused(messages, told):
  async def talk():
    async with (
      served() as client,
      client.post("/v1/chat/completions", json={"messages": messages}) as reply,
    ):
      assert reply.status == 400 and told in (await reply.json())["error"]["message"]

  asyncio.run(talk())


def test_other_places_methods_and_sizes_are_refused_as_json():
  async def talk():
    async with served() as client:
      for method, path, body, status in (
        ("GET", "/v1/completion", None, 404),
        ("GET", "/v1/completions", None, 405),
        ("POST", "/v1/completions", io.BytesIO(b"x" * 2_000_000), 413),
        ("POST", "/v1/completions", b"[1]", 400),
        ("POST", "/v1/completions", b"[" * 90_000, 400),
        ("POST", "/v1/completions", b"\xff", 400),
      ):
        headers = {"Content-Type": "application/json"}
        async with client.request(method, path, data=body, headers=headers) as reply:
          assert reply.status == status
          assert "message" in (await reply.json())["error"]
      async with client.post("/v1/completions", data=b'{"prompt": "a"}') as reply:
        assert reply.status == 415

  asyncio.run(talk())


def test_a_place_that_is_taken_is_told():
  with listening(port=0) as listener:
    port = listener.getsockname()[1]
    with pytest.raises(ConfigError, match=f"nobody can listen at 127.0.0.1:{port} .*--port"):
      listening(port=port)
    with pytest.raises(ConfigError, match="nobody can listen at nowhere.invalid:"):
      listening("nowhere.invalid")


def test_each_answer_to_each_prompt_is_a_draw_of_its_own_and_a_prompt_counts_once():
  async def talk():
    async with served() as client:
      drawn = {"n": 2, "temperature": 1.0, "max_tokens": 20}
      found = await complete(client, ["Hello", "Hello"], seed=3, **drawn)
      texts = [choice["text"] for choice in found["choices"]]
      assert len(set(texts)) == 4
      assert found["usage"]["prompt_tokens"] == 2 * len("Hello")
      again = await complete(client, ["Hello", "Hello"], seed=3, **drawn)
      assert [choice["text"] for choice in again["choices"]] == texts

  asyncio.run(talk())


def test_models_stand_side_by_side_and_a_model_that_breaks_is_told_and_goes_on():
  async def talk():
    async with served("one", "other") as client:
      texts = [
        (await complete(client, "Hello", model=name))["choices"][0]["text"]
        for name in ("one", "other")
      ]
      assert texts[0] != texts[1]
      async with client.get("/") as reply:
        assert "Instruction" in await reply.text()

  asyncio.run(talk())


def test_a_fault_within_a_step_ends_the_answers_of_that_step_alone(monkeypatch):
  async def talk():
    async with served() as client:
      right = await complete(client, "Hello")
      step, faults = Engine.step, [OSError("the device is gone")]

      def broken(self):
        if faults:
          raise faults.pop()
        return step(self)

      monkeypatch.setattr(Engine, "step", broken)
      found = await complete(client, "Hello", status=500)
      assert "the model failed: the device is gone" in found["error"]["message"]
      assert (await complete(client, "Hello"))["choices"] == right["choices"]

  asyncio.run(talk())
