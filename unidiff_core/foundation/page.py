"""Pages: self-contained HTML, rendered from the templates in ``unidiff_core/pages/``, which travel with the package."""

from __future__ import annotations

import base64
import os
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unidiff_core.foundation.atomic import write_text

PAGES = Path(__file__).parents[1] / "pages"
FILM = "film.html"
"""The page of an application's moments, which an evaluation's page beside or above it shows too."""
_FILM = re.compile(r'<section class="film">.*</section>', re.DOTALL)


@cache
def _environment() -> Environment:
    """Whatever a page is given is escaped, but for `Markup`; a name that it lacks is an error and not a blank."""
    return Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> Markup:
    """A template of ``pages/`` with its values, as HTML."""
    return Markup(_environment().get_template(template).render(**values))


def write_html(path: Path, template: str, **values: Any) -> None:
    """Write a page, whole or not at all. It loads nothing and runs no script: its own policy forbids it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(template, **values))


def picture(path: Path) -> str:
    """A PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def film_of(page: Path) -> Markup:
    """What a `FILM` shows, for another page; nothing of a file that is none."""
    found = _FILM.search(page.read_text(encoding="utf-8", errors="replace"))
    return Markup(found[0] if found else "")


def link_to(target: Path, page: Path) -> str:
    """A link by which a page finds a file, also when both are moved together."""
    return quote(Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix())
