"""The metric: what is measured of samples, as numbers with intervals. One file each; plugins register their own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.data.salvage import read_shards
from unidiff_core.evaluation.estimate import Estimate, share

Raws = dict[str, list[Raw]]


@dataclass(frozen=True)
class Samples:
    """Real samples with their labels."""

    raws: Raws
    """Modality → samples; None where a sample lacks the modality."""
    labels: dict[str, list[str]]
    """Label name → what the data records of each sample."""

    def __len__(self) -> int:
        return len(next(iter(self.raws.values()), []))

    def having(self, modality: str) -> Samples:
        """Those that do not lack a modality."""
        rows = [i for i, raw in enumerate(self.raws[modality]) if raw is not None]
        raws = {name: [values[i] for i in rows] for name, values in self.raws.items()}
        return Samples(raws, {label: [values[i] for i in rows] for label, values in self.labels.items()})


@dataclass(frozen=True)
class Hits:
    """A share-like metric, sample by sample."""

    counts: Bool[np.ndarray, " n"]
    """Whether a sample counts at all."""
    is_hit: Bool[np.ndarray, " n"]

    @property
    def estimate(self) -> Estimate | None:
        """Share of hits among what counts; None if nothing counts."""
        n = int(self.counts.sum())
        return share(int((self.counts & self.is_hit).sum()), n) if n else None


def load_samples(
    folder: str | Path, codecs: Mapping[str, Codec], *, missing: Literal["error", "keep"] = "error"
) -> Samples:
    """All raw samples of a folder of shards: a member ``<modality>.<extension>`` or ``<extension>``, and ``json``.

    Args:
        folder: of the shards.
        codecs: modality → what reads its members.
        missing: whether a sample may lack a modality.

    Raises:
        ValueError: if a member is missing or unreadable, and names the sample; or if every sample lacks a modality.
    """
    raws: Raws = {name: [] for name in codecs}
    rows: list[dict[str, Any]] = []
    for sample in read_shards(folder):
        key: Any = sample["__key__"]
        for name, codec in codecs.items():
            member = next((m for m in (f"{name}.{codec.extension}", codec.extension) if m in sample), None)
            if member is None and missing == "error":
                raise ValueError(f"sample {key} of {folder} has no member {codec.extension!r} for {name!r}")
            raws[name].append(codec.from_bytes(sample[member]) if member else None)
        rows.append(json.loads(sample.get("json", b"{}")))
    for name, values in raws.items():
        if all(value is None for value in values):
            raise ValueError(f"no sample of {folder} has a member {codecs[name].extension!r} for {name!r}")
    labels = set.intersection(*({*row} for row in rows)) if rows else set()
    return Samples(raws, {label: [str(row[label]) for row in rows] for label in sorted(labels)})


@dataclass(frozen=True)
class Reference:
    """Real data to measure against."""

    train: Samples
    """What the model was trained on; some may lack a modality."""
    test: Samples
    """What it was not, complete. Givens are taken from it."""


@dataclass(frozen=True)
class Drawn:
    """What one query gave, and what it was given."""

    given: Raws
    solved: Raws
    known: dict[str, list[str]]
    """Label → what is known of each given; meaningless where nothing is given."""


@dataclass(frozen=True)
class Measured:
    """What a metric says of one query."""

    estimates: dict[str, Estimate]
    """By name; prefixed ``<modality>.`` where several solved modalities have one."""
    faults: dict[str, Hits] = field(default_factory=dict)
    """Those of them in which a miss is a sample's fault, sample by sample."""


class Metric(ABC):
    """Measures what a query gave. Its constructor's parameters are its options in the evaluation's YAML."""

    def fit(self, reference: Reference) -> None:  # noqa: B027 — many need no preparation
        """Prepare for a run, once: train a judge, take features of real data.

        Raises:
            ValueError: if the data does not suffice; says why.
        """

    @abstractmethod
    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of one query's samples; empty where the metric says nothing about them.

        Args:
            drawn: what was given and what was sampled.
            reference: what `fit` saw.
        """

    def accuracies(self, reference: Reference) -> dict[str, dict[str, Estimate]]:
        """Modality → label → how well the metric itself reads real test samples; none if it reads nothing."""
        return {}


def estimates_of(hits: Mapping[str, Hits]) -> dict[str, Estimate]:
    """The shares that are estimates: of samples that count."""
    return {name: estimate for name, hit in hits.items() if (estimate := hit.estimate) is not None}


def prefixed(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Modality → metric → value, flat; prefixed with the modality where there are several."""
    return {
        metric if len(rows) == 1 else f"{name}.{metric}": value
        for name, row in rows.items()
        for metric, value in row.items()
    }
