"""Label metrics: what a judge reads off samples.

Definitions, pinned. *Reading*: the label that the judge reads off a sample, or None. *Known*: the label that the test
data records. A modality *always states* a label if at least 90 % of the real test samples have a reading (a judge may
say "none of them" of a few); where it does, no reading counts as wrong, elsewhere such a sample is left out.

* ``<label>``, with a given: share of samples whose reading equals the label known of the given. Left out: where the
  judge has no reading of any given, as it does not state the label.
* ``given_<label>``: the judge's own share right on the givens themselves.
* ``<label>``, several solved: share of samples in which all solved modalities that state it, two at least, agree.
  ``<modality>+<modality>.<label>``, more than two solved: the same of each pair.
* ``lost_<label>``, with a given: share of samples whose reading is not the known label, of those whose given reads as
  that: what the answer lost, without the judge's own errors about the given.
* ``new_<label>``, with a given: the same as ``<label>`` of those samples alone whose given is new: no training sample
  of its modality has the same readings, of the unrecorded labels too (a sentence never seen in training).
* ``well_formed``, under the judge's own name for it: share of samples that are formally right.

A metric that several solved modalities have is prefixed: ``<modality>.<metric>``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from unidiff_core.evaluation.estimate import Estimate
from unidiff_core.evaluation.judge import Judge, Readings
from unidiff_core.evaluation.metric import Drawn, Hits, Measured, Metric, Raws, Reference, estimates_of, prefixed

ALWAYS = 0.9


class JudgeMetric(Metric):
    """What metrics of a judge's labels share: the readings of real samples.

    Args:
        judge: fitted on the training samples.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def fit(self, reference: Reference) -> None:
        """Fit the judge, and read the real samples."""
        known = reference.train.labels.keys() & reference.test.labels.keys()
        if absent := [label for label in self.judge.labels if label not in known]:
            raise ValueError(f"the judge reads {', '.join(absent)}, which not every sample's json member records")
        self.judge.fit_on(reference.train)
        self.modalities = tuple(name for name in self.judge.modalities if name in reference.train.raws)
        self.typical: dict[str, Readings] = {
            name: self.judge.readings(name, reference.train.having(name).raws[name]) for name in self.modalities
        }
        """Modality → readings of real training samples that have it."""
        self._others = {
            name: self.judge.readings(name, rows)
            for name, rows in reference.train.others.items()
            if rows and name in self.modalities
        }
        self.test_readings = {name: self.judge.readings(name, reference.test.raws[name]) for name in self.modalities}

    def read(self, raws: Raws) -> dict[str, Readings]:
        """Modality → readings of its samples, of the modalities that the judge can read."""
        return {name: self.judge.readings(name, rows) for name, rows in raws.items() if name in self.modalities}

    def always_states(self, modality: str, label: str) -> bool:
        """Whether real samples of a modality state a label."""
        return bool(is_stated(self.test_readings[modality][label]).mean() >= ALWAYS)

    def ever_states(self, modality: str, label: str) -> bool:
        """Whether any real sample of a modality states a label."""
        return modality in self.modalities and bool(is_stated(self.test_readings[modality].get(label, [])).any())


