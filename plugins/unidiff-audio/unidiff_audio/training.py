"""Training of the mel autoencoder, by `unidiffuser fit-codec`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiff_audio.autoencoder import MelAutoencoder
from unidiff_audio.vocoder import GriffinLimVocoder
from unidiff_core import Batches, Columns, NetworkTraining, ShardData, Waveform
from unidiff_core.codec.waveform import fitted, from_wav, to_wav
from unidiff_core.data.damage import FAIL, Damage
from unidiff_core.foundation.argument import check_amounts, check_number, check_sizes

SHOWN = 12
"""Held-out sounds that are written as files."""


class AudioData(ShardData):
    """Sounds of one rate and length, kept in memory. Held out: the last ones of the training shards.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        rate: sounds are resampled to it, samples a second.
        seconds: sounds are cut or filled up with silence to it.
        batch_size: sounds per step.
        holdout: share that is held out, 0..1.
        member: member that holds the sound, a file of any kind that can be read. Samples without one are left out.
        seed: of the order.
        damage: what is done about shards and samples that cannot be read.
    """

    def __init__(
        self,
        folder: str,
        rate: int,
        seconds: float,
        batch_size: int = 128,
        holdout: float = 0.05,
        member: str = "wav",
        seed: int = 0,
        damage: Damage = FAIL,
    ) -> None:
        super().__init__(folder, batch_size, holdout, seed, damage)
        check_sizes(rate=rate)
        check_amounts(seconds=seconds)
        self.rate, self.seconds, self.member = rate, seconds, member

    def read(self) -> Columns:
        """``sound``: float32 ``[n, samples]``."""
        found = self.parsed_all((self.member, self._fitted))
        return {"sound": torch.stack([sound for (several,) in found for sound in several])}

    def _fitted(self, content: bytes) -> Tensor:
        return fitted(from_wav(content), self.rate, round(self.seconds * self.rate))


class MelAutoencoderTraining(NetworkTraining):
    """A `MelAutoencoder`: squared error of the log-mel spectrogram, decoded from a noisy code.

    The code is standardised, so noise bounds what it can say, and similar codes come to mean similar sounds: what a
    diffusion model needs.

    Args:
        rate: samples a second, that of the data.
        window: samples of a frame of the spectrogram.
        hop: samples from one frame to the next; Griffin-Lim wants at most a quarter of the window.
        bands: mel bands.
        floor: decibels below full scale that count as silence.
        channels: numbers per cell of the code.
        levels: how often time is halved.
        width: channels of the convolutions.
        noise: standard deviation of Gaussian noise on the code in training.
        lr: peak learning rate.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        rate: int = 16000,
        window: int = 1024,
        hop: int = 256,
        bands: int = 80,
        floor: float = -60.0,
        channels: int = 16,
        levels: int = 3,
        width: int = 128,
        noise: float = 0.3,
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__(lr, weight_decay)
        check_sizes(rate=rate, window=window, hop=hop, bands=bands, channels=channels, levels=levels, width=width)
        check_number("floor", floor)
        check_amounts(noise=noise)
        self.noise = noise
        self.network = MelAutoencoder(
            rate=rate, window=window, hop=hop, bands=bands, floor=floor, channels=channels, levels=levels, width=width
        )
        initialise(self.network)

    def training_step(self, batch: Columns, batch_index: int) -> Tensor:
        """Squared error of what is decoded from a noisy code."""
        log_mel = self.network.mel(batch["sound"])
        code = self.network.encode(log_mel)
        loss = F.mse_loss(self.network.decode(code + self.noise * torch.randn_like(code)), log_mel)
        self.log("mse", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Columns, batch_index: int) -> None:
        """Root of the mean squared error of held-out spectrograms, dB."""
        self.log("error_db", self._error(batch["sound"]), prog_bar=True, batch_size=len(batch["sound"]))

    @torch.no_grad()
    def export(self, folder: Path, data: AudioData) -> dict[str, float]:
        """Write config and safetensors; the code's statistics are those of all training sounds."""
        training, held_out = sounds_of(data.training), sounds_of(data.held_out)
        standard = self.network.standard
        standard.reset_running_stats()
        standard.momentum = None  # a plain average over the batches
        self.network.train()
        for samples in training.split(256)[: len(training) // 256 or 1]:  # whole batches only
            self.network.encode(self.network.mel(samples))
        self.network.eval()
        self.network.save_pretrained(folder)
        codes = torch.cat([self.network.encode(self.network.mel(samples)) for samples in held_out.split(256)])
        return {
            "error_db": float(self._error(held_out)),
            "code_numbers": float(codes[0].numel()),
            "code_std": float(codes.std()),
        }

    @torch.no_grad()
    def show(self, folder: Path, data: AudioData) -> None:
        """``reconstructions/``: held-out sounds as WAV files, each beside what is heard of it again."""
        (folder / "reconstructions").mkdir()
        held_out = sounds_of(data.held_out)
        chosen = held_out[torch.linspace(0, len(held_out) - 1, min(SHOWN, len(held_out))).long()]
        mel = self.network.mel
        decoded = GriffinLimVocoder()(mel.magnitudes(self.network.decode(self.network.encode(mel(chosen)))), mel)
        for name, sounds in (("original", chosen), ("decoded", decoded)):
            for i, sound in enumerate(sounds):
                path = folder / "reconstructions" / f"{i:02d}_{name}.wav"
                path.write_bytes(to_wav(Waveform(sound.numpy(), mel.rate)))

    def _error(self, samples: Tensor) -> Tensor:
        log_mel = self.network.mel(samples)
        error = F.mse_loss(self.network.decode(self.network.encode(log_mel)), log_mel).sqrt()
        return error * -self.network.floor / 2


def sounds_of(part: Batches | None) -> Tensor:
    """The sounds ``[n, samples]`` of a part of the data."""
    assert part is not None, "setup() comes first"
    sounds: Tensor = part.columns["sound"]
    return sounds


def initialise(network: nn.Module) -> None:
    """Keep the signal's variance through the convolutions (He et al. 2015).

    From torch's default the first hundreds of steps go by without a tone to be seen (docs/log.md).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
