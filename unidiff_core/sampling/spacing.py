"""Spacings: how fast a solved modality goes through its times, where not evenly.

A spacing is of a path: it says at which time the modality is after a share of the way between two knots. The knots, the
number of steps between them and the progress of every step stay what they are, so that each modality may have its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from unidiff_core.foundation.error import meant
from unidiff_core.foundation.time import T
from unidiff_core.process.process import ForwardProcess
from unidiff_core.sampling.spec import Along, SpecError, TimestepSpec

Spacing: TypeAlias = Literal["uniform", "cosine", "log_snr"]
LEAST, MOST = math.log(1 / 80), math.log(1 / 0.002)
"""Half the logarithm of signal over noise between which `log_snr` is even: as far as EDM goes (arXiv 2206.00364). It is
not finite at 0, nor always at T; nor does it go below a thousandth of T.
"""
POINTS = 20_001
"""Of the table in which a time is looked up."""


def spaced(
    spec: TimestepSpec, spacing: str | Mapping[str, str], processes: Mapping[str, ForwardProcess]
) -> TimestepSpec:
    """A spec whose solved modalities go through their times so.

    Args:
        spec: parsed.
        spacing: ``uniform``; ``cosine``, slow where it is noisy; ``log_snr``, even in the logarithm of signal over
            noise (DPM-Solver, arXiv 2206.00927, section 3.3). For all, where `log_snr` goes to those that have noise
            in numbers, or by modality.
        processes: of all modalities.

    Raises:
        SpecError: if there is no such spacing, or it is not one of what is solved.
    """
    if spacing == "uniform":
        return spec
    if isinstance(spacing, Mapping):
        if wrong := [name for name in spacing if name not in spec.solved]:
            known = ", ".join(spec.solved)
            raise SpecError(f"a spacing is named for {wrong[0]!r}, which {spec} does not solve; solved: {known}")
        ways = {name: along(row, processes[name]) for name, row in spacing.items()}
        refused = [name for name, way in ways.items() if way is None and spacing[name] != "uniform"]
    else:
        ways = {name: along(spacing, processes[name]) for name in spec.solved}
        refused = [] if any(ways.values()) else list(ways)
    if refused:
        what = type(processes[refused[0]]).__name__
        raise SpecError(f"{refused[0]!r} is of {what}, which has no noise in numbers; it takes uniform or cosine")
    return replace(spec, paths={name: replace(path, along=ways.get(name)) for name, path in spec.paths.items()})


def along(spacing: str, process: ForwardProcess) -> Along | None:
    """A spacing by its name; None if it is even, or needs noise in numbers and the process has none.

    Raises:
        SpecError: if there is no such spacing.
    """
    match spacing:
        case "uniform":
            return None
        case "cosine":
            return cosine
        case "log_snr":
            return log_snr(process)
    known = get_args(Spacing)
    raise SpecError(f"unknown spacing {spacing!r}{meant(str(spacing), known, then='known: ' + ', '.join(known))}")


def cosine(start: float, end: float, share: float) -> float:
    """Slow at the noisy end, whichever it is: from 1 down to 0 the time is cos(π/2 · share)."""
    if end > start:
        return cosine(end, start, 1 - share)
    return end + (start - end) * math.cos(math.pi / 2 * share)


def log_snr(process: ForwardProcess) -> Along | None:
    """Even in the logarithm of signal over noise; None if the process has none."""
    steps = torch.linspace(1, T, POINTS, dtype=torch.float64)
    values = process.log_snr(steps)
    if values is None:
        return None
    levels = values.clamp(LEAST, MOST).numpy()
    kept = np.flatnonzero(np.diff(levels, prepend=np.inf) < 0)  # but for the first, what is clipped is at one value
    levels, times = levels[kept], (steps / T).numpy()[kept]

    def way(start: float, end: float, share: float) -> float:
        first, last = np.interp([start, end], times, levels).tolist()
        return float(np.interp(-(first + (last - first) * share), -levels, times))

    return way
