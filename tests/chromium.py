"""A page in headless Chromium, asked over its debugging protocol."""

import asyncio
import contextlib
import itertools
import json
import shutil
import tempfile

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page:
  """A tab of a browser."""

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

  async def press(self, key):
    """A key on what has the focus, as "Tab" or "Enter"."""
    code = {"Tab": 9, "Enter": 13}[key]
    about = {"key": key, "windowsVirtualKeyCode": code, "text": "\r" if key == "Enter" else ""}
    await self.ask("Input.dispatchKeyEvent", type="keyDown", **about)
    await self.ask("Input.dispatchKeyEvent", type="keyUp", **about)


@contextlib.asynccontextmanager
async def browsing(url, width):
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
      async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as reply:
          tabs = [tab for tab in await reply.json(content_type=None) if tab["type"] == "page"]
        async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"]) as socket:
          page = Page(socket)
          # A window has a least width; what it shows has none.
          await page.ask(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
          )
          await page.ask("Page.navigate", url=url)
          yield page
    finally:
      browser.kill()
      await browser.wait()
