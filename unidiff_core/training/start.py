"""Where a training's weights start: from nothing, or from a model directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from unidiff_core.network.backbone import Backbone
from unidiff_core.network.lora import LoRA
from unidiff_core.serialization.description import Description
from unidiff_core.serialization.model_directory import load_weights, read_description


@dataclass(frozen=True)
class Start:
    """A model directory to start from. Modalities that it lacks start fresh: their tokens and heads are new."""

    folder: str
    """The model directory."""
    weights: Literal["ema", "model"] = "ema"
    """Its average, or its model's own weights."""
    freeze: bool = False
    """Leave what was loaded as it is, so that only new modalities (and LoRA) train."""
    lora: LoRA | None = None
    """Adapters to train beside the frozen weights; merged when a model directory is written."""
    allow_hub: bool = False
    """Let codecs that the directory describes fetch weights by hub id."""

    def describe(self) -> Description:
        """Everything of the directory's model but its weights.

        Raises:
            ModelDirectoryError: if it cannot be read.
        """
        return read_description(self.folder, allow_hub=self.allow_hub)

    def load(self, module: nn.Module, backbone: Backbone, *, fresh: Iterable[str]) -> None:
        """Load the weights, freeze them if that is asked for, and put adapters in.

        Args:
            module: whose state dict is that of a model directory.
            backbone: the part of it that adapters go into.
            fresh: modalities that the directory lacks.

        Raises:
            ModelDirectoryError: if they cannot be read or do not fit.
        """
        loaded = set(load_weights(module, self.folder, self.weights, fresh=fresh))
        if self.freeze or self.lora:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name not in loaded)
        if self.lora:
            self.lora.inject(backbone)
