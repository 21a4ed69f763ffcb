"""A moment of an application: the latents that it has come to. They are decoded for people alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from unidiff_core.codec.codec import Raw
from unidiff_core.foundation.latents import modality_of
from unidiff_core.foundation.page import FILM, write_html
from unidiff_core.system import UniDiffuser


@dataclass(frozen=True)
class Moment:
    """Where an application stands.

    Attributes:
        title: what made it: a timestep spec, or a place on a line.
        latents: full stream name → ``[b, ...]``, of every modality that has a value now.
        solved: modalities that are new in it.
    """

    title: str
    latents: dict[str, Tensor]
    solved: tuple[str, ...]

    def decode(self, model: UniDiffuser) -> dict[str, list[Raw]]:
        """What is new, as raw samples."""
        return model.decode(self.latents, self.solved)

    @property
    def new(self) -> dict[str, Tensor]:
        """Latents of what is new."""
        return {key: value for key, value in self.latents.items() if modality_of(key) in self.solved}


def film(model: UniDiffuser, moments: Sequence[Moment], folder: Path, *, title: str = "film") -> list[Path]:
    """Write what moments show: ``film.html``, a row a sample and a column a moment, and each codec's own strip.

    Args:
        model: whose codecs decode and show.
        moments: of one number of samples.
        folder: for the files.
        title: of the page.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decoded = [moment.decode(model) for moment in moments]
    rows = [
        [[_html(model, name, raws[i]) for name, raws in row.items()] for row in decoded]
        for i in range(len(next(iter(moments[0].latents.values()))))
    ]
    page = folder / FILM
    write_html(page, "film.html.j2", title=title, titles=[moment.title for moment in moments], rows=rows)
    files = [page]
    for name in model.modalities:
        strips = [row[name] for row in decoded if name in row]
        if strips:
            (folder / name).mkdir(parents=True, exist_ok=True)
            files += model.modalities[name].codec.film(list(zip(*strips, strict=True)), folder / name)
    return files


def _html(model: UniDiffuser, name: str, raw: Any) -> Markup:
    return Markup(model.modalities[name].codec.html(raw))
