"""A launch obeys every setting that it accepts, and refuses the others with the nearest valid name."""

import pytest

from flan_jax.errors import ConfigError
from flan_jax.jobs import launch as launching


def brew(beans="arabica", kettle=None):
  return f"{beans} in {kettle}"


def steel(litres=1.0):
  return f"{litres} l of steel"


def glass(litres=1.0):
  return f"{litres} l of glass"


@pytest.fixture(autouse=True, scope="module")
def registered():
  for function in (brew, steel, glass):
    if function.__name__ not in launching.CONFIGURABLES:
      launching.configurable(function, job=function is brew)


@pytest.fixture
def recipe(tmp_path):
  (tmp_path / "kettle.gin").write_text("KETTLE = @steel()\nsteel.litres = %LITRES\nLITRES = 2.0\n")
  path = tmp_path / "recipe.gin"
  path.write_text(f"include '{tmp_path}/kettle.gin'\nbrew.kettle = %KETTLE\n")
  return path


def test_files_and_bindings_reach_the_job_and_the_command_line_wins(recipe):
  assert launching.launch("brew", [str(recipe)], []) == "arabica in 2.0 l of steel"
  assert launching.launch("brew", [str(recipe)], ["LITRES=3.5"]) == "arabica in 3.5 l of steel"
  assert "steel.litres = %LITRES" in launching.operative_config()


def test_a_value_that_lost_its_quotes_in_the_shell_is_a_string(recipe):
  assert launching.launch("brew", [str(recipe)], ["brew.beans=robusta blend"]).startswith(
    "robusta blend"
  )


def test_a_later_file_may_choose_another_part(recipe, tmp_path):
  other = tmp_path / "other.gin"
  other.write_text("KETTLE = @glass()\n")
  assert launching.launch("brew", [str(recipe), str(other)], []) == "arabica in 1.0 l of glass"


@pytest.mark.parametrize(
  ("binding", "complaint"),
  [
    ("brew.bean='x'", r"unknown parameter of brew 'bean'. Did you mean 'beans'\?"),
    ("brw.beans='x'", r"unknown configurable 'brw'. Did you mean 'brew'\?"),
    (
      "LITERS=4",
      r"nothing in this launch of 'brew' uses the macro 'LITERS'. Did you mean 'LITRES'\?",
    ),
    ("glass.litres=4", r"glass.litres is set, but this launch of 'brew' never calls 'glass'"),
    ("brew.kettle=@stel()", r"unknown configurable 'stel'. Did you mean 'steel'\?"),
    ("brew.kettle=%KETTEL", r"unknown macro 'KETTEL'. Did you mean 'KETTLE'\?"),
    ("LITRES", r"--gin.LITRES has no value"),
  ],
)
def test_what_would_be_ignored_is_refused(recipe, binding, complaint):
  with pytest.raises(ConfigError, match=complaint):
    launching.launch("brew", [str(recipe)], [binding])


def test_mistakes_in_a_file_are_told_with_file_and_line(tmp_path):
  path = tmp_path / "bad.gin"
  path.write_text("brew.beans = 'x'\nbrew.kettel = 1\n")
  with pytest.raises(ConfigError, match=r"bad.gin:2: unknown parameter of brew 'kettel'"):
    launching.launch("brew", [str(path)], [])
  path.write_text("brew.beans = = 'x'\n")
  with pytest.raises(ConfigError, match=r"bad.gin:1: not gin syntax"):
    launching.launch("brew", [str(path)], [])


def test_a_file_that_is_not_there_is_named():
  with pytest.raises(ConfigError, match="no gin file 'nowhere.gin'"):
    launching.launch("brew", ["nowhere.gin"], [])
