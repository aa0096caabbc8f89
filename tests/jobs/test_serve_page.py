"""The page in a real browser: type, see words come, compare two models, stop, and be told what went wrong."""

import asyncio
import contextlib
import time

import pytest
from aiohttp.test_utils import TestServer
from small_assistants import assistant

from flan_jax.inference import Engine
from flan_jax.jobs.serve import application

from ..chromium import CHROMIUM, browsing

pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]


@contextlib.asynccontextmanager
async def serving(*names, width=390):
  app = application([assistant(name, seed) for seed, name in enumerate(names)])
  async with TestServer(app) as server, browsing(str(server.make_url("/")), width) as page:
    await page.until("document.querySelectorAll('#first option').length")
    yield page


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
    async with serving("one", "other") as page:
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
    async with serving("one") as page:
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
