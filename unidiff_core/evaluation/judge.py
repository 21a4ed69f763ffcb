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


class Judge(ABC):
    """Classifiers and parsers trained on real training data.

    A label is a string, or None where a sample does not say (a caption that names no background) or cannot be read.
    """

    labels: tuple[str, ...]
    """Names of the labels that it reads, ``("digit", "colour")``."""
    modalities: tuple[str, ...]
    """Names of the modalities that it can read."""
    well_formed_name: str = "well_formed"
    """What tables call the share of samples that are `well_formed`."""

    _fitted_on: Samples | None = None

    def fit_on(self, train: Samples) -> None:
        """`fit` every modality that real training samples have, once, however many metrics share this judge."""
        if self._fitted_on is not train:
            for name in [name for name in self.modalities if name in train.raws]:
                having = train.having(name)
                self.fit(name, having.raws[name], having.labels)
            self._fitted_on = train

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
        """Features in which distance means likeness, for the nearest-training-sample check; or None."""
        return None
