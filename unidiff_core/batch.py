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
    """

    index: Tensor
    step: int
    stored: dict[str, Tensor] = field(default_factory=dict)
    raws: dict[str, Sequence[Any]] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
