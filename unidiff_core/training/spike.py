"""Spikes of the loss: logged with the samples of their steps."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from unidiff_core.foundation.batch import Batch
from unidiff_core.training.finite import sample_names

FEWEST = 20
"""Steps that must have been seen before one of them can stand out."""
NORMAL = 1.4826
"""Standard deviations of a normal distribution per median absolute deviation."""
_LOG = logging.getLogger(__name__)


class LogSpikes(pl.Callback):
    """Logs a step whose loss stands out of those before it, with its samples: of the data, the first suspects.

    A loss is a spike above median + `factor` · 1.4826 · MAD of the last `window` steps, MAD being the median absolute
    deviation: spikes themselves move neither. Each process looks at its own loss and samples. Nothing of the
    training changes. `UniDiffuser` brings it along; put it among the callbacks for another rule.

    Args:
        factor: robust standard deviations.
        window: steps.
    """

    def __init__(self, factor: float = 10.0, window: int = 100) -> None:
        if factor <= 0 or window < FEWEST:
            raise ValueError(f"factor is above 0 and window at least {FEWEST}, not {factor:g} and {window}")
        self.factor = factor
        self.recent = deque[float](maxlen=window)
        """Losses of the last steps."""
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which samples take part."""
        if isinstance(batch, Batch):
            self._rows.append(batch.index if batch.rows is None else batch.rows)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        """Remember the micro-batch's loss; at the end of a step, compare their mean with those of the steps before."""
        if isinstance(outputs, Mapping) and "loss" in outputs:
            self._losses.append(outputs["loss"].detach())
        if trainer.fit_loop._should_accumulate():
            return
        loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        if math.isfinite(loss):  # else the step was skipped, and said so
            limit = self.limit
            if loss > limit:
                names = ", ".join(name for rows in self._rows for name in sample_names(trainer, rows))
                _LOG.warning(
                    "step %d: the loss of process %d is a spike, %.4g above %.4g; samples %s",
                    *(trainer.global_step - 1, trainer.global_rank, loss, limit, names),
                )
            self.recent.append(loss)
        self._losses, self._rows = [], []

    @property
    def limit(self) -> float:
        """The loss above which the next step is a spike; infinite while too few were seen."""
        if len(self.recent) < FEWEST:
            return math.inf
        middle = median(self.recent)
        spread = median(abs(loss - middle) for loss in self.recent)
        return middle + self.factor * NORMAL * max(spread, 1e-3 * abs(middle))
