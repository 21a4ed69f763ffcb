"""A cleaner: raw samples of one modality, made fit for training."""

from __future__ import annotations

from abc import ABC, abstractmethod

from unidiff_core.codec.codec import Raw


class Cleaner(ABC):
    """Changes what a codec reads before it is encoded: captions without URLs, say.

    It prepares data, and is no part of the model: `encode` and the data modules take one for a modality, sampling does
    not, and a model directory does not record it (a codec's constructor would be recorded).
    """

    @abstractmethod
    def clean(self, raw: Raw) -> Raw | None:
        """The raw sample, cleaned; None if nothing is left of it. Cleaning twice changes nothing more."""
