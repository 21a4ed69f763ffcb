"""What a data module hands to a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Batch:
    """Samples of one micro-batch, raw or stored, and where they stand in the run.

    Attributes:
        index: ``[b]`` int64, each sample's index in the global batch.
        step: optimizer step that it belongs to.
        stored: ``"<modality>.<name>" -> [b, ...]``, what codecs gave at `encode`.
        raws: modality → b raw samples, for modalities that are not stored.
        present: modality → bool ``[b]``; a modality that is not named is present throughout.
        size: samples in the global batch; b if not given.
        conditions: name → ``[b, ...]``, side inputs that reach the backbone untouched.
        num_present: modality → samples of the global batch that have it; counted in `present` if not given. Where
            samples lack modalities and a global batch is split over processes or micro-batches, both are needed, in
            each of its parts: the loss is normalised over what is present in the global batch.
        lost: which samples of the data set could not be read, with what is wrong; nothing of them is present.
        rows: ``[b]`` int64, which samples of the data set they are, for messages; the data module says.
    """

    index: Tensor
    step: int
    stored: dict[str, Tensor] = field(default_factory=dict)
    raws: dict[str, Sequence[Any]] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    size: int | None = None
    num_present: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, Tensor] = field(default_factory=dict)
    rows: Tensor | None = None
    lost: dict[int, str] = field(default_factory=dict)

    def share(self, modality: str) -> Tensor | float:
        """How many present samples of the global batch fall to this micro-batch; it need not be a whole number.

        Summed over the micro-batches of a global batch this is the number of its samples that have the modality.
        """
        if modality in self.num_present:
            return self.num_present[modality] * len(self.index) / (self.size or len(self.index))
        return self.present[modality].sum() if modality in self.present else float(len(self.index))
