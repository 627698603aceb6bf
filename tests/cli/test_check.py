"""taskarith check and merge --recipe."""

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from taskarith_fast.cli import app
from tests.merging.stream_cases import make_models, write_models

RECIPE = """
base = "m0.safetensors"
finetuned = ["m1.safetensors", "m2.safetensors"]
output = "merged.safetensors"
method = "ties"
parameters = {density = 0.3}
"""


@pytest.fixture
def recipe(tmp_path):
    write_models(make_models([(30, 20), (5,)], 2), tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path / "r.toml"


def test_a_sound_recipe_is_foretold_and_merged(recipe):
    done = CliRunner().invoke(app, ["check", str(recipe)])
    assert done.exit_code == 0 and "density=0.3" in done.output and "time: about" in done.output
    done = CliRunner().invoke(app, ["merge", "--recipe", str(recipe)])
    assert done.exit_code == 0 and "4 tensors, ties density=0.3" in done.output
    assert len(load_file(recipe.parent / "merged.safetensors")) == 4


def test_every_problem_of_a_recipe_is_printed(recipe):
    recipe.write_text(RECIPE.replace("0.3", "3").replace("m2", "nowhere").replace("merged.safetensors", "x.bin"))
    done = CliRunner().invoke(app, ["check", str(recipe)])
    assert done.exit_code == 2 and done.output.count("problem: ") == 3
