"""Metrics: what a judge says of samples, as numbers with intervals.

Definitions, pinned. *Reading*: the label that the judge reads off a sample, or None. *Known*: the label that the test
data records. A modality *always states* a label if at least 99 % of the real test samples have a reading; where it
does, no reading counts as wrong, elsewhere such a sample is left out.

* ``<label>``, with a given: share of samples whose reading equals the label known of the given. Left out: where the
  judge has no reading of any given, as it does not state the label.
* ``given_<label>``: the judge's own share right on the givens themselves.
* ``<label>``, several solved: share of samples in which all solved modalities that state it, two at least, agree.
  ``<modality>+<modality>.<label>``, more than two solved: the same of each pair.
* ``<label>_tv``, of a label that no given states: total variation distance of the readings' histogram (None is a
  category) to that of the readings of the real training samples of the same modality, if it ever states it. Of several
  solved modalities: the largest.
* ``well_formed``, under the judge's own name for it: share of samples that are formally right.
* ``nearest``: share of samples nearer to a training sample than the first percentile of the distances of test samples
  to their nearest training samples, in the judge's features. A model that copies has a large one; data has 0.01.

A metric that several solved modalities have is prefixed: ``<modality>.<metric>``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unidiff_core.codec import Codec, Raw
from unidiff_core.estimate import Estimate, share, total_variation
from unidiff_core.judge import Judge
from unidiff_core.store import read_shards

ALWAYS = 0.99

NEAR_PERCENTILE = 1.0

Raws = dict[str, list[Raw]]

Readings = dict[str, list[str | None]]


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

    counts: np.ndarray
    """Whether a sample counts at all, ``[n]``."""
    is_hit: np.ndarray

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


class Yardstick:
    """A fitted judge, and what it says of real data.

    Args:
        judge: fitted here, on `train`.
        train: real training samples with labels; some may lack a modality.
        test: real test samples with labels, complete.
    """

    def __init__(self, judge: Judge, train: Samples, test: Samples) -> None:
        if absent := [label for label in judge.labels if label not in train.labels or label not in test.labels]:
            raise ValueError(f"the judge reads {', '.join(absent)}, which not every sample's json member records")
        self.judge = judge
        self.test = test
        self.modalities = tuple(name for name in judge.modalities if name in train.raws)
        trained_on = {name: train.having(name) for name in self.modalities}
        for name, samples in trained_on.items():
            judge.fit(name, samples.raws[name], samples.labels)
        self.typical: dict[str, Readings] = {
            name: judge.read(name, samples.raws[name]) for name, samples in trained_on.items()
        }
        """Modality → readings of real training samples."""
        self.test_readings = {name: judge.read(name, test.raws[name]) for name in self.modalities}
        self._train_features = {
            name: features
            for name, samples in trained_on.items()
            if (features := judge.features(name, samples.raws[name])) is not None
        }
        self._near = {
            name: float(np.percentile(self._distances(name, test.raws[name]), NEAR_PERCENTILE))
            for name in self._train_features
        }

    def always_states(self, modality: str, label: str) -> bool:
        """Whether real samples of a modality state a label."""
        return bool(_is_stated(self.test_readings[modality][label]).mean() >= ALWAYS)

    def ever_states(self, modality: str, label: str) -> bool:
        """Whether any real sample of a modality states a label."""
        return modality in self.modalities and bool(_is_stated(self.test_readings[modality][label]).any())

    def accuracies(self) -> dict[str, dict[str, Estimate]]:
        """Modality → label → the judge's share right on real test samples, of those that state the label."""
        rows = {
            name: {label: self.right(name, readings, label, self.test.labels[label]) for label in self.judge.labels}
            for name, readings in self.test_readings.items()
        }
        return {name: _estimates(row) for name, row in rows.items()}

    def right(self, modality: str, readings: Readings, label: str, known: Sequence[str]) -> Hits:
        """Whether each reading is the known label."""
        values = np.array(readings[label], dtype=object)
        counts = _is_stated(readings[label]) | self.always_states(modality, label)
        return Hits(counts, values == np.array(known, dtype=object))

    def agreement(self, readings: Mapping[str, Readings], label: str) -> Hits:
        """Whether all modalities that state a label, two at least, state the same."""
        always = [self.always_states(name, label) for name in readings]

        def speaking(row: Sequence[str | None]) -> list[str | None]:
            return [value for value, counts in zip(row, always, strict=True) if counts or value is not None]

        rows = [speaking(row) for row in zip(*(read[label] for read in readings.values()), strict=True)]
        counts = np.array([len(row) > 1 for row in rows])
        return Hits(counts, np.array([None not in row and len(set(row)) == 1 for row in rows]))

    def nearness(self, modality: str, raws: Sequence[Raw]) -> Hits | None:
        """Whether each sample is suspiciously near to a training sample; None if the judge has no features for it."""
        if modality not in self._train_features:
            return None
        return Hits(np.ones(len(raws), bool), self._distances(modality, raws) < self._near[modality])

    def _distances(self, modality: str, raws: Sequence[Raw]) -> np.ndarray:
        features = self.judge.features(modality, raws)
        assert features is not None
        return nearest_distances(features, self._train_features[modality])


