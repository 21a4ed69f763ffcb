"""The autoencoder of log-mel spectrograms: convolutions over time, its bands being channels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from unidiff_audio.spectrogram import LogMel
from unidiff_core.codec.weights import locate, read_config, require

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OPTIONS = ("rate", "window", "hop", "bands", "floor", "channels", "levels", "width")


class MelAutoencoder(nn.Module):
    """Waveforms → log-mel → a grid of standardised numbers over time, and back to log-mel.

    Args:
        rate: samples a second.
        window: samples of a frame of the spectrogram.
        hop: samples from one frame to the next.
        bands: mel bands.
        floor: decibels below full scale that count as silence.
        channels: numbers per cell of the grid.
        levels: how often time is halved, so that a cell is 2^levels frames.
        width: channels of the convolutions.
    """

    def __init__(
        self, *, rate: int, window: int, hop: int, bands: int, floor: float, channels: int, levels: int, width: int
    ) -> None:
        super().__init__()
        self.rate, self.window, self.hop, self.bands, self.floor = rate, window, hop, bands, floor
        self.channels, self.levels, self.width = channels, levels, width
        self.mel = LogMel(rate, window, hop, bands, floor)
        self.encoder = nn.Sequential(
            *(nn.Conv1d(bands, width, 3, padding=1), nn.GELU()),
            *_each(levels, lambda: [nn.Conv1d(width, width, 4, stride=2, padding=1), nn.GELU()]),
            nn.Conv1d(width, channels, 1),
        )
        # In training it sees batches; the exported statistics are those of all training sounds.
        self.standard = nn.BatchNorm1d(channels, affine=False)
        self.decoder = nn.Sequential(
            *(nn.Conv1d(channels, width, 3, padding=1), nn.GELU()),
            *_each(levels, lambda: [nn.ConvTranspose1d(width, width, 4, stride=2, padding=1), nn.GELU()]),
            nn.Conv1d(width, bands, 3, padding=1),
        )

    @property
    def downsampling(self) -> int:
        """Frames per cell."""
        return 2**self.levels

    def encode(self, log_mel: Tensor) -> Tensor:
        """``[b, bands, frames]`` → ``[b, channels, frames / downsampling]``, of mean 0 and variance 1 per channel."""
        latent: Tensor = self.standard(self.encoder(log_mel))
        return latent

    def decode(self, latents: Tensor) -> Tensor:
        """``[b, channels, cells]`` → log-mel ``[b, bands, cells · downsampling]``."""
        log_mel: Tensor = self.decoder(latents)
        return log_mel

    def save_pretrained(self, folder: Path) -> None:
        """Write config and safetensors into an existing folder."""
        from safetensors.torch import save_file

        (folder / CONFIG).write_text(json.dumps({name: getattr(self, name) for name in OPTIONS}, indent=1) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, name: str) -> MelAutoencoder:
        """From a folder that `save_pretrained` wrote, or a hub id of one.

        Raises:
            ValueError: if files are absent or the weights do not fit the config.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = locate(name, (CONFIG, WEIGHTS))
        require(folder, CONFIG, WEIGHTS)
        config = read_config(folder / CONFIG)
        if set(config) != set(OPTIONS):
            raise ValueError(f"{folder / CONFIG} is not a mel autoencoder's: it needs {OPTIONS}, and has {(*config,)}")
        network = cls(**config)
        try:
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder / WEIGHTS} does not fit its config: {error}") from error
        return network.eval().requires_grad_(False)


def _each(levels: int, make: Callable[[], list[nn.Module]]) -> list[nn.Module]:
    return [layer for _ in range(levels) for layer in make()]
