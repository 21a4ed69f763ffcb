"""Pages: self-contained HTML, rendered from the templates in ``pages/``, which travel with the package."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.foundation.atomic import write_text

PAGES = Path(__file__).parent / "pages"


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


def shown(codec: Codec, raw: Raw) -> Markup:
    """How a sample looks on a page: the codec's own HTML."""
    return Markup(codec.html(raw))


def picture(path: Path) -> str:
    """A PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def link_to(target: Path, page: Path) -> str:
    """A link by which a page finds a file, also when both are moved together."""
    return quote(Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix())


@dataclass(frozen=True)
class Card:
    """A sample on a page: what was given, what came of it, and in what it is wrong; HTML by modality."""

    given: Mapping[str, Markup]
    solved: Mapping[str, Markup]
    faults: Sequence[str] = ()


def card(
    given: Mapping[str, Raw], solved: Mapping[str, Raw], codecs: Mapping[str, Codec], faults: Sequence[str] = ()
) -> Card:
    """Raw samples as a card.

    Args:
        given: modality → what was given.
        solved: modality → what was sampled.
        codecs: of both.
        faults: in what it is wrong.
    """
    above, below = ({name: shown(codecs[name], raw) for name, raw in side.items()} for side in (given, solved))
    return Card(above, below, faults)
