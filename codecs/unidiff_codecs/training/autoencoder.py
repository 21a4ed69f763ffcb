"""Training of the KL autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiff_codecs.image import load_autoencoder, to_images
from unidiff_codecs.picture import contact_sheet
from unidiff_codecs.training.augmentation import augmented, normalised
from unidiff_core import Batches, Columns, NetworkTraining, ShardData
from unidiff_core.foundation.argument import check_amounts, check_sizes

SAMPLES = 2000
"""Training images that the scaling factor is measured on."""


class AutoencoderTraining(NetworkTraining):
    """A `diffusers.AutoencoderKL`: reconstruction plus a small KL term (arXiv 2112.10752, without its critics).

    Args:
        channels: of the levels; each but the first halves the grid, so 4 levels downsample by 8.
        latent_channels: channels of the latent.
        layers: residual blocks per level.
        groups: of the group norms; 1 keeps the colour of small networks, many small groups normalise it away.
        attention: whether the middle block attends.
        kl: weight of the KL term per latent element, against the squared error per pixel element.
        augment: strength of the augmentation, 0..1.
        pretrained: folder or hub id of an autoencoder to start from; its own shape then holds.
        lr: peak learning rate.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        channels: Sequence[int] = (8, 16, 32, 64),
        latent_channels: int = 4,
        layers: int = 1,
        groups: int = 1,
        attention: bool = False,
        kl: float = 1e-3,
        augment: float = 0.5,
        pretrained: str | None = None,
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__(lr, weight_decay)
        check_sizes(latent_channels=latent_channels, layers=layers, groups=groups)
        for each in channels:
            check_sizes(channels=each)
        check_amounts(kl=kl, augment=augment)
        self.channels, self.latent_channels, self.layers, self.groups = list(channels), latent_channels, layers, groups
        self.attention, self.kl, self.augment, self.pretrained = attention, kl, augment, pretrained
        self.network: Any = None

    def configure_model(self) -> None:
        """Build or load the network."""
        if self.network is None:
            self.network = load_autoencoder(self.pretrained) if self.pretrained else self._build()
            self.network.train()

    def training_step(self, batch: Columns, batch_index: int) -> Tensor:
        """Squared error + kl · KL."""
        pixels = augmented(normalised(batch["image"]), self.augment)
        posterior = self.network.encode(pixels).latent_dist
        error = F.mse_loss(self.network.decode(posterior.sample()).sample, pixels)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        self.log_dict({"mse": error, "kl": divergence}, prog_bar=True)
        loss: Tensor = error + self.kl * divergence
        return loss

    def validation_step(self, batch: Columns, batch_index: int) -> None:
        """Peak signal-to-noise ratio of held-out reconstructions, dB."""
        pixels = normalised(batch["image"])
        self.log("psnr", _psnr(self._reconstruct(pixels), pixels), prog_bar=True, batch_size=len(pixels))

    @torch.no_grad()
    def export(self, folder: Path, data: ShardData) -> dict[str, float]:
        """Write config and safetensors; the scaling factor is 1 / standard deviation of the training latents."""
        assert data.training is not None and data.held_out is not None
        self.network.eval()
        posteriors = [self.network.encode(pixels).latent_dist for pixels in _pixels(data.training, SAMPLES)]
        latents = torch.cat([posterior.sample() for posterior in posteriors])
        noise = torch.cat([posterior.std for posterior in posteriors])
        self.network.register_to_config(scaling_factor=float(1 / latents.std()))
        self.network.save_pretrained(str(folder), safe_serialization=True)
        pairs = [(self._reconstruct(pixels), pixels) for pixels in _pixels(data.held_out)]
        return {
            "psnr": float(_psnr(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))),
            "latent_numbers": float(latents[0].numel()),
            "posterior_noise": float(noise.square().mean().sqrt() / latents.std()),
        }

    @torch.no_grad()
    def show(self, folder: Path, data: ShardData) -> None:
        """``reconstructions.png``: rows of held-out images, each above the row of its reconstructions."""
        assert data.held_out is not None
        chosen = torch.linspace(0, len(data.held_out) - 1, 48).long()
        pixels = normalised(data.held_out.columns["image"][chosen])
        rows = zip(pixels.split(12), self._reconstruct(pixels).split(12), strict=True)
        images = [image for pair in rows for row in pair for image in to_images(row)]
        contact_sheet(images, columns=12).save(folder / "reconstructions.png")

    def _build(self) -> Any:
        from diffusers import AutoencoderKL

        levels = len(self.channels)
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(self.channels),
            layers_per_block=self.layers,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            mid_block_add_attention=self.attention,
        )
        initialise(network)
        return network

    def _reconstruct(self, pixels: Tensor) -> Tensor:
        output: Tensor = self.network.decode(self.network.encode(pixels).latent_dist.mode()).sample
        return output


def initialise(network: nn.Module) -> None:
    """Begin as a nearly linear map: every residual branch is zero, and every other convolution is orthogonal.

    A 3×3 convolution begins with its centre tap alone, a downsampling one with the mean of its taps. From torch's
    default the small networks take many times as long to show any colour (docs/log.md).
    """
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
        elif not name.endswith("conv1"):
            _through(module, is_mean="downsamplers" in name)


@torch.no_grad()
def _through(layer: nn.Conv2d, *, is_mean: bool) -> None:
    """Pass the signal through an orthogonal map of the channels."""
    side = layer.kernel_size[0]
    channels = nn.init.orthogonal_(torch.empty(layer.weight.shape[:2]))
    if is_mean:
        layer.weight.copy_((channels / side)[..., None, None].expand_as(layer.weight))
    else:
        layer.weight.zero_()[:, :, side // 2, side // 2] = channels


def _pixels(data: Batches, limit: int | None = None) -> list[Tensor]:
    """Images in [-1, 1], in parts; `limit` of them, evenly spaced, if given."""
    stride = max(1, len(data) // limit) if limit else 1
    return [normalised(images) for images in data.columns["image"][::stride].split(256)]


def _psnr(output: Tensor, pixels: Tensor) -> Tensor:
    """Of values in [-1, 1], dB."""
    return 10 * torch.log10(4 / F.mse_loss(output.clamp(-1, 1), pixels))
