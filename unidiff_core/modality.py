"""A modality: a codec, a forward process and a loss weight under one clock."""

from __future__ import annotations

from collections.abc import Mapping

from unidiff_core.codec.codec import Codec
from unidiff_core.network.backbone import Port
from unidiff_core.process.gaussian.process import Gaussian
from unidiff_core.process.process import ForwardProcess


class Modality:
    """One kind of data. All its streams share one timestep.

    Args:
        codec: raw ⇄ latent. In a recipe it may be left out: `fit` then takes the one that encoded the latents.
        process: how its latent is corrupted; the straight flow if not given.
        weight: of its loss; a number, or one for each stream.

    Raises:
        ValueError: if there is no codec, a weight is for a stream that it lacks, or its streams do not go with the
            process.
    """

    def __init__(
        self,
        codec: Codec | None = None,
        process: ForwardProcess | None = None,
        weight: float | dict[str, float] = 1.0,
    ) -> None:
        if codec is None:
            raise ValueError("a modality needs a codec")
        self.codec = codec
        self.process = process or Gaussian()
        self.weight = weight
        if isinstance(weight, Mapping) and set(weight) - set(codec.streams):
            raise ValueError(f"weights {weight} name streams that the codec lacks; it has {', '.join(codec.streams)}")

    def weight_of(self, stream: str) -> float:
        """The loss weight of a stream, by its own name."""
        return self.weight.get(stream, 1.0) if isinstance(self.weight, Mapping) else self.weight

    @property
    def ports(self) -> dict[str, Port]:
        """What a backbone sees of each stream and must return for it."""
        rows = self.codec.streams.items()
        return {name: Port(self.process.seen(stream), self.process.predicted(stream)) for name, stream in rows}
