"""The predictor: the one callable contract of sampling."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from unidiff_core.foundation.latents import Latents, Times, dropped


class Predictor(Protocol):
    """(latents, times) → clean estimates, one for each stream it was given.

    A backbone with its processes is one, so are the exact oracle and a foreign network; guidance wraps one in another.
    """

    def __call__(self, latents: Latents, times: Times) -> dict[str, Tensor]:
        """Clean estimates ``"<modality>.<stream>" -> [b, ...]``.

        Args:
            latents: states ``"<modality>.<stream>" -> [b, ...]``.
            times: modality → ``[b]``, in steps 0..T.
        """
        ...


def without(predictor: Predictor, names: Collection[str]) -> Predictor:
    """The predictor with some modalities dropped: it never sees their latents and their times."""

    def predict(latents: Latents, times: Times) -> dict[str, Tensor]:
        return predictor(*dropped(latents, times, names))

    return predict
