"""What came of a request, as HTML: each sample as its codec shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from unidiff_core.cli.page.play import Frame, View
from unidiff_core.codec.codec import Codec

STYLE = """
.samples { display: flex; flex-wrap: wrap; gap: 12px; }
.samples .sample, .film td { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px; }
.samples .sample { max-width: 240px; }
.samples img, .film img { margin: 0; max-width: 100%; }
.samples audio { width: 220px; }
.film { overflow-x: auto; }
.film th { font-weight: normal; text-align: left; padding: 4px 8px; white-space: nowrap; }
.film td { vertical-align: top; max-width: 240px; min-width: 110px; }
.state { color: var(--body-text-color-subdued); margin: 0 0 8px; }
.state progress { width: 100%; height: 6px; accent-color: var(--color-accent); }
.call .wrap > .error, .call button[aria-label="Clear"] { display: none; }
.call .codemirror-wrapper, .call .cm-editor, .call .cm-scroller { min-height: 0 !important; }
"""


def html_of(view: View, codecs: Mapping[str, Codec]) -> str:
    """A view as HTML; a bar above what is not done."""
    if view.is_done:
        return f"<div data-done='1'>{frames_html(view.frames, codecs)}</div>"
    bar = f"<progress max='{view.steps}' value='{view.step}'></progress>"
    told = f"step {view.step} of {view.steps}: estimates of what the samples will be"
    return f"<div><div class='state'>{told}{bar}</div>{frames_html(view.frames, codecs)}</div>"


def frames_html(frames: Sequence[Frame], codecs: Mapping[str, Codec]) -> str:
    """Samples side by side if there is one frame; else a row for each sample and a column for each frame."""
    if not frames:
        return ""
    rows = [_cells(frame, codecs) for frame in frames]
    if len(frames) == 1:
        return f"<div class='samples'>{''.join(f'<div class=sample>{cell}</div>' for cell in rows[0])}</div>"
    heads = "".join(f"<th>{escape(frame.title)}</th>" for frame in frames)
    lines = ("".join(f"<td>{row[i] if i < len(row) else ''}</td>" for row in rows) for i in range(max(map(len, rows))))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class='film'><table><tr>{heads}</tr>{body}</table></div>"


def _cells(frame: Frame, codecs: Mapping[str, Codec]) -> list[str]:
    shown = [[f"<div>{codecs[name].html(raw)}</div>" for raw in raws] for name, raws in frame.raws.items()]
    return ["".join(cell) for cell in zip(*shown, strict=True)]
