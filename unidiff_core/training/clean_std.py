"""Measuring, at each validation, how far clean estimates are from clean values: what the solver ``analytic`` needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import pytorch_lightning as pl

from unidiff_core.foundation.batch import Batch
from unidiff_core.process.clean_std import CleanStd
from unidiff_core.training.ema import EMA


class MeasureCleanStd(pl.Callback):
    """Measures at the end of each validation, with the average of the weights if there is one: one more pass over the
    validation data. The model directory that is written then keeps it as ``clean_std.yaml``.

    Args:
        num_bins: equal stretches of time, over each of which an error is averaged.
    """

    def __init__(self, num_bins: int = 32) -> None:
        if num_bins < 1:
            raise ValueError(f"num_bins is at least 1, not {num_bins}")
        self.num_bins = num_bins
        self._measured: dict[str, list[list[float]]] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure."""
        if trainer.sanity_checking:
            return
        average = next((row for row in trainer.callbacks if isinstance(row, EMA) and row.average), None)  # type: ignore[attr-defined]
        with average.applied(pl_module) if average else nullcontext(), trainer.precision_plugin.val_step_context():
            pl_module.measure_clean_std(
                _validation_batches(trainer),
                num_bins=self.num_bins,
                total=lambda sums: trainer.strategy.reduce(sums, None, "sum"),
            )
        self._measured = {key: [[*row] for row in table.points] for key, table in pl_module.clean_std.items()}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Go on from what the checkpoint holds."""
        if self._measured:
            pl_module.clean_std = {key: CleanStd([(t, v) for t, v in rows]) for key, rows in self._measured.items()}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._measured = state_dict["measured"]


def _validation_batches(trainer: pl.Trainer) -> Iterator[Batch]:
    loaders = trainer.val_dataloaders
    for loader, num in zip(loaders if isinstance(loaders, list) else [loaders], trainer.num_val_batches, strict=True):
        for batch in islice(iter(loader), None if num == float("inf") else int(num)):
            yield trainer.strategy.batch_to_device(batch)
