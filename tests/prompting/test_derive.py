"""A derive function is found by its name, and a change of its code is noticed."""

import importlib
import sys
import textwrap

import pytest

from flan_jax.errors import TemplateError
from flan_jax.prompting.derive import derive_function, source_of

MODULE = """
  import re
  from {package}.shared import clean

  MARKS = frozenset(["?", "!", "."])
  SPACE = re.compile(" +")
  UNUSED = 1

  def reviews(record):
    return [_kept(text) for text in record["texts"]]

  def _kept(text):
    return SPACE.sub(" ", clean(text)).strip("".join(sorted(MARKS)))

  def other(record):
    return None
"""
SHARED = """
  def clean(text):
    return text.lower()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Writes a package of two modules and returns its name; each call makes a new one."""
  monkeypatch.syspath_prepend(tmp_path)
  made = []

  def make(module: str = MODULE, shared: str = SHARED) -> str:
    name = f"tried_{len(made)}"
    made.append(name)
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "shared.py").write_text(textwrap.dedent(shared))
    (tmp_path / name / "fields.py").write_text(textwrap.dedent(module).format(package=name))
    importlib.invalidate_caches()
    return name

  yield make
  derive_function.cache_clear()
  for name in [name for name in sys.modules if name.partition(".")[0] in made]:
    del sys.modules[name]


def source(package: str) -> str:
  return source_of(derive_function(f"{package}.fields:reviews")).replace(package, "PACKAGE")


def test_the_function_is_found(package):
  function = derive_function(f"{package()}.fields:reviews")
  assert function({"texts": ["So  good!"]}) == ["so good"]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("{}.fields:review", "has no function 'review'; did you mean 'reviews'"),
    ("{}.field:reviews", r"no module \w+\.field; did you mean 'fields'"),
    ("{}.fields:MARKS", "has no function 'MARKS'"),
    ("{}.fields.reviews", "should be 'module:function'"),
    ("{}.fields:", "should be 'module:function'"),
  ],
)
def test_a_wrong_name_is_told_the_nearest(package, name, message):
  with pytest.raises(TemplateError, match=message):
    derive_function(name.format(package()))


def test_a_module_that_cannot_be_imported_says_why(package):
  with pytest.raises(TemplateError, match="importing .* failed: ValueError: broken"):
    derive_function(f"{package('raise ValueError(' + repr('broken') + ')')}.fields:reviews")
  with pytest.raises(TemplateError, match="importing .* failed: No module named 'not_there'"):
    derive_function(f"{package('import not_there')}.fields:reviews")


def test_the_same_code_has_the_same_source(package):
  assert source(package()) == source(package())


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('record["texts"]', 'record["text"]'),
    ("return SPACE", "return  SPACE"),
    ('"?", "!"', '"?"'),
    ('" +"', '" *"'),
  ],
  ids=["itself", "a function it calls", "a set it uses", "a pattern it uses"],
)
def test_a_change_in_what_the_function_uses_is_noticed(package, old, new):
  assert source(package()) != source(package(MODULE.replace(old, new)))


def test_a_change_in_a_shared_module_is_noticed(package):
  assert source(package()) != source(package(shared=SHARED.replace("lower", "upper")))


@pytest.mark.parametrize(("old", "new"), [("UNUSED = 1", "UNUSED = 2"), ("None", "{{}}")])
def test_a_change_elsewhere_is_not(package, old, new):
  assert source(package()) == source(package(MODULE.replace(old, new)))


TABLES = """
  import dataclasses

  import numpy

  @dataclasses.dataclass
  class Limits:
    longest: int

  class Kept:
    _fingerprint = "a1"

  LIMITS, TABLE, KEPT, TYPES = Limits(3), numpy.arange(3), Kept(), [Limits]

  def reviews(record):
    return [LIMITS, TABLE, KEPT, TYPES]
"""


@pytest.mark.parametrize(
  ("old", "new"), [("Limits(3)", "Limits(4)"), ("arange(3)", "zeros(3)"), ("a1", "b2")]
)
def test_a_change_in_a_dataclass_an_array_or_a_fingerprinted_dataset_is_noticed(package, old, new):
  before, same = source(package(TABLES)), source(package(TABLES))
  assert before == same != source(package(TABLES.replace(old, new)))
