"""The backbone's contract: (what the network sees of each stream, times) → a prediction per stream."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from unidiff_core.foundation.latents import Latents, Times
from unidiff_core.foundation.stream import Stream


@dataclass(frozen=True)
class Port:
    """What a backbone sees of a stream and what it must return for it, as the forward process says."""

    seen: Stream
    predicted: Stream

    def predicted_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the prediction (without batch) for a tensor that the network sees in this shape."""
        return self.predicted.shape_on(self.seen.token_grid_of(shape))


Ports = Mapping[str, Mapping[str, Port]]
"""modality → stream → port."""


class Backbone(nn.Module, ABC):
    """A network without tasks, guidance or schedule. It need not work in tokens: a U-Net fits too.

    A parameter that belongs to one modality says so in its name: a part of the name is ``<modality>:<what>``. So a
    trained network can grow by a modality; see `modality_of_parameter`.
    """

    takes_kept: ClassVar[bool] = False
    """Whether `forward` takes ``kept``, modality → bool ``[b]``, and leaves out of each sample what it lacks. Dropping
    in training is then one evaluation; else it is one for each pattern of what samples have."""

    @abstractmethod
    def forward(self, latents: Latents, times: Times, **conditions: Tensor) -> dict[str, Tensor]:
        """Predictions ``"<modality>.<stream>" -> [b, ...]`` for the streams of `latents`.

        Args:
            latents: what the network sees, by full stream name; a modality that is dropped is absent from both
                arguments.
            times: modality → ``[b]`` in 0..T, real-valued.
            **conditions: those side inputs of `conditions` that were given, ``[b, ...]`` each, as the user gave them.
        """

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the side inputs that `forward` takes; none has to be given."""
        return ()

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The repeated parts, in order: the units that FSDP2 shards. None by default: the whole is one unit."""
        return ()


def modality_of_parameter(name: str) -> str | None:
    """The modality that a parameter belongs to by its name, ``streams.<modality>:<stream>.embed.weight``, or None."""
    match = re.search(r"(?:^|\.)([^.:]+):", name)
    return match[1] if match else None
