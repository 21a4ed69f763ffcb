"""The backbone's contract: (what the network sees of each stream, times) → a prediction per stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from unidiff_core.predictor import Latents, Times
from unidiff_core.stream import Stream


@dataclass(frozen=True)
class Port:
    """What a backbone sees of a stream and what it must return for it, as the forward process says."""

    seen: Stream
    predicted: Stream


Ports = Mapping[str, Mapping[str, Port]]
"""modality → stream → port."""


class Backbone(nn.Module, ABC):
    """A network without tasks, guidance or schedule. It need not work in tokens: a U-Net fits too."""

    @abstractmethod
    def forward(self, latents: Latents, times: Times) -> dict[str, Tensor]:
        """Predictions ``"<modality>.<stream>" -> [b, ...]`` for the streams of `latents`.

        Args:
            latents: corrupted tensors by full stream name; a modality that is dropped is absent from both arguments.
            times: modality → ``[b]`` in 0..T, real-valued.
        """
