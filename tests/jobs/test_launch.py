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


CALLS = []


def roast(beans="arabica", kettle=None):
  phase = launching.current_phase()
  CALLS.append((phase.name, phase.before, beans, kettle))
  return beans != "burnt"


@pytest.fixture(autouse=True, scope="module")
def registered():
  for function in (brew, roast, steel, glass):
    if function.__name__ not in launching.CONFIGURABLES:
      launching.configurable(function, job=function in (brew, roast), phased=function is roast)


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


@pytest.fixture
def phased(recipe):
  """A recipe of two phases, and what its job was called with."""
  CALLS.clear()
  recipe.write_text(
    recipe.read_text().replace("brew.", "roast.")
    + 'PHASES = ("light", "dark")\ndark/LITRES = 5.0\nlight/roast.beans = "robusta"\n'
  )
  return recipe, CALLS


def test_each_phase_has_its_own_settings_also_behind_a_macro(phased):
  recipe, seen = phased
  assert launching.launch("roast", [str(recipe)], ["dark/roast.beans=java"]) is True
  assert seen == [
    ("light", "", "robusta", "2.0 l of steel"),
    ("dark", "light", "java", "5.0 l of steel"),
  ]
  assert launching.current_phase().name == ""


def test_a_phase_that_was_stopped_is_the_last(phased):
  recipe, seen = phased
  assert launching.launch("roast", [str(recipe)], ["light/roast.beans=burnt"]) is False
  assert [name for name, *_ in seen] == ["light"]


def test_fewer_phases_may_be_chosen(phased):
  recipe, seen = phased
  launching.launch("roast", [str(recipe)], ['PHASES=("dark",)'])
  assert seen == [("dark", "", "arabica", "5.0 l of steel")]


@pytest.mark.parametrize(
  ("bindings", "complaint"),
  [
    (["drak/LITRES=1"], r"drak/LITRES is for a phase .* Did you mean 'dark'\?"),
    (["light/LITRES=1", "LITRES=2"], r"every phase has a LITRES of its own.*--gin.light/LITRES"),
    (['PHASES=("dark",)', "light/LITRES=1.0"], "light/LITRES is for a phase that this launch"),
    (["PHASES=dark"], "PHASES is 'dark'; it must be a list of names"),
    (['PHASES=("a", "a")'], "names a phase twice"),
    (["dark/roast.bean=x"], r"unknown parameter of roast 'bean'"),
  ],
)
def test_a_setting_that_no_phase_would_see_is_refused(phased, bindings, complaint):
  with pytest.raises(ConfigError, match=complaint):
    launching.launch("roast", [str(phased[0])], bindings)


def test_templates_are_shown_on_real_records_or_where_those_take_hours_on_the_file_s_own(flan_jax):
  own = flan_jax("templates", "tickets", "--module", "tasks.py").stdout
  assert "Ticket" in own and "`flan-jax mixtures" not in own
  far = flan_jax("templates", "rte", "--template", "does_it_follow").stdout
  assert "rte.yaml; `flan-jax mixtures rte` prepares real ones" in far and "> " in far
