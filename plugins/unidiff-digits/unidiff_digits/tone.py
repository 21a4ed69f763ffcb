"""The sound of a digit: its dial tone (ITU-T Q.23), made with chance and read back by Goertzel filters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unidiff_core import Waveform
from unidiff_core.codec.waveform import to_wav

RATE = 8000
"""Samples a second of the sounds that are made here, telephony's own."""
ROWS = (697, 770, 852, 941)
COLUMNS = (1209, 1336, 1477)
"""Hz. A key sounds with the frequency of its row and that of its column."""
KEYS = ("123", "456", "789", "*0#")

WINDOW = 0.04
"""Seconds that one filter sees: a Hann window's main lobe is then 50 Hz to a side, and rows are 73 Hz apart."""
PURITY = 0.5
"""Least share of a sound's energy in the tone's two frequencies. The least pure real sound has 0.93, noise 0.02."""
DOMINANCE = 4.0
"""Least ratio of a tone's energy to that of the next frequency of its group (6 dB)."""
TWIST = 10.0
"""Greatest ratio of the energies of row and column, either way (10 dB). Real ones have 4 dB."""


def frequencies(digit: str) -> tuple[int, int]:
    """Row and column frequency of a digit, Hz."""
    return next((ROWS[i], COLUMNS[row.index(digit)]) for i, row in enumerate(KEYS) if digit in row)


def synthesise(digit: str, rng: np.random.Generator) -> np.ndarray:
    """A dial tone ``[n]`` at `RATE`, in -1..1, as a person might press it into a noisy line.

    Drawn at random: 0.15 to 0.35 s of duration, a level over a range of 10 dB, up to 2 dB between its two frequencies
    to either side, both phases, and white noise of 15 to 30 dB below the tone.
    """
    time = np.arange(round(RATE * rng.uniform(0.15, 0.35))) / RATE
    level, twist = 10 ** (rng.uniform(-10, 0) / 20), 10 ** (rng.uniform(-2, 2) / 20)
    phases = rng.uniform(0, 2 * np.pi, 2)
    row, column = (np.sin(2 * np.pi * f * time + p) for f, p in zip(frequencies(digit), phases, strict=True))
    tone = 0.35 * level * (row * np.sqrt(twist) + column / np.sqrt(twist))
    noise = np.sqrt((tone**2).mean()) * 10 ** (-rng.uniform(15, 30) / 20)
    return (tone + noise * rng.standard_normal(len(time))).clip(-1, 1).astype(np.float32)


def read(samples: np.ndarray, rate: int) -> str | None:
    """The digit of a dial tone ``[n]``, or None: where there is none, another key's, or other sounds besides."""
    if rate <= 2 * COLUMNS[-1]:
        return None
    frames = _frames(np.asarray(samples, dtype=np.float64), round(WINDOW * rate))
    total = float((frames**2).sum())
    if total < 1e-8:
        return None
    rows, columns = (goertzel(frames, rate, group).sum(axis=0) for group in (ROWS, COLUMNS))
    row, column = int(rows.argmax()), int(columns.argmax())
    is_tone = (
        rows[row] + columns[column] >= PURITY * total
        and 1 / TWIST <= rows[row] / max(columns[column], 1e-12) <= TWIST
        and all(np.sort(group)[-1] >= DOMINANCE * np.sort(group)[-2] for group in (rows, columns))
    )
    key = KEYS[row][column]
    return key if is_tone and key.isdigit() else None


def goertzel(frames: np.ndarray, rate: int, frequencies: Sequence[float]) -> np.ndarray:
    """Energy ``[n, f]`` of frames ``[n, w]`` at each frequency (Hz); that of a Hann-windowed sinusoid is all of it.

    Goertzel's recursion computes one term of a Fourier sum; here all of them are taken as one product.
    """
    width = frames.shape[1]
    turns = np.outer(np.arange(width), np.asarray(frequencies, dtype=np.float64)) / rate
    window = _hann(width)
    # A windowed sinusoid of amplitude a has energy a²/2·Σw², and its Fourier sum the square a²/4·(Σw)².
    energies: np.ndarray = np.abs(frames @ np.exp(-2j * np.pi * turns)) ** 2
    return energies * 2 * (window**2).sum() / window.sum() ** 2


def _hann(width: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(width) + 0.5) / width)


def _frames(samples: np.ndarray, width: int) -> np.ndarray:
    """Hann-windowed frames ``[n, width]``, half overlapping; the end is filled with silence."""
    hop = width // 2
    count = max(1, -(-(len(samples) - width) // hop) + 1)
    padded = np.pad(samples, (0, max(0, (count - 1) * hop + width - len(samples))))
    return np.stack([padded[i * hop : i * hop + width] for i in range(count)]) * _hann(width)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """A sound ``[n]`` in -1..1 as a WAV file: mono, 16-bit PCM, 1 being its largest number."""
    return to_wav(Waveform(np.rint(samples * 32767) / 2**15, rate))
