"""`unidiffuser recipe`, and that the recipes, and the templates of pages, travel in the wheel."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from unidiff_core.cli.main import main
from unidiff_core.cli.recipe import recipe_folder
from unidiff_core.foundation.page import PAGES

ROOT = Path(__file__).parents[3]
RECIPES = sorted(path.name for path in (ROOT / "recipes").iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main(["recipe", *arguments])
    assert exit.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_recipes_are_listed(capsys):
    main(["recipe"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.partition(":")[0] for row in rows] == RECIPES
    assert all(".yaml" in row for row in rows)


def test_a_recipe_is_copied_to_where_the_commands_name_it(capsys):
    main(["recipe", "digits"])
    assert "recipes/digits: " in capsys.readouterr().out
    source = ROOT / "recipes/digits"
    assert {p.name: p.read_text() for p in Path("recipes/digits").iterdir()} == {
        p.name: p.read_text() for p in source.iterdir()
    }


def test_nothing_is_replaced_and_names_are_known(capsys):
    Path("recipes/digits").mkdir(parents=True)
    Path("recipes/digits/fit.yaml").write_text("mine")
    assert "there already: 1: recipes/digits/fit.yaml" in refused(capsys, "digits")
    assert [path.name for path in Path("recipes/digits").iterdir()] == ["fit.yaml"]
    assert f"there is no recipe 'cats'; there are {', '.join(RECIPES)}" in refused(capsys, "cats")


def test_an_installed_package_has_its_own(tmp_path):
    (tmp_path / "unidiff_core" / "recipes").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    assert recipe_folder(tmp_path / "unidiff_core") == tmp_path / "unidiff_core" / "recipes"
    with pytest.raises(ValueError, match="install the package again"):
        recipe_folder(tmp_path / "elsewhere" / "unidiff_core")


def test_the_wheel_is_told_to_hold_the_recipes():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "recipes" in wheel["only-include"] and wheel["sources"]["recipes"] == "unidiff_core/recipes"


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
def test_the_wheel_holds_the_recipes_and_the_templates_of_pages(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*") if p.is_file()}
    assert {f"unidiff_core/{name}" for name in expected} <= set(names)
    templates = {path.relative_to(ROOT).as_posix() for path in PAGES.iterdir()}
    assert "unidiff_core/pages/base.html.j2" in templates and templates <= set(names)
