"""A moment of an application: the latents that it has come to. They are decoded for people alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from unidiff_core.codec.codec import Raw
from unidiff_core.foundation.latents import modality_of
from unidiff_core.system import UniDiffuser

PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px sans-serif }} td, th {{ padding: 4px 8px; text-align: center; max-width: 220px }}</style>
<h1>{title}</h1><table>{rows}</table>
"""


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
    rows = ["<tr>" + "".join(f"<th>{escape(moment.title)}</th>" for moment in moments) + "</tr>"]
    for i in range(len(next(iter(moments[0].latents.values())))):
        cells = ("<br>".join(_html(model, name, raws[i]) for name, raws in row.items()) for row in decoded)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    page = folder / "film.html"
    page.write_text(PAGE.format(title=escape(title), rows="\n".join(rows)), encoding="utf-8")
    files = [page]
    for name in model.modalities:
        strips = [row[name] for row in decoded if name in row]
        if strips:
            (folder / name).mkdir(parents=True, exist_ok=True)
            files += model.modalities[name].codec.film(list(zip(*strips, strict=True)), folder / name)
    return files


def _html(model: UniDiffuser, name: str, raw: Any) -> str:
    return str(model.modalities[name].codec.html(raw))
