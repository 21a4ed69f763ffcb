"""Features: vectors of samples in which distance means likeness, for every metric that needs no labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from unidiff_core.codec.codec import Raw
from unidiff_core.evaluation.judge import Judge
from unidiff_core.evaluation.metric import Drawn, Metric, Reference, Samples
from unidiff_core.foundation.argument import check_sizes

NUM_KEPT = 16
"""Lists of samples whose features are kept."""
NUM_COMPONENTS = 64
"""Principal components, at most, of latents."""
NUM_DECOMPOSED = 2000
"""Training samples, at most, from which they are found."""


class Features(ABC):
    """Where features come from. A class of a user's own (a pretrained network, say) is given by class path.

    Several metrics share one object, which then computes the features of a list of samples once.
    """

    name: str
    """What reports call it."""

    _fitted_on: Reference | None = None
    _kept: tuple[tuple[Sequence[Raw], str, str, Any], ...] = ()

    def fit_on(self, reference: Reference) -> None:
        """`fit`, once, however many metrics share this object."""
        if self._fitted_on is not reference:
            self.fit(reference)
            self._fitted_on, self._kept = reference, ()
            self._scales: dict[str, tuple[np.ndarray, float]] = {}
            for name in reference.train.raws:
                found = self.compute(name, reference.train.distinct(name).raws[name])
                if found is not None:
                    mean = found.mean(axis=0, dtype=np.float64)
                    self._scales[name] = mean, float(np.sqrt(((found - mean) ** 2).mean())) or 1.0

    def fit(self, reference: Reference) -> None:  # noqa: B027 — many need no preparation
        """Prepare: train what computes them on real training samples."""

    @abstractmethod
    def compute(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """``[n, d]``; None of a modality without features."""

    def compute_variants(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """``[n, v, d]``: of each sample as it is, and under the small changes behind which a copy may hide."""
        found = self.compute(modality, raws)
        return None if found is None else found[:, None]

    def of(self, modality: str, raws: Sequence[Raw]) -> Float64[np.ndarray, "n d"] | None:
        """Features whose mean over the training samples is 0, and the mean of whose squares is 1; or None."""
        return self._once("as it is", self.compute, modality, raws)

    def variants(self, modality: str, raws: Sequence[Raw]) -> Float64[np.ndarray, "n v d"] | None:
        """The same of `compute_variants`."""
        return self._once("variants", self.compute_variants, modality, raws)

    def _once(self, kind: str, compute: Callable[..., np.ndarray | None], modality: str, raws: Sequence[Raw]) -> Any:
        if modality not in self._scales or not len(raws):
            return None
        for known, *what, value in self._kept:
            if known is raws and what == [kind, modality]:
                return value
        found = compute(modality, raws)
        mean, scale = self._scales[modality]
        value = None if found is None else (found.astype(np.float64) - mean) / scale
        self._kept = (*self._kept[-NUM_KEPT:], (raws, kind, modality, value))
        return value


class JudgeFeatures(Features):
    """The features in which a judge reads its labels; quality, variety and copies are then measured in these.

    Args:
        judge: fitted on the training samples.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.name = f"features of {type(judge).__name__}"

    def fit(self, reference: Reference) -> None:
        """Fit the judge."""
        self.judge.fit_on(reference.train)

    def compute(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """What the judge gives of the modalities that it can read."""
        return self.judge.features(modality, raws) if modality in self.judge.modalities else None

    def compute_variants(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """Likewise."""
        return self.judge.variants(modality, raws) if modality in self.judge.modalities else None


class LatentFeatures(Features):
    """The latents of the model's own codecs, by their first principal components: needs no labels and no network.

    What a codec does not keep cannot be seen in them, so they say nothing about the codec itself.

    Args:
        num_components: at most so many, of real training samples.
    """

    def __init__(self, num_components: int = NUM_COMPONENTS) -> None:
        check_sizes(num_components=num_components)
        self.num_components = num_components
        self.name = "latents of the model's codecs"

    def fit(self, reference: Reference) -> None:
        """Find the principal components.

        Raises:
            ValueError: if there is no model whose codecs could encode.
        """
        if reference.encode is None:
            raise ValueError("LatentFeatures need a model whose codecs encode; give a judge's features, or others")
        self._encode, self._axes = reference.encode, {}
        for name in reference.train.raws:
            raws = reference.train.distinct(name).raws[name]
            some = [raws[i] for i in np.linspace(0, len(raws) - 1, min(len(raws), NUM_DECOMPOSED)).astype(int)]
            rows = self._encode(name, some).astype(np.float64)
            _, _, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
            self._axes[name] = axes[: self.num_components].T

    def compute(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """Latents, in the components."""
        return self._encode(modality, raws) @ self._axes[modality] if modality in self._axes else None


class FeatureMetric(Metric):
    """What metrics in features share.

    Args:
        features: where they come from.
    """

    is_controlled = True
    """Whether it says anything of real test samples, which it then measures as a control."""

    def __init__(self, features: Features) -> None:
        self.features = features

    def fit(self, reference: Reference) -> None:
        """Features of real samples."""
        self.features.fit_on(reference)

    def of_train(self, name: str, reference: Reference) -> np.ndarray | None:
        """Of one training sample of each source ``[m, d]``; None where the modality has none."""
        return (
            self.features.of(name, reference.train.distinct(name).raws[name]) if name in reference.train.raws else None
        )

    def of_test(self, name: str, reference: Reference) -> np.ndarray | None:
        """Of one test sample of each source ``[m, d]``."""
        return self._distinct(name, reference.test)

    def compared(
        self, drawn: Drawn, reference: Reference, least: int
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Each solved modality that has features: its name, and those of training, test and drawn samples.

        Args:
            drawn: what was sampled.
            reference: real samples.
            least: samples of each kind, without which nothing is said.
        """
        for name, raws in drawn.solved.items():
            rows = (self.of_train(name, reference), self.of_test(name, reference), self.features.of(name, raws))
            train, test, found = rows
            if train is not None and test is not None and found is not None and min(map(len, rows)) >= least:  # type: ignore[arg-type]
                yield name, train, test, found

    def _distinct(self, name: str, real: Samples) -> np.ndarray | None:
        return self.features.of(name, real.distinct(name).raws[name]) if name in real.raws else None
