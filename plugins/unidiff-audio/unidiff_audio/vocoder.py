"""Vocoders: mel magnitudes back to waveforms."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from unidiff_audio.spectrogram import LogMel
from unidiff_core.foundation.argument import check_shares, check_whole


class Vocoder(nn.Module, ABC):
    """Gives mel magnitudes their phases, deterministically.

    Any subclass can be named by its class path where a codec has ``vocoder``. For a model directory to record it, it is
    registered by a plugin and keeps its constructor's parameters as attributes of the same names.
    """

    @abstractmethod
    def forward(self, magnitudes: Tensor, mel: LogMel) -> Tensor:
        """Magnitudes ``[b, bands, frames]`` as `mel.scale` gives them → samples ``[b, frames · hop]``."""


class GriffinLimVocoder(Vocoder):
    """The fast Griffin-Lim algorithm of torchaudio, begun at phase zero, so that it draws nothing.

    Source: Griffin and Lim 1984; Perraudin, Balazs and Søndergaard 2013 for the momentum.

    Args:
        iterations: of the algorithm.
        momentum: 0 is the original algorithm; less than 1.
    """

    def __init__(self, iterations: int = 32, momentum: float = 0.99) -> None:
        super().__init__()
        check_whole("iterations", iterations, at_least=0)
        check_shares(momentum=momentum)
        self.iterations, self.momentum = iterations, momentum

    def forward(self, magnitudes: Tensor, mel: LogMel) -> Tensor:
        """Magnitudes ``[b, bands, frames]`` → samples ``[b, frames · hop]``."""
        from torchaudio.functional import griffinlim

        spectrogram = mel.linear(F.pad(magnitudes, (0, 1), mode="replicate"))
        return griffinlim(
            spectrogram,
            mel.spectrogram.window,
            n_fft=mel.window,
            hop_length=mel.hop,
            win_length=mel.window,
            power=1.0,
            n_iter=self.iterations,
            momentum=self.momentum,
            length=magnitudes.shape[-1] * mel.hop,
            rand_init=False,
        )
