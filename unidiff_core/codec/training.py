"""What `unidiffuser fit-codec` trains: a network that a codec loads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class CodecTraining(pl.LightningModule, ABC):
    """Trains one network of a codec, and exports it in the layout that the codec loads."""

    @abstractmethod
    def export(self, folder: Path, data: Any) -> dict[str, float]:
        """Write the trained network into an existing, empty folder: config and safetensors, no pickle.

        Args:
            folder: where to.
            data: the data module that it was trained with; for statistics over the training data.

        Returns:
            What was measured on held-out data, by name; `fit-codec` prints it and keeps it as ``metrics.json``.
        """

    def show(self, folder: Path, data: Any) -> None:
        """Write something for people to look at, made from held-out data."""
