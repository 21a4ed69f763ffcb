"""What both codecs share: frozen networks that load at first use, on the codec's own device."""

from __future__ import annotations

from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from unidiff_core.codec.codec import Codec

N = TypeVar("N", bound=nn.Module)


class FrozenCodec(Codec):
    """A codec whose networks are pretrained, frozen, and loaded when first needed."""

    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Knows the device and the dtype that networks loaded later must have.
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: nothing here is trained."""
        return super().train(False)

    def adopt(self, network: N) -> N:
        """Freeze a network that was just loaded, and put it where the codec is."""
        network = network.eval().requires_grad_(False).to(self._anchor.device)
        # diffusers warns at any call with a dtype, even the one that the network has.
        return network if self._anchor.dtype == torch.float32 else network.to(self._anchor.dtype)

    def place(self, tensor: Tensor) -> Tensor:
        """An input, on the codec's device and in its dtype."""
        return tensor.to(self._anchor.device, self._anchor.dtype)
