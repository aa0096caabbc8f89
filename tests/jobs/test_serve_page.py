"""The page in a real browser: type, see words come, compare two models, stop, and be told what went wrong."""

import asyncio
import contextlib
import itertools
import json
import shutil
import tempfile
import time

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from small_assistants import assistant

from flan_jax.inference import Engine
from flan_jax.jobs.serve import application

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]


class Page:
  """A tab of a browser, over its debugging protocol."""

  def __init__(self, socket):
    self._socket, self._numbers = socket, itertools.count()

  async def ask(self, method, **params):
    number = next(self._numbers)
    await self._socket.send_json({"id": number, "method": method, "params": params})
    async for message in self._socket:
      reply = json.loads(message.data)
      if reply.get("id") == number:
        assert "error" not in reply, reply
        return reply["result"]
    raise AssertionError("the browser has gone")

  async def run(self, script):
    found = await self.ask("Runtime.evaluate", expression=script, returnByValue=True)
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  async def until(self, script, seconds=30):
    async with asyncio.timeout(seconds):
      while not (value := await self.run(script)):
        await asyncio.sleep(0.02)
    return value

  async def type(self, place, text):
    await self.run(f"document.getElementById({place!r}).focus()")
    await self.ask("Input.insertText", text=text)


@contextlib.asynccontextmanager
async def browsing(*names, width=390):
  app = application([assistant(name, seed) for seed, name in enumerate(names)])
  async with TestServer(app) as server, aiohttp.ClientSession() as session:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
      browser = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
        *(f"--user-data-dir={profile}", f"--window-size={width},800", "about:blank"),
        stderr=asyncio.subprocess.PIPE,
      )
      try:
        async for line in browser.stderr:
          if b"DevTools listening on" in line:
            port = line.split(b":")[2].split(b"/")[0].decode()
            break
        async with session.get(f"http://127.0.0.1:{port}/json") as reply:
          tabs = [tab for tab in await reply.json(content_type=None) if tab["type"] == "page"]
        async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"]) as socket:
          page = Page(socket)
          await page.ask("Page.navigate", url=str(server.make_url("/")))
          await page.until("document.querySelectorAll('#first option').length")
          yield page
      finally:
        browser.kill()
        await browser.wait()


SAID = "[...document.querySelectorAll('.said')].map(box => box.textContent)"
TOLD = "[...document.querySelectorAll('.told')].map(box => box.textContent)"


@pytest.fixture(autouse=True)
def slowly(monkeypatch):
  """Models write as slowly as real ones do."""
  step = Engine.step

  def slow(self):
    time.sleep(0.05)
    return step(self)

  monkeypatch.setattr(Engine, "step", slow)


def test_words_come_one_after_the_other_and_two_models_answer_side_by_side():
  async def look():
    async with browsing("one", "other") as page:
      await page.type("instruction", "Say something.")
      await page.type("input", "About nothing.")
      await page.run("document.getElementById('max_tokens').value = 90")
      await page.run("document.getElementById('ask').requestSubmit()")
      lengths = set()
      while not all(await page.run(TOLD) or [""]):
        lengths.add(sum(map(len, await page.run(SAID))))
      assert len(lengths) > 3
      first, second = await page.run(SAID)
      assert first and second and first != second
      assert all("tokens" in told for told in await page.run(TOLD))
      assert await page.run("document.documentElement.scrollWidth <= window.innerWidth")

  asyncio.run(look())


def test_an_answer_can_be_stopped_and_what_is_refused_is_told():
  async def look():
    async with browsing("one") as page:
      assert await page.run("document.getElementById('second').value") == ""
      await page.type("instruction", "x" * 500)
      await page.run("document.getElementById('ask').requestSubmit()")
      told = await page.until(f"{TOLD}[0]")
      assert "the prompt has 501 tokens" in told
      await page.run("document.getElementById('instruction').value = 'Go on.'")
      await page.run("document.getElementById('max_tokens').value = 110")
      await page.run("document.getElementById('ask').requestSubmit()")
      await page.run("document.getElementById('stop').click()")
      assert await page.until(f"{TOLD}[0]") == "stopped"

  asyncio.run(look())
