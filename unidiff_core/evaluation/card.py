"""An evaluation on the model card: samples that nobody picked, and the table."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.evaluation.report import MARKS, counted, table_rows
from unidiff_core.evaluation.run import Evaluation
from unidiff_core.serialization.card import SAMPLES, Measured

HEAD = ("query", "metric", "value", "95 % interval", "n", "criterion")
SHOWN = 4
"""Samples of a query: the first of the report's."""
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}


def measured_of(evaluation: Evaluation, codecs: Mapping[str, Codec], folder: Path) -> Measured:
    """What a card says of an evaluation.

    Args:
        evaluation: of the model.
        codecs: modality → codec, which writes samples as files.
        folder: the model directory; samples of former evaluations go from it.
    """
    rows = []
    for row in table_rows(evaluation):
        mark = f"{MARKS[row.verdict]} {row.criterion}" if row.verdict else ""
        cells = (row.subject, row.metric, f"{row.estimate.value:.3f}", row.interval, str(row.estimate.n), mark)
        rows.append([cell.replace("|", "\\|") for cell in cells])
    shutil.rmtree(folder / SAMPLES, ignore_errors=True)
    samples = {}
    for number, (query, examples) in enumerate(evaluation.examples.items()):
        place = folder / SAMPLES / f"{number}_{re.sub(r'[^0-9A-Za-z]+', '_', query)}"
        lines = []
        for i, example in enumerate(examples[:SHOWN]):
            sides = [_shown(part, codecs, place, i, folder) for part in (example.given, example.solved)]
            lines.append("* " + " → ".join(filter(None, sides)))
        samples[query] = lines
    verdict = f"{counted(evaluation)}." if evaluation.settings.criteria else ""
    return Measured(HEAD, rows, verdict, samples)


def _shown(raws: Mapping[str, Raw], codecs: Mapping[str, Codec], place: Path, index: int, folder: Path) -> str:
    return ", ".join(_one(name, raw, codecs[name], place, index, folder) for name, raw in raws.items())


def _one(name: str, raw: Raw, codec: Codec, place: Path, index: int, folder: Path) -> str:
    """One sample in Markdown: a text as it is, anything else as a file."""
    if isinstance(raw, str):
        return f"“{raw}”"
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{name}_{index}.{codec.extension}"
    path.write_bytes(codec.to_bytes(raw))
    link = path.relative_to(folder).as_posix()
    return f'<img src="{link}" width="96">' if path.suffix in PICTURES else f"[{name}]({link})"
