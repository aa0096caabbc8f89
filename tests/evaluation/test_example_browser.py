"""The examples of a report in a real browser, from a file: choose, leaf through, search, without a mouse as well."""

import asyncio
from dataclasses import replace

import pytest

from flan_jax.evaluation.pages.report_page import write_html
from flan_jax.evaluation.report import build_report

from ..chromium import CHROMIUM, browsing
from .known_results import GOLDS, evaluation, right_on, task, template, written

pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]

HOSTILE = "</script><em id='injected'>emphasis</em> " + "a_word_without_end" * 60
SHOWN = "document.getElementById('example').innerText"
PLACE = "document.getElementById('place').textContent"
NARROW_ENOUGH = "document.documentElement.scrollWidth <= window.innerWidth"
BEFORE, AFTER = right_on(0.6, 1), right_on(0.9, 2)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  """A report of two tasks, one ranked under six templates and one written."""

  def judged(margins, texts):
    templates = [template(f"template_{k}", margins, GOLDS) for k in range(6)]
    hostile = [replace(e, inputs=f"{HOSTILE} {e.index}") for e in templates[1].examples]
    templates[1] = replace(templates[1], examples=tuple(hostile))
    texts = replace(written(texts, ["blue", "red"], "f1"), name="colours")
    return evaluation(task("movies", templates, held_out=True), texts)

  report = build_report(
    judged(AFTER, ["blue", "a red"]), judged(BEFORE, ["", "green"]), resamples=50
  )
  path = tmp_path_factory.mktemp("report") / "report.html"
  write_html(report, path)
  return path.as_uri()


def looking(address, width, look):
  async def all_of_it():
    async with browsing(address, width) as page:
      await page.until(f"document.readyState === 'complete' && {PLACE}")
      await look(page)

  asyncio.run(all_of_it())


async def choose(page, name, value):
  await page.run(
    f"document.getElementById({name!r}).value = {value!r};"
    f"document.getElementById({name!r}).dispatchEvent(new Event('change'))"
  )


@pytest.mark.parametrize("width", [390, 1280])
def test_what_flipped_is_leafed_through(address, width):
  async def look(page):
    await choose(page, "task", "movies")
    await choose(page, "template", "0")
    await choose(page, "kind", "flipped to right")
    flipped = [i for i in range(100) if BEFORE[i] != AFTER[i] == right_on(1.0)[i]]
    assert await page.run(PLACE) == f"1 of {len(flipped)}"
    await page.run("document.getElementById('next').click()")
    assert await page.run(PLACE) == f"2 of {len(flipped)}"
    shown = await page.run(SHOWN)
    index = flipped[1]
    was, now = ("good", "bad") if GOLDS[index] == 0 else ("bad", "good")
    assert f"review <{index}>" in shown and "template_0" in shown
    assert f"before\n{was} wrong" in shown and f"after\n{now} right" in shown
    options = await page.run(
      "[...document.querySelectorAll('#example tbody tr')].map(row => [...row.cells].map(c => c.innerText.trim()))"
    )
    for name, label, before, after in (
      ("bad", "negative", -5.0, -5.0),
      ("good", "positive", -5.0 + BEFORE[index], -5.0 + AFTER[index]),
    ):
      told = f"{name} {label}" + (" right" if name == now else "")
      chosen = [" chosen" if name == said else "" for said in (was, now)]
      assert [told, f"{before:.2f}{chosen[0]}", f"{after:.2f}{chosen[1]}"] in options
    assert await page.run(f"{NARROW_ENOUGH} && window.innerWidth === {width}")

  looking(address, width, look)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_same_example_stays_under_another_template_and_its_text_is_text(address, width):
  async def look(page):
    await choose(page, "task", "movies")
    await choose(page, "template", "0")
    for _ in range(2):
      await page.run("document.getElementById('next').click()")
    await choose(page, "template", "1")
    assert await page.run(PLACE) == "3 of 100"
    assert (await page.run("document.querySelector('#example pre').textContent")) == f"{HOSTILE} 2"
    assert await page.run("document.getElementById('injected')") is None
    assert await page.run(NARROW_ENOUGH)

  looking(address, width, look)


def test_written_texts_and_words_that_are_looked_for(address):
  async def look(page):
    await choose(page, "task", "colours")
    assert await page.run(PLACE) == "1 of 2"
    await page.type("words", "GREEN")
    assert await page.run(PLACE) == "1 of 1"
    shown = await page.run(SHOWN)
    assert "after\na red f1 1.000 right" in shown and "before\ngreen f1 0.000 wrong" in shown
    await page.type("words", " tea")
    assert await page.run(PLACE) == "no such example" and await page.run(SHOWN) == ""

  looking(address, 390, look)


def test_the_keyboard_is_enough(address):
  async def look(page):
    await choose(page, "task", "movies")
    names = await page.run(
      "[...document.querySelectorAll('#browse select, #browse input')].map(e => e.labels[0].innerText.split('\\n')[0])"
    )
    assert names == ["Task", "Template", "Show", "With the words"]
    await page.run("document.getElementById('words').focus()")
    for _ in range(2):
      await page.press("Tab")
    assert await page.run("document.activeElement.id") == "next"
    await page.press("Enter")
    assert await page.run(PLACE) == "2 of 600"

  looking(address, 1280, look)