def nearest_distances(features: np.ndarray, references: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """Euclidean distance ``[n]`` of each row of `features` ``[n, d]`` to the nearest row of `references` ``[m, d]``."""
    features, references = features.astype(np.float64), references.astype(np.float64)
    norms = (references**2).sum(axis=1)
    squares = [
        ((part**2).sum(axis=1)[:, None] + norms - 2 * part @ references.T).min(axis=1)
        for part in (features[i : i + chunk] for i in range(0, len(features), chunk))
    ]
    return np.sqrt(np.maximum(np.concatenate(squares), 0.0))


def _is_stated(readings: Sequence[str | None]) -> np.ndarray:
    return np.array([reading is not None for reading in readings], dtype=bool)


def _estimates(hits: Mapping[str, Hits]) -> dict[str, Estimate]:
    return {name: estimate for name, hit in hits.items() if (estimate := hit.estimate) is not None}


@dataclass(frozen=True)
class Drawn:
    """What one query gave, and what it was given."""

    given: Raws
    solved: Raws
    known: dict[str, list[str]]
    """Label → what is known of each given; meaningless where nothing is given."""


def measure(yardstick: Yardstick, drawn: Drawn) -> tuple[dict[str, Estimate], dict[str, Hits]]:
    """All metrics of one query, and those of them in which a miss is a sample's fault, sample by sample."""
    judge = yardstick.judge
    readings = {name: judge.read(name, raws) for name, raws in drawn.solved.items() if name in yardstick.modalities}
    faults: dict[str, Hits] = {}
    others: dict[str, Estimate] = {}
    if drawn.given:
        right, of_givens = _against_givens(yardstick, drawn, readings)
        faults |= right
        others |= _estimates(of_givens)
    open_labels = [
        label for label in judge.labels if not any(yardstick.ever_states(name, label) for name in drawn.given)
    ]
    others |= _distribution(yardstick, readings, open_labels)
    faults |= _agreements(yardstick, readings)
    faults |= _well_formed(judge, drawn.solved)
    near = {name: hits for name, raws in drawn.solved.items() if (hits := yardstick.nearness(name, raws))}
    others |= _estimates(_prefixed({name: {"nearest": hits} for name, hits in near.items()}))
    return _estimates(faults) | others, faults


def _against_givens(
    yardstick: Yardstick, drawn: Drawn, readings: Mapping[str, Readings]
) -> tuple[dict[str, Hits], dict[str, Hits]]:
    judged = {
        name: yardstick.judge.read(name, raws) for name, raws in drawn.given.items() if name in yardstick.modalities
    }
    is_known = {
        label: np.any([_is_stated(given[label]) for given in judged.values()], axis=0) if judged else True
        for label in yardstick.judge.labels
    }

    def compare(name: str, read: Readings) -> dict[str, Hits]:
        rows = {label: yardstick.right(name, read, label, drawn.known[label]) for label in yardstick.judge.labels}
        return {label: Hits(row.counts & is_known[label], row.is_hit) for label, row in rows.items()}

    of_givens = {
        name: {f"given_{label}": hits for label, hits in compare(name, read).items()} for name, read in judged.items()
    }
    return _prefixed({name: compare(name, read) for name, read in readings.items()}), _prefixed(of_givens)


def _agreements(yardstick: Yardstick, readings: Mapping[str, Readings]) -> dict[str, Hits]:
    """Of all solved modalities together, and of each pair where there are more than two."""
    groups = {"": tuple(readings)} if len(readings) > 1 else {}
    if len(readings) > 2:
        groups |= {f"{a}+{b}.": (a, b) for a, b in itertools.combinations(readings, 2)}
    return {
        prefix + label: yardstick.agreement({name: readings[name] for name in group}, label)
        for prefix, group in groups.items()
        for label in yardstick.judge.labels
    }


def _distribution(yardstick: Yardstick, readings: Mapping[str, Readings], labels: Sequence[str]) -> dict[str, Estimate]:
    rows = {
        name: {
            f"{label}_tv": total_variation(read[label], yardstick.typical[name][label])
            for label in labels
            if yardstick.ever_states(name, label)
        }
        for name, read in readings.items()
    }
    worst: dict[str, Estimate] = {}
    for metric, cell in [pair for row in rows.values() for pair in row.items()]:
        worst[metric] = max(worst.get(metric, cell), cell, key=lambda estimate: estimate.value)
    return worst | _prefixed(rows)


def _well_formed(judge: Judge, solved: Raws) -> dict[str, Hits]:
    rows = {}
    for name, raws in solved.items():
        verdicts = [judge.well_formed(name, raw) for raw in raws] if name in judge.modalities else []
        if any(verdict is not None for verdict in verdicts):
            counts = np.array([verdict is not None for verdict in verdicts])
            rows[name] = {judge.well_formed_name: Hits(counts, np.array([bool(verdict) for verdict in verdicts]))}
    return _prefixed(rows)


def _prefixed(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Modality → metric → value, flat; prefixed with the modality where there are several."""
    return {
        metric if len(rows) == 1 else f"{name}.{metric}": value
        for name, row in rows.items()
        for metric, value in row.items()
    }
