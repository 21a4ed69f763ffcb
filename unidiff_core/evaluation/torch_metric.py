"""Any metric of torchmetrics, by class path: FID and KID of one modality, CLIP score of a pair."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.estimate import Estimate, Z
from unidiff_core.evaluation.metric import Drawn, Measured, Metric, Reference
from unidiff_core.foundation.argument import check_sizes
from unidiff_core.foundation.error import reason


class TorchMetric(Metric):
    """Any metric of torchmetrics, by class path, of one modality (FID, KID) or of several together (CLIP score).

    Of one modality it compares the samples with the real test samples, ``update(samples, real=...)``: FID, KID; or, if
    its `update` knows no ``real``, it sees the samples alone: inception score. Of several it is given them together,
    ``update(first, second)``: CLIP score, of the samples and what they were given.

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
        check_sizes(batch_size=batch_size)
        self.metric, self.modalities = metric, modalities
        self.name = name or type(metric).__name__
        self.batch_size = batch_size
        if self._compares or len(modalities) > 1:
            self.axes = {self.name: "quality" if self._compares else "agreement"}

    @property
    def _compares(self) -> bool:
        """Whether it compares samples of one modality with real ones."""
        return len(self.modalities) == 1 and "real" in inspect.signature(type(self.metric).update).parameters

    def fit(self, reference: Reference) -> None:
        """See the real samples, once if the metric can keep them; one at least, so that what it lacks is said early."""
        if unknown := [name for name in self.modalities if name not in reference.test.raws]:
            known = ", ".join(reference.test.raws)
            raise ValueError(f"{self.name} is about {', '.join(unknown)}, and no query is; they are about {known}")
        self._keeps_real = self._compares and hasattr(self.metric, "reset_real_features")
        if self._keeps_real:
            self.metric.reset_real_features = True
            self.metric.reset()
            self.metric.reset_real_features = False
            self._see_real(reference)
        elif not self._compares:
            self._update([reference.test.raws[name][:1] for name in self.modalities])

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """One number, without an interval unless the metric gives a deviation itself."""
        known = drawn.given | drawn.solved
        if not set(self.modalities) <= known.keys() or not set(self.modalities) & drawn.solved.keys():
            return Measured({})
        self.metric.reset()
        samples = [known[name] for name in self.modalities]
        if self._compares and not self._keeps_real:
            self._see_real(reference)
        self._update(samples, **({"real": False} if self._compares else {}))
        with self._naming(), torch.random.fork_rng(devices=[]):  # KID draws subsets
            torch.manual_seed(0)
            value = self.metric.compute()
        return Measured({self.name: self._estimate(value, len(samples[0]))})

    def _see_real(self, reference: Reference) -> None:
        self._update([reference.test.raws[self.modalities[0]]], real=True)

    def _update(self, columns: Sequence[Sequence[Raw]], **options: Any) -> None:
        for start in range(0, len(columns[0]), self.batch_size):
            parts = [[_array(raw) for raw in column[start : start + self.batch_size]] for column in columns]
            is_one = all(len({np.shape(row) for row in part}) == 1 for part in parts)  # else they do not stack
            for rows in [parts] if is_one else zip(*([[row] for row in part] for part in parts), strict=True):
                with self._naming():
                    self.metric.update(*map(_batch, rows), **options)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Say which metric it is that cannot be measured; what went wrong is between it and the samples."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.name} of {', '.join(self.modalities)}: {reason(error)}") from error

    def _estimate(self, value: Any, n: int) -> Estimate:
        """A number, or a mean and its deviation as KID gives it."""
        rows = [torch.as_tensor(row) for row in (value if isinstance(value, (tuple, list)) else [value])]
        if len(rows) > 2 or any(row.numel() != 1 for row in rows):
            raise ValueError(f"{self.name} gives {value}, which is neither a number nor a mean with its deviation")
        mean, deviation = float(rows[0]), float(rows[-1]) if len(rows) == 2 else math.nan  # as a single split's is
        if math.isnan(deviation):
            return Estimate(mean, None, None, n)
        return Estimate(mean, mean - Z * deviation, mean + Z * deviation, n)


def _array(raw: Raw) -> str | np.ndarray:
    return raw if isinstance(raw, str) else np.asarray(raw)


def _batch(rows: Sequence[Any]) -> Tensor | list[str]:
    """Strings as they are; arrays stacked, ``[b, h, w, c]`` with its channels first."""
    if isinstance(rows[0], str):
        return list(rows)
    values = torch.from_numpy(np.stack(rows))
    return values.permute(0, 3, 1, 2) if values.ndim == 4 else values
