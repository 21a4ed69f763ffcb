"""``unidiffuser new-codec``: a small distribution with a codec that works, to begin from."""

from __future__ import annotations

import keyword
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from unidiff_core.cli.option import PlainParser

DESCRIPTION = """Write a small distribution with a codec that works, to begin your own from.

It has a codec for time series, a source of samples, tests that check the codec's contract, and a recipe from shards to
samples. NAME is what the modality is called: small letters, digits and underscores.

  unidiffuser new-codec points                  the folder unidiff-points, with the package unidiff_points
  unidiffuser new-codec points --out plugins/points
"""
TEMPLATE = Path(__file__).parents[1] / "template" / "codec"
ENDING = ".in"


def run(argv: Sequence[str]) -> None:
    """Write the distribution that `argv` names, and print what to do next.

    Raises:
        ValueError: if the name cannot be one, is taken, or the folder is there already.
    """
    parser = PlainParser("new-codec", DESCRIPTION)
    parser.add_argument("name", metavar="NAME", help="of the modality, as in points or sea_level")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to make (default: unidiff-NAME)")
    options = parser.parse_args(list(argv))
    check_name(options.name)
    folder = options.out or Path(_distribution(options.name))
    write(options.name, folder)
    print(f"{folder}: {_class(options.name)}Codec of {_distribution(options.name)}. Next:\n")
    print(f'  pip install --editable "{folder if folder.is_absolute() else f"./{folder}"}[dev]"')
    print(f"  python -m pytest {folder}\n  unidiffuser list codecs")


def check_name(name: str) -> None:
    """Check that a codec can have this name.

    Raises:
        ValueError: if it is no identifier of small letters, or its package or class is there already.
    """
    from unidiff_core.foundation.plugin import load_plugins

    if not name.isidentifier() or not name.isascii() or name != name.lower() or not name[0].isalpha():
        raise ValueError(f"{name!r} cannot be a modality's name: take small letters, digits and _, as in sea_level")
    if keyword.iskeyword(name):
        raise ValueError(f"{name!r} is a word of Python; choose another name")
    if find_spec(f"unidiff_{name}"):
        raise ValueError(f"the package unidiff_{name} is there already; choose another name")
    for cls in (f"{_class(name)}Codec", f"{_class(name)}Source"):
        if known := load_plugins().registrations.get(cls):
            raise ValueError(f"{cls} is already registered by {known.distribution}; choose another name")


def write(name: str, folder: Path) -> None:
    """Write the template's files under another name: beside the folder, then renamed.

    Raises:
        ValueError: if the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; give another folder with --out")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for source in sorted(TEMPLATE.rglob(f"*{ENDING}")):
        path = partial / renamed(str(source.relative_to(TEMPLATE)).removesuffix(ENDING), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(renamed(source.read_text(encoding="utf-8"), name), encoding="utf-8")
    partial.rename(folder)


def renamed(text: str, name: str) -> str:
    """A text of the template, whose modality is called ``template``, for a modality called `name`."""
    text = text.replace("unidiff-template", _distribution(name)).replace("Template", _class(name))
    return text.replace("template", name)


def _distribution(name: str) -> str:
    return f"unidiff-{name.replace('_', '-')}"


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
