"""Any metric of torchmetrics, by class path: FID and KID of one modality, CLIP score of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.metric import Drawn, Measured, Metric, Reference


class TorchMetric(Metric):
    """A metric of torchmetrics.

    Of one modality it compares the samples with the real test samples, ``update(samples, real=...)``: FID, KID. Of
    several it is given them together, ``update(first, second)``: CLIP score, of the samples and what they were given.

    Args:
        metric: the torchmetrics object, with its own options (a feature extractor, say).
        modalities: names of those that it is about; a query that neither solves nor is given one is left out, as is one
            that solves none of them.
        name: what tables call it; the class's name if not given.
        batch_size: samples at a time.
    """

    def __init__(
        self, metric: torchmetrics.Metric, modalities: list[str], name: str | None = None, batch_size: int = 64
    ) -> None:
        if not modalities:
            raise ValueError("a TorchMetric is about at least one modality")
        self.metric, self.modalities = metric, modalities
        self.name = name or type(metric).__name__
        self.batch_size = batch_size

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """One number, without an interval unless the metric gives a deviation itself."""
        known = drawn.given | drawn.solved
        if not set(self.modalities) <= known.keys() or not set(self.modalities) & drawn.solved.keys():
            return Measured({})
        self.metric.reset()
        samples = [known[name] for name in self.modalities]
        if len(samples) == 1:
            self._update([reference.test.raws[self.modalities[0]]], real=True)
            self._update(samples, real=False)
        else:
            self._update(samples)
        return Measured({self.name: _estimate(self.metric.compute(), len(samples[0]))})

    def _update(self, columns: Sequence[Sequence[Raw]], **options: Any) -> None:
        for start in range(0, len(columns[0]), self.batch_size):
            self.metric.update(*(_batch(column[start : start + self.batch_size]) for column in columns), **options)


def _estimate(value: Any, n: int) -> Estimate:
    """A number, or a mean and its deviation as KID gives it."""
    rows = [float(row) for row in (value if isinstance(value, (tuple, list)) else [value])]
    if len(rows) == 2:
        return Estimate(rows[0], rows[0] - 1.96 * rows[1], rows[0] + 1.96 * rows[1], n)
    return Estimate(rows[0], None, None, n)


def _batch(raws: Sequence[Raw]) -> Tensor | list[str]:
    """Strings as they are; arrays stacked, ``[b, h, w, c]`` with its channels first."""
    if isinstance(raws[0], str):
        return list(raws)
    rows = np.stack([np.asarray(raw) for raw in raws])
    values = torch.from_numpy(rows)
    return values.permute(0, 3, 1, 2) if values.ndim == 4 else values
