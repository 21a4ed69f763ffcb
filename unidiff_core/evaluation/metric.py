"""The metric: what is measured of samples, as numbers with intervals. One file each; plugins register their own."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from unidiff_core.codec.codec import Codec, Raw
from unidiff_core.data.salvage import read_shards
from unidiff_core.data.shard import numbered_in
from unidiff_core.evaluation.estimate import Estimate, clustered_share

Raws = dict[str, list[Raw]]
Axis = Literal["quality", "agreement"]


@dataclass(frozen=True)
class Samples:
    """Real samples with their labels."""

    raws: Raws
    """Modality → samples; None where a sample lacks the modality."""
    labels: dict[str, list[str]]
    """Label name → what the data records of each sample."""
    sources: list[str] = field(default_factory=list)
    """What each sample was made from, the scan of several renderings, say; empty if each is its own."""
    others: Raws = field(default_factory=dict)
    """Modality → what samples have of it beside the first, as an image may have several captions."""

    def __len__(self) -> int:
        return len(next(iter(self.raws.values()), []))

    def rows(self, rows: Iterable[int]) -> Samples:
        """Some of them, by index."""
        chosen = list(rows)
        raws = {name: [values[i] for i in chosen] for name, values in self.raws.items()}
        labels = {label: [values[i] for i in chosen] for label, values in self.labels.items()}
        return Samples(raws, labels, [self.sources[i] for i in chosen] if self.sources else [])

    def having(self, modality: str) -> Samples:
        """Those that do not lack a modality; the same object at each call."""
        return self._kept(
            modality, lambda: self.rows(i for i, raw in enumerate(self.raws[modality]) if raw is not None)
        )

    def distinct(self, modality: str) -> Samples:
        """One sample of each source, of those that do not lack a modality; the same object at each call."""

        def chosen() -> Samples:
            having = self.having(modality)
            first = {source: i for i, source in reversed(list(enumerate(having.sources)))}
            return having.rows(sorted(first.values())) if first else having

        return self._kept(("distinct", modality), chosen)

    def _kept(self, key: Hashable, make: Callable[[], Samples]) -> Samples:
        if key not in self._views:
            self._views[key] = make()
        return self._views[key]

    @cached_property
    def _views(self) -> dict[Hashable, Samples]:
        return {}


@dataclass(frozen=True)
class Hits:
    """A share-like metric, sample by sample."""

    counts: Bool[np.ndarray, " n"]
    """Whether a sample counts at all."""
    is_hit: Bool[np.ndarray, " n"]

    @property
    def estimate(self) -> Estimate | None:
        """Share of hits among what counts, of independent samples; None if nothing counts."""
        return self.estimate_of(())

    def estimate_of(self, sources: Sequence[Hashable]) -> Estimate | None:
        """Share of hits among what counts; None if nothing counts.

        Args:
            sources: of each sample, as samples of one source are not independent; none if they are.
        """
        if not self.counts.any():
            return None
        clusters = [source for source, counts in zip(sources, self.counts, strict=True) if counts] if sources else None
        return clustered_share(self.is_hit[self.counts], clusters)


def load_samples(
    folder: str | Path,
    codecs: Mapping[str, Codec],
    *,
    missing: Literal["error", "keep"] = "error",
    source: str | None = None,
) -> Samples:
    """All raw samples of a folder of shards: a member ``<modality>.<extension>`` or ``<extension>``, and ``json``.

    Of several members (``txt``, ``1.txt``, …) the first is the sample: an evaluation is always of the same ones.

    Args:
        folder: of the shards.
        codecs: modality → what reads its members.
        missing: whether a sample may lack a modality.
        source: a regular expression whose first group, or all of it, finds in a sample's key what it was made from.

    Raises:
        ValueError: if a member is missing or unreadable, or a key names no source, and names the sample; or if every
            sample lacks a modality.
    """
    raws: Raws = {name: [] for name in codecs}
    others: Raws = {name: [] for name in codecs}
    rows: list[dict[str, Any]] = []
    sources: list[str] = []
    for sample in read_shards(folder):
        key: Any = sample["__key__"]
        if source is not None:
            sources.append(_source_of(str(key), source))
        for name, codec in codecs.items():
            found = numbered_in(sample, f"{name}.{codec.extension}") or numbered_in(sample, codec.extension)
            if not found and missing == "error":
                raise ValueError(f"sample {key} of {folder} has no member {codec.extension!r} for {name!r}")
            first, *more = [codec.from_bytes(sample[member]) for member in found] or [None]
            raws[name].append(first)
            others[name] += more
        rows.append(json.loads(sample.get("json", b"{}")))
    for name, values in raws.items():
        if all(value is None for value in values):
            raise ValueError(f"no sample of {folder} has a member {codecs[name].extension!r} for {name!r}")
    labels = set.intersection(*({*row} for row in rows)) if rows else set()
    recorded = {label: [str(row[label]) for row in rows] for label in sorted(labels)}
    return Samples(raws, recorded, sources, {name: values for name, values in others.items() if values})


def _source_of(key: str, pattern: str) -> str:
    found = re.search(pattern, key)
    if not found:
        raise ValueError(f"the pattern of sources, {pattern!r}, finds nothing in the key {key!r} of a sample")
    return found[found.re.groups and 1] or ""


@dataclass(frozen=True)
class Reference:
    """Real data to measure against."""

    train: Samples
    """What the model was trained on; some may lack a modality."""
    test: Samples
    """What it was not, complete. Givens are taken from it."""
    reconstruct: Callable[[str, Sequence[Raw]], list[Raw]] | None = None
    """(modality, samples) → the same as the model's codec gives them back; None if there is no model."""
    encode: Callable[[str, Sequence[Raw]], np.ndarray] | None = None
    """(modality, samples) → the codec's latents ``[n, d]``; None if there is no model."""


