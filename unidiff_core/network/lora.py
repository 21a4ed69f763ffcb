"""Low-rank adaptation of a backbone, by peft: small trained matrices beside frozen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unidiff_core.foundation.argument import check_shares, check_sizes


class LoRA:
    """Trains ``W + (alpha / rank) · B A`` in place of W, with W frozen (Hu et al. 2021, arXiv 2106.09685).

    Args:
        rank: of B A.
        alpha: its scale, over `rank`.
        dropout: of the adapter's input.
        targets: names of the linear layers that are adapted; those of the U-ViT's blocks by default.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: int = 32,
        dropout: float = 0.0,
        targets: Sequence[str] = ("qkv", "proj", "fc1", "fc2", "skip_linear"),
    ) -> None:
        check_sizes(rank=rank, alpha=alpha)
        check_shares(dropout=dropout)
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, tuple(targets)

    def inject(self, backbone: nn.Module) -> None:
        """Put adapters beside the target layers. They start as nothing: B is zero.

        Raises:
            ValueError: if peft is not installed, or the backbone has no such layer.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError("LoRA needs peft: pip install 'unidiff-core[lora]'") from error
        requires = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(self.targets)
        )
        inject_adapter_in_model(config, backbone)
        # peft freezes all but its own; what was to be trained still is.
        for name, parameter in backbone.named_parameters():
            if requires.get(name):
                parameter.requires_grad_(True)


def merged(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state dict with each adapter added to its layer, under the names that the layers have without adapters.

    Args:
        state: of `module`, whole tensors; the module itself is left alone.
        module: whose adapted layers say how their adapters are scaled.
    """
    if not any(".lora_" in name for name in state):
        return dict(state)
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, layer in layers.items():
        for adapter, scaling in layer.scaling.items():
            a, b = (state[f"{name}.lora_{letter}.{adapter}.weight"] for letter in "AB")
            weight = plain[f"{name}.weight"]
            plain[f"{name}.weight"] = (weight.double() + scaling * (b.double() @ a.double())).to(
                torch.promote_types(weight.dtype, a.dtype)  # an average in float32 of adapters beside bfloat16
            )
    return plain
