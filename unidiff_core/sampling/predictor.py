"""The predictor: the one callable contract of sampling."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

Latents = Mapping[str, Tensor]
"""``"<modality>.<stream>" -> [b, ...]``."""

Times = Mapping[str, Tensor]
"""``"<modality>" -> [b]``, in 0 (clean) .. T (noise). A modality that is dropped is in neither mapping."""


class Predictor(Protocol):
    """(latents, times) → clean estimates, one for each stream it was given.

    A backbone with its processes is one, so are the exact oracle and a foreign network; guidance wraps one in another.
    """

    def __call__(self, latents: Latents, times: Times) -> dict[str, Tensor]:
        """Clean estimates ``"<modality>.<stream>" -> [b, ...]``."""
        ...


def without(predictor: Predictor, names: Collection[str]) -> Predictor:
    """The predictor with some modalities dropped: it never sees their latents and their times."""

    def predict(latents: Latents, times: Times) -> dict[str, Tensor]:
        return predictor(*dropped(latents, times, names))

    return predict


def dropped(latents: Latents, times: Times, names: Collection[str]) -> tuple[Latents, Times]:
    """Latents and times without some modalities."""
    kept = {key: value for key, value in latents.items() if modality_of(key) not in names}
    return kept, {name: t for name, t in times.items() if name not in names}


def modality_of(stream: str) -> str:
    """The modality of a full stream name, ``"<modality>.<stream>"``."""
    return stream.partition(".")[0]


def of_modality(latents: Latents, modality: str) -> dict[str, Tensor]:
    """A modality's tensors, under their own stream names."""
    return {key.partition(".")[2]: value for key, value in latents.items() if modality_of(key) == modality}