@dataclass(frozen=True)
class Drawn:
    """What one query gave, and what it was given."""

    given: Raws
    solved: Raws
    known: dict[str, list[str]]
    """Label → what is known of each given; meaningless where nothing is given."""
    sources: list[str] = field(default_factory=list)
    """What each sample's givens were made from; empty where samples are independent."""

    def __len__(self) -> int:
        return len(next(iter(self.solved.values()), []))


@dataclass(frozen=True)
class Pair:
    """A sample beside the training sample that it is nearest to."""

    sample: Raw
    nearest: Raw
    ratio: float
    """Of its distance to the training samples to that to real samples that the model did not see."""
    is_suspicious: bool
    """Whether it counts as a copy."""


@dataclass(frozen=True)
class Measured:
    """What a metric says of one query."""

    estimates: dict[str, Estimate]
    """By name; prefixed ``<modality>.`` where several solved modalities have one."""
    faults: dict[str, Hits] = field(default_factory=dict)
    """Those of them in which a miss is a sample's fault, sample by sample."""
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    """Modality → the samples that look most like training samples, the most alike first."""


class Metric(ABC):
    """Measures what a query gave. Its constructor's parameters are its options in the evaluation's YAML."""

    axes: Mapping[str, Axis] = {}
    """Its numbers that a sweep's curves set against each other: how near to real data, how true to what is given."""

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


def estimates_of(hits: Mapping[str, Hits], sources: Sequence[Hashable] = ()) -> dict[str, Estimate]:
    """The shares that are estimates: of samples that count."""
    return {name: estimate for name, hit in hits.items() if (estimate := hit.estimate_of(sources)) is not None}


def prefixed(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Modality → metric → value, flat; prefixed with the modality where there are several."""
    return {
        metric if len(rows) == 1 else f"{name}.{metric}": value
        for name, row in rows.items()
        for metric, value in row.items()
    }