class LabelMetric(JudgeMetric):
    """``<label>``, ``lost_<label>``, ``new_<label>``: how often a judge reads off samples what they were asked to show.

    They are defined at the top of this module.

    Args:
        judge: fitted on the training samples.
    """

    def measure(self, drawn: Drawn, reference: Reference) -> Measured:
        """Of the modalities that the judge can read."""
        readings = self.read(drawn.solved)
        faults: dict[str, Hits] = {}
        others: dict[str, Estimate] = {}
        if drawn.given:
            right, of_givens = self._against_givens(drawn, readings)
            faults |= right
            others |= estimates_of(of_givens, drawn.sources)
        faults |= self._agreements(readings)
        faults |= self._well_formed(drawn.solved)
        return Measured(estimates_of(faults, drawn.sources) | others, faults)

    def accuracies(self, reference: Reference) -> dict[str, dict[str, Estimate]]:
        """The judge's share right on real test samples, of those that state the label."""
        rows = {
            name: {
                label: self.right(name, readings, label, reference.test.labels[label]) for label in self.judge.labels
            }
            for name, readings in self.test_readings.items()
        }
        return {name: estimates_of(row, reference.test.sources) for name, row in rows.items()}

    def right(self, modality: str, readings: Readings, label: str, known: Sequence[str]) -> Hits:
        """Whether each reading is the known label."""
        values = np.array(readings[label], dtype=object)
        counts = is_stated(readings[label]) | self.always_states(modality, label)
        return Hits(counts, values == np.array(known, dtype=object))

    def agreement(self, readings: Mapping[str, Readings], label: str) -> Hits:
        """Whether all modalities that state a label, two at least, state the same."""
        always = [self.always_states(name, label) for name in readings]

        def speaking(row: Sequence[str | None]) -> list[str | None]:
            return [value for value, counts in zip(row, always, strict=True) if counts or value is not None]

        rows = [speaking(row) for row in zip(*(read[label] for read in readings.values()), strict=True)]
        counts = np.array([len(row) > 1 for row in rows])
        return Hits(counts, np.array([None not in row and len(set(row)) == 1 for row in rows]))

    def _against_givens(
        self, drawn: Drawn, readings: Mapping[str, Readings]
    ) -> tuple[dict[str, Hits], dict[str, Hits]]:
        judged = self.read(drawn.given)
        is_new = self._is_new(judged)
        is_known = {
            label: np.any([is_stated(given[label]) for given in judged.values()], axis=0) if judged else True
            for label in self.judge.labels
        }

        def compare(name: str, read: Readings) -> dict[str, Hits]:
            rows = {label: self.right(name, read, label, drawn.known[label]) for label in self.judge.labels}
            return {label: Hits(row.counts & is_known[label], row.is_hit) for label, row in rows.items()}

        givens = {name: compare(name, read) for name, read in judged.items()}
        of_givens = prefixed(
            {name: {f"given_{label}": hits for label, hits in row.items()} for name, row in givens.items()}
        )
        right = {name: compare(name, read) for name, read in readings.items()}
        of_givens |= prefixed({name: _lost(row, givens.values()) for name, row in right.items()})
        if is_new.any():
            for row in right.values():
                row |= {f"new_{label}": Hits(hits.counts & is_new, hits.is_hit) for label, hits in row.items()}
        return prefixed(right), of_givens

    def _is_new(self, judged: Mapping[str, Readings]) -> Bool[np.ndarray, " n"]:
        """Whether what each sample is given is a composition of labels that no training sample has."""
        rows = []
        for name, readings in judged.items():
            labels = self.typical[name]
            trained = [self.typical[name], *([self._others[name]] if name in self._others else [])]
            seen = {row for part in trained for row in zip(*(part[label] for label in labels), strict=True)}
            rows.append([row not in seen for row in zip(*(readings[label] for label in labels), strict=True)])
        return np.any(rows, axis=0) if rows else np.zeros(1, bool)

    def _agreements(self, readings: Mapping[str, Readings]) -> dict[str, Hits]:
        """Of all solved modalities together, and of each pair where there are more than two."""
        groups = {"": tuple(readings)} if len(readings) > 1 else {}
        if len(readings) > 2:
            groups |= {f"{a}+{b}.": (a, b) for a, b in itertools.combinations(readings, 2)}
        return {
            prefix + label: self.agreement({name: readings[name] for name in group}, label)
            for prefix, group in groups.items()
            for label in self.judge.labels
        }

    def _well_formed(self, solved: Raws) -> dict[str, Hits]:
        rows = {}
        for name, raws in solved.items():
            verdicts = [self.judge.well_formed(name, raw) for raw in raws] if name in self.judge.modalities else []
            if any(verdict is not None for verdict in verdicts):
                counts = np.array([verdict is not None for verdict in verdicts])
                rows[name] = {
                    self.judge.well_formed_name: Hits(counts, np.array([bool(verdict) for verdict in verdicts]))
                }
        return prefixed(rows)


def _lost(right: Mapping[str, Hits], givens: Iterable[Mapping[str, Hits]]) -> dict[str, Hits]:
    """What is wrong where some given reads right."""

    def reads_right(label: str) -> Bool[np.ndarray, " n"]:
        return np.any([given[label].counts & given[label].is_hit for given in givens], axis=0)

    givens = list(givens)
    return {
        f"lost_{label}": Hits(hits.counts & reads_right(label), ~hits.is_hit) for label, hits in right.items() if givens
    }


def is_stated(readings: Sequence[str | None]) -> Bool[np.ndarray, " n"]:
    """Whether each reading is one."""
    return np.array([reading is not None for reading in readings], dtype=bool)
