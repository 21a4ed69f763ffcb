"""A judge: reads labels off raw samples, so that samples can be measured and not only looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.metric import Samples

Readings = dict[str, list[str | None]]
"""Label → what each sample shows."""
NUM_KEPT = 12
"""Lists of samples whose readings are kept."""


class Judge(ABC):
    """Classifiers and parsers trained on real training data.

    A label is a string, or None where a sample does not say (a caption that names no background) or cannot be read: a
    good judge says None of what is none of its classes, too, and calibrates that on samples that it was not trained on.
    """

    labels: tuple[str, ...]
    """Names of the labels that it reads, ``("digit", "colour")``."""
    unrecorded: tuple[str, ...] = ()
    """Labels besides, that `read` gives and the data does not record: how a thing is said, apart from what. Nothing is
    right or wrong about them; their frequencies are compared with the data's. A modality may leave them out."""
    modalities: tuple[str, ...]
    """Names of the modalities that it can read."""
    well_formed_name: str = "well_formed"
    """What tables call the share of samples that are `well_formed`."""

    _fitted_on: Samples | None = None
    _kept: tuple[tuple[Sequence[Raw], str, Readings], ...] = ()

    def fit_on(self, train: Samples) -> None:
        """`fit` every modality that real training samples have, once, however many metrics share this judge."""
        if self._fitted_on is not train:
            for name in [name for name in self.modalities if name in train.raws]:
                having = train.having(name)
                self.fit(name, having.raws[name], having.labels)
            self._fitted_on = train
            self._kept = ()

    def readings(self, modality: str, raws: Sequence[Raw]) -> Readings:
        """`read`, once for the same list of samples, however many metrics share this judge."""
        for known, name, readings in self._kept:
            if known is raws and name == modality:
                return readings
        readings = self.read(modality, raws)
        self._kept = (*self._kept[-NUM_KEPT:], (raws, modality, readings))
        return readings

    @abstractmethod
    def fit(self, modality: str, raws: Sequence[Raw], labels: dict[str, list[str]]) -> None:
        """Train on real training samples of a modality with their known labels."""

    @abstractmethod
    def read(self, modality: str, raws: Sequence[Raw]) -> Readings:
        """Label name → what each sample shows."""

    def well_formed(self, modality: str, raw: Raw) -> bool | None:
        """Whether a sample is formally right (a sentence by the grammar); None if that says nothing here."""
        return None

    def features(self, modality: str, raws: Sequence[Raw]) -> Shaped[np.ndarray, "n d"] | None:
        """Features in which distance means likeness; or None, and nothing is said of quality, variety and copies."""
        return None

    def variants(self, modality: str, raws: Sequence[Raw]) -> Shaped[np.ndarray, "n v d"] | None:
        """Features of each sample under the small changes behind which a copy may hide: a shift, a turn.

        The first is the sample as it is, which is all there is by default. None where there are no features.
        """
        features = self.features(modality, raws)
        return None if features is None else features[:, None]
