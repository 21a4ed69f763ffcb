"""The statistics of a table's numbers, for `NumbersCodec`."""

from __future__ import annotations

import json
from pathlib import Path

import pytorch_lightning as pl

from unidiff_codecs.table import NUMBERS, TableSource, moments
from unidiff_core import OnePass


class TableData(pl.LightningDataModule):
    """The rows of a table, for the training of `NumbersCodec`'s statistics.

    Args:
        source: of its rows; `train` alone is read.
    """

    def __init__(self, source: TableSource) -> None:
        super().__init__()
        self.source = source

    def setup(self, stage: str) -> None:
        """Nothing: the source reads when it is asked."""


class NumbersTraining(OnePass):
    """Mean and standard deviation of each column of numbers, over the training rows."""

    def export(self, folder: Path, data: TableData) -> dict[str, float]:
        """Write ``numbers.json``."""
        found = moments(data.source)
        (folder / NUMBERS).write_text(json.dumps(found, indent=1) + "\n")
        return {"columns": float(len(found)), "rows": float(data.source.splits["train"])}
