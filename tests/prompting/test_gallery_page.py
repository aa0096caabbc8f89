"""The gallery's web page holds every dataset and template, and needs nothing but itself."""

import html.parser
from pathlib import Path

import pytest

from flan_jax.prompting import Draw, read_dataset
from flan_jax.prompting.gallery_page import gallery_page

TEMPLATES = Path(__file__).parents[2] / "templates"
FILES = ("entailment/cb", "translation/wmt14_enfr", "coreference/winogrande", "maths/asdiv")
VOID = ("meta", "input", "br")


class Page(html.parser.HTMLParser):
  """What stands in a page: its tags with their attributes, and the text of each `pre`."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.blocks: list[str] = []
    self._open: list[str] = []
    self.feed(text)
    self.close()
    assert not self._open, f"never closed: {self._open}"

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self._open.append(tag)
    if tag == "pre":
      self.blocks.append("")

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if "pre" in self._open:
      self.blocks[-1] += data

  def attributes(self, name: str) -> list[str]:
    return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def specs():
  return [read_dataset(TEMPLATES / f"{name}.yaml") for name in FILES]


@pytest.fixture(scope="module")
def page(specs):
  return Page(gallery_page(specs))


def test_every_dataset_and_template_has_a_place_of_its_own(specs, page):
  ids = page.attributes("id")
  assert len(set(ids)) == len(ids)
  assert set(ids) == {spec.name for spec in specs} | {
    f"{spec.name}.{template.name}" for spec in specs for template in spec.templates
  }


def test_texts_stand_as_their_author_wrote_them_beside_a_rendering(specs, page):
  (spec,) = [spec for spec in specs if spec.name == "cb"]
  record = spec.derive_record(spec.record)
  for template in spec.templates:
    at = page.blocks.index(template.texts[0].input)
    drawn = template.render(record, Draw("gallery", 0, spec.name, template.name, 0))
    assert page.blocks[at + 1 : at + 4] == [
      template.texts[0].target,
      drawn.turns[0].input,
      drawn.turns[0].target,
    ]


def test_the_page_needs_no_other_file(page):
  assert page.attributes("src") == []
  links = [attrs["href"] for tag, attrs in page.tags if "href" in attrs and tag != "a"]
  assert links == [] and not any(tag in ("link", "iframe", "img") for tag, _ in page.tags)


def test_every_entry_of_the_index_leads_to_a_dataset(specs, page):
  entries = [href[1:] for href in page.attributes("href") if href.startswith("#")]
  assert sorted(entries) == sorted(spec.name for spec in specs)


def test_markup_in_a_file_stays_text(tmp_path):
  text = (TEMPLATES / "maths" / "asdiv.yaml").read_text()
  text = text.replace("In your head, please:", "{{<script>alert(1)</script>}} & so on:")
  path = tmp_path / "maths" / "asdiv.yaml"
  path.parent.mkdir()
  path.write_text(text.replace("url: https:", "url: javascript:"))
  page = Page(gallery_page([read_dataset(path)]))
  assert "{{<script>alert(1)</script>}} & so on: {problem}" in page.blocks
  assert sum(tag == "script" for tag, _ in page.tags) == 1
  assert not any(href.startswith("javascript") for href in page.attributes("href"))


def test_a_page_of_one_dataset_is_open(specs):
  assert any(
    "open" in attrs for tag, attrs in Page(gallery_page(specs[:1])).tags if tag == "details"
  )
  assert not any("open" in attrs for tag, attrs in Page(gallery_page(specs)).tags)
