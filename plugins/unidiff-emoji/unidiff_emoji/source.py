"""OpenMoji's drawings as samples: a picture in colour, its line drawing, its name, and its name in other languages."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unidiff_core import Members, Source
from unidiff_emoji.drawing import ATTRIBUTION, GROUPS, SPLITS, Drawing, drawings, left_out, on_ground, render

WHITE: tuple[int, ...] = (255, 255, 255)


class EmojiSource(Source):
    """OpenMoji's drawings in colour and in line, with their names.

    A base is a drawing without its skin tone. A tenth of the bases are the split `bases`, with all their tones; of
    every fourth other base that takes a tone, one tone is the split `tones`; the rest is `train`. Members:
    ``picture.png``, ``line.png`` (the drawing's strokes in black on white), ``caption.txt``,
    ``caption_<language>.txt`` for each language, and ``json``: base, tone, group, code, and the attribution that the
    licence (CC BY-SA 4.0) asks for.

    Args:
        size: of the pictures, pixels a side.
        renderings: how often each training drawing is rendered: once as it is, then moved and scaled a little, on
            another ground, picture and line alike. Drawings that are held out are rendered once, as they are.
        shift: most that a rendering is moved, as a share of the side.
        shrink: most that a rendering is made smaller, as a share.
        grounds: RGB grounds of renderings but the first, drawn at random.
        languages: of further captions, as the package `emoji` names them: ``de``, ``fr``, ``ja``.
        groups: kinds of drawings that are used; all by default.
        drawings: at most so many of each split, evenly spread, for a quick try; all by default.
        seed: of what is drawn at random.
    """

    def __init__(
        self,
        size: int = 32,
        renderings: int = 4,
        shift: float = 0.06,
        shrink: float = 0.15,
        grounds: Sequence[Sequence[int]] = (WHITE,),
        languages: Sequence[str] = (),
        groups: Sequence[str] = GROUPS,
        drawings: int | None = None,
        seed: int = 0,
    ) -> None:
        import emoji

        if size < 16 or renderings < 1 or (drawings is not None and drawings < 1):
            raise ValueError(f"size is at least 16, renderings and drawings 1; not {size}, {renderings}, {drawings}")
        if not (0 <= shift <= 0.25 and 0 <= shrink <= 0.5):
            raise ValueError(f"shift is from 0 to 0.25 and shrink from 0 to 0.5, not {shift} and {shrink}")
        if unknown := set(languages) - set(emoji.LANGUAGES):
            raise ValueError(f"no names in {', '.join(unknown)}; there are {', '.join(emoji.LANGUAGES)}")
        if not groups or set(groups) - set(GROUPS):
            raise ValueError(f"groups are some of {', '.join(GROUPS)}, not {', '.join(groups) or 'none'}")
        self.groups = tuple(groups)
        self.size, self.renderings, self.shift, self.shrink = size, renderings, shift, shrink
        self.grounds = [tuple(ground) for ground in grounds]
        self.languages, self.drawings, self.seed = tuple(languages), drawings, seed

    @property
    def splits(self) -> dict[str, int]:
        """Samples of `train`, `tones` and `bases`."""
        return {split: len(self._drawings(split)) * self._renderings(split) for split in SPLITS}

    @property
    def left_out(self) -> dict[str, int]:
        """Why drawings are not used → how many."""
        return {
            **left_out(),
            "a group that is not asked for": sum(row.group not in self.groups for row in drawings()),
        }

    def samples(self, split: str) -> Iterator[Members]:
        """Drawing by drawing, each with all its renderings."""
        drawings = self._drawings(split)
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        for drawing in drawings:
            for rendering in range(self._renderings(split)):
                shift, scale, ground = (0.0, 0.0), 1.0, WHITE
                if rendering:
                    shift = tuple(rng.uniform(-self.shift, self.shift, 2))
                    scale = 1 - rng.uniform(0, self.shrink)
                    ground = self.grounds[rng.integers(len(self.grounds))]
                yield self._sample(drawing, rendering, shift, scale, ground)

    def _sample(
        self, drawing: Drawing, rendering: int, shift: tuple[float, float], scale: float, ground: Sequence[int]
    ) -> Members:
        labels = {"base": drawing.base, "tone": drawing.tone, "group": drawing.group, "code": drawing.code}
        members: dict[str, Any] = {"__key__": f"{drawing.code}_{rendering}"}
        for kind, behind in (("picture", ground), ("line", WHITE)):
            image = on_ground(render(drawing.code, kind, 4 * self.size), behind, self.size, shift, scale)
            members[f"{kind}.png"] = _png(image)
        members["caption.txt"] = drawing.caption.encode()
        for language in self.languages:
            if name := drawing.called(language):
                members[f"caption_{language}.txt"] = name.encode()
        return {**members, "json": json.dumps(labels | {"attribution": ATTRIBUTION}).encode()}

    def _drawings(self, split: str) -> list[Drawing]:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        rows = [row for row in drawings() if row.split == split and row.group in self.groups]
        num = min(self.drawings or len(rows), len(rows))
        return [rows[i] for i in np.linspace(0, len(rows) - 1, num).astype(int)]

    def _renderings(self, split: str) -> int:
        return self.renderings if split == "train" else 1


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()
