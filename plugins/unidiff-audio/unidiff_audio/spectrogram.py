"""Log-mel spectrograms, scaled to -1..1 without statistics of any data."""

from __future__ import annotations

from torch import Tensor, nn

UPDATES = 50
"""Of the non-negative least squares: more change no sound that one could hear."""
EPSILON = 1e-9


class LogMel(nn.Module):
    """Waveforms → magnitudes in mel bands, in decibels: 1 is a sinusoid of full scale, -1 is silence.

    Args:
        rate: samples a second.
        window: samples of a frame (Hann).
        hop: samples from one frame to the next.
        bands: mel bands, from 0 Hz to half the rate.
        floor: decibels of what counts as silence, below 0, which is a sinusoid of full scale.

    Raises:
        ValueError: if the floor is not below 0.
    """

    def __init__(self, rate: int, window: int, hop: int, bands: int, floor: float) -> None:
        super().__init__()
        from torchaudio.transforms import MelScale, Spectrogram

        if floor >= 0:
            raise ValueError(f"floor is in decibels below full scale, so less than 0, not {floor}")
        self.rate, self.window, self.hop, self.bands, self.floor = rate, window, hop, bands, floor
        self.spectrogram = Spectrogram(n_fft=window, hop_length=hop, power=1.0)
        self.scale = MelScale(bands, rate, n_stft=window // 2 + 1)

    @property
    def full_scale(self) -> Tensor:
        """The spectrogram's peak for a sinusoid of amplitude 1."""
        return self.spectrogram.window.sum() / 2

    def forward(self, samples: Tensor) -> Tensor:
        """Samples ``[b, n]`` → ``[b, bands, n // hop]``, in -1..1 and a little above."""
        magnitudes = self.scale(self.spectrogram(samples))[..., :-1]  # the last frame is centred on the very end
        decibels = 20 * (magnitudes / self.full_scale).clamp(min=10 ** (self.floor / 20)).log10()
        return 1 - 2 * decibels / self.floor

    def magnitudes(self, log_mel: Tensor) -> Tensor:
        """What `forward` gave ``[b, bands, frames]`` → magnitudes in mel bands, as `scale` gave them."""
        decibels = self.floor * (1 - log_mel) / 2
        return self.full_scale * 10 ** (decibels.clamp(max=20) / 20)

    def linear(self, magnitudes: Tensor) -> Tensor:
        """Magnitudes in mel bands ``[b, bands, frames]`` → in frequencies ``[b, window // 2 + 1, frames]``.

        Non-negative least squares by multiplicative updates (Lee and Seung 2001), from the bands spread out evenly. The
        plain least-squares solution with its negative part cut off blurs neighbouring frequencies far more.
        """
        bank = self.scale.fb  # (frequencies, bands)
        spread = bank / bank.sum(dim=0).clamp(min=EPSILON)
        estimate = spread @ magnitudes + EPSILON
        target = bank @ magnitudes + EPSILON
        for _ in range(UPDATES):
            estimate = estimate * target / (bank @ (bank.T @ estimate) + EPSILON)
        return estimate
