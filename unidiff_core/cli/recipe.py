"""``unidiffuser recipe``: lists the recipes that travel with the package, and copies one into the current folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from unidiff_core.cli.option import PlainParser, shown
from unidiff_core.foundation.error import meant

DESCRIPTION = """List the recipes, or copy one into the current folder: its files at recipes/NAME.

A recipe that is another one's beginning says so in its files. Nothing that is there already is replaced.

  unidiffuser recipe                 which there are
  unidiffuser recipe digits          copies recipes/digits
"""
PACKAGE = Path(__file__).parents[1]


def run(argv: Sequence[str]) -> None:
    """List the recipes, or copy the one that `argv` names.

    Raises:
        ValueError: if there is no such recipe, or a file of it is there already.
    """
    parser = PlainParser("recipe", DESCRIPTION)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the recipe to copy; lists them if left out")
    name = parser.parse_args(list(argv)).name
    known = recipes(recipe_folder())
    if name is None:
        print("\n".join(f"{row}: {', '.join(file.name for file in files)}" for row, files in known.items()))
    elif name not in known:
        rest = meant(name, known, then=f"there are {', '.join(known)}")
        raise ValueError(f"there is no recipe {name!r}{rest}")
    else:
        copy(known[name], Path("recipes") / name)


def recipe_folder(package: Path = PACKAGE) -> Path:
    """Where the recipes are: in the installed package, or beside it in a checkout.

    Raises:
        ValueError: if they are at neither place.
    """
    places = [package / "recipes", package.parent / "recipes"]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise ValueError(f"the recipes are not there, neither at {places[0]} nor at {places[1]}; install the package again")


def recipes(folder: Path) -> dict[str, list[Path]]:
    """Name → its files."""
    places = [place for place in sorted(folder.iterdir()) if place.is_dir()]
    rows = {place.name: sorted(file for file in place.iterdir() if file.is_file()) for place in places}
    return {name: files for name, files in rows.items() if files}


def copy(files: Sequence[Path], target: Path) -> None:
    """Copy a recipe's files, and say where to.

    Raises:
        ValueError: if one of them is there already; names it.
    """
    if there := [target / file.name for file in files if (target / file.name).exists()]:
        raise ValueError(f"there already: {shown(there)}; move it away, or work in another folder")
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, target)
    print(f"{target}: {shown([file.name for file in files])}")
