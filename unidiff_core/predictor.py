"""The predictor: the one callable contract of sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
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


def modality_of(stream: str) -> str:
    """The modality of a full stream name, ``"<modality>.<stream>"``."""
    return stream.partition(".")[0]


def of_modality(latents: Latents, modality: str) -> dict[str, Tensor]:
    """A modality's tensors, under their own stream names."""
    return {key.partition(".")[2]: value for key, value in latents.items() if modality_of(key) == modality}


def thresholded(predictor: Predictor, bound: float, quantile: float = 0.995) -> Predictor:
    """Dynamic thresholding (Saharia et al. 2022, Imagen, section 2.3): clean estimates shrunk into [−bound, bound].

    Lossy. Each sample whose `quantile` of absolute values exceeds `bound` is scaled down to it, and then clipped.
    """

    def wrapped(latents: Latents, times: Times) -> dict[str, Tensor]:
        return {key: _shrunk(clean, bound, quantile) for key, clean in predictor(latents, times).items()}

    return wrapped


def _shrunk(clean: Tensor, bound: float, quantile: float) -> Tensor:
    height = torch.quantile(clean.flatten(1).abs(), quantile, dim=1).clamp(min=bound)
    factor = (bound / height).reshape(-1, *[1] * (clean.ndim - 1))
    return (clean * factor).clamp(-bound, bound)
