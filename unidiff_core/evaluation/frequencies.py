"""Frequencies: whether what is free comes as often as in the data.

Definitions, pinned. A label is *free* in a sample if nothing that was given states it; an unrecorded label of the judge
(how a thing is said) is always free. Readings are compared with those of the real training samples of the same
modality; with a given, of those alone whose own given modalities do not state the label either. None is a category.

* ``<label>_tv``: total variation distance of the readings' histogram to the data's. Of several solved modalities: the
  largest. Its `null` is what as many samples of the data's own frequencies have on average.
* ``<label>_least``: the smallest frequency of a reading among those that are not None, as a share of its frequency in
  the data. Of several solved modalities: the smallest. 0 where a class is missing.
* ``<label>+<label>_tv``: total variation distance of the joint histogram of two labels that are free in every sample.
  Of several solved modalities: the largest.

Each is prefixed with the modality where several are solved: ``<modality>.<metric>``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from unidiff_core.evaluation.estimate import Estimate, least_frequency, total_variation
from unidiff_core.evaluation.judge import Readings
from unidiff_core.evaluation.labels import JudgeMetric, is_stated
from unidiff_core.evaluation.metric import Drawn, Measured, Reference, prefixed

LEAST = 30
"""Real and drawn samples, at least, of which a histogram says anything."""


class Frequencies(JudgeMetric):
    """``<label>_tv`` and ``<label>_least``: whether what is left free comes as often as in the data, rare classes too.

    They are defined at the top of this module.

    Args:
        judge: fitted on the training samples.
    """

    def fit(self, reference: Reference) -> None:
        """Fit the judge, and read the real samples."""
        super().fit(reference)
        self._train = reference.train

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of every free label, and every pair of them."""
        given = self.read(drawn.given)
        rows = {
            name: dict(self._of(name, readings, given, drawn)) for name, readings in self.read(drawn.solved).items()
        }
        return Measured(_extremes(rows) | (prefixed(rows) if len(rows) > 1 else {}))

    def _of(
        self, name: str, readings: Readings, given: Mapping[str, Readings], drawn: Drawn
    ) -> Iterator[tuple[str, Estimate]]:
        labels = [label for label in (*self.judge.labels, *self.judge.unrecorded) if self.ever_states(name, label)]
        is_free = {label: self._is_free(label, given, len(drawn)) for label in labels}
        for label in labels:
            rows = np.flatnonzero(is_free[label])
            real = self._real(name, label, given)
            if len(rows) < min(LEAST, len(drawn)) or not real:
                continue
            values, sources = _chosen(readings[label], rows), _chosen(drawn.sources, rows)
            yield f"{label}_tv", total_variation(values, real, sources)
            if any(value is not None for value in real):
                yield f"{label}_least", _least(values, real, sources)
        always = [label for label in labels if is_free[label].all()]
        for pair in itertools.combinations(always, 2):
            values, typical = (_joint(table, pair) for table in (readings, self.typical[name]))
            yield f"{'+'.join(pair)}_tv", total_variation(values, typical, drawn.sources)

    def _is_free(self, label: str, given: Mapping[str, Readings], n: int) -> np.ndarray:
        """Whether no given states a label, sample by sample."""
        if label in self.judge.unrecorded:
            return np.ones(n, bool)
        stated = [is_stated(readings[label]) for name, readings in given.items()]
        return ~np.any(stated, axis=0) if stated else np.ones(n, bool)

    def _real(self, name: str, label: str, given: Mapping[str, Readings]) -> list[str | None]:
        """Readings of the training samples in which a label is free."""
        rows = [i for i, raw in enumerate(self._train.raws[name]) if raw is not None]
        readings = self.typical[name][label]
        if label in self.judge.unrecorded or not given:
            return readings
        states = np.zeros(len(self._train), bool)
        for other in given:
            having = [i for i, raw in enumerate(self._train.raws[other]) if raw is not None]
            states[having] |= is_stated(self.typical[other][label])
        return [reading for i, reading in zip(rows, readings, strict=True) if not states[i]]


def _least(values: Sequence[str | None], real: Sequence[str | None], sources: Sequence[str]) -> Estimate:
    stated = [i for i, value in enumerate(values) if value is not None]
    if not stated:
        return Estimate(0.0, None, None, len(values))
    return least_frequency(
        [values[i] for i in stated], [value for value in real if value is not None], _chosen(sources, np.array(stated))
    )


def _joint(readings: Readings, labels: Sequence[str]) -> list[tuple[str | None, ...]]:
    return list(zip(*(readings[label] for label in labels), strict=True))


def _chosen(values: Sequence, rows: np.ndarray) -> list:
    return [values[i] for i in rows] if values else []


def _extremes(rows: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Of each metric the worst over modalities."""
    worst: dict[str, Estimate] = {}
    for metric, cell in [pair for row in rows.values() for pair in row.items()]:
        choose: Callable[..., Estimate] = min if metric.endswith("_least") else max
        worst[metric] = choose(worst.get(metric, cell), cell, key=lambda estimate: estimate.value)
    return worst
